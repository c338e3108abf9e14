//! The program asks its own socket, as `dogtag top` does.

use dogtag::report::{self, ReportError};
use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

/// Connects to the socket of a process, once there is one.
fn connect(pid: u32) -> UnixStream {
    let prefix = format!("dogtag-{pid}-");
    loop {
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        let names = table.lines().filter_map(|line| line.split(' ').next_back()?.strip_prefix('@'));
        let mut own = names.filter(|name| name.starts_with(&prefix));
        if let Some(name) = own.next()
            && let Ok(stream) = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap())
        {
            return stream;
        }
        std::thread::yield_now();
    }
}

/// Reads one answer: its first line without the length, and its body.
fn answer(stream: &mut UnixStream) -> (String, Vec<u8>) {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let (state, length) = line.trim_end().rsplit_once(' ').unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (state.to_owned(), body)
}

fn ask(stream: &mut UnixStream, request: &str) -> (String, Vec<u8>) {
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    answer(stream)
}

/// The live bytes of the service `kept`, of an answer to `figures`.
fn kept(body: &[u8]) -> u64 {
    let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    let name = body.windows(6).position(|bytes| bytes == b"\x04\0kept").unwrap();
    // Its usage and its limits stand before it.
    let usage = name - 8 * 8;
    number(usage) - number(usage + 16)
}

pub fn socket() {
    report::builder().on_socket().start().unwrap();
    assert!(matches!(report::builder().on_socket().start(), Err(ReportError::Twice)));
    let own = std::process::id();
    let mut stream = connect(own);
    let (state, body) = ask(&mut stream, "dogtag/1 figures");
    assert_eq!((state.as_str(), kept(&body)), ("dogtag/1 ok", 100_000));
    let (state, body) = ask(&mut stream, "dogtag/1 report");
    assert_eq!(state, "dogtag/1 ok");
    let report: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&report["pid"], &report["occasion"]), (&own.into(), &"asked".into()));
    // What is refused leaves the connection.
    let (state, why) = ask(&mut stream, "dogtag/7 figures");
    assert_eq!(state, "dogtag/1 refused");
    assert!(String::from_utf8(why).unwrap().contains("speaks dogtag/1"));

    // Who does not read keeps nobody else waiting.
    let mut slow = connect(own);
    slow.set_nonblocking(true).unwrap();
    while slow.write_all(b"dogtag/1 report\n").is_ok() {}
    assert_eq!(kept(&ask(&mut stream, "dogtag/1 figures").1), 100_000);
    // One request after the other is answered, also those that come in one piece.
    stream.write_all(b"dogtag/1 hello\ndogtag/1 figures\n").unwrap();
    assert!(answer(&mut stream).1.starts_with(b"{\"program\":"));
    assert_eq!(kept(&answer(&mut stream).1), 100_000);
    // So are many, in pieces that end within a request.
    stream.write_all(&b"dogtag/1 figures\n".repeat(40)).unwrap();
    for _ in 0..40 {
        assert_eq!(kept(&answer(&mut stream).1), 100_000);
    }
    // A request that never ends is none, nor is one that is too long.
    let mut endless = connect(own);
    let _ = endless.write_all(&[b'x'; 4096]);
    assert_eq!(endless.read(&mut [0]).unwrap_or(0), 0);
    let mut long = connect(own);
    let _ = long.write_all(&[&[b'x'; 257][..], b"\n"].concat());
    assert_eq!(long.read(&mut [0]).unwrap_or(0), 0);
    let mut longest = connect(own);
    assert_eq!(ask(&mut longest, &"x".repeat(256)).0, "dogtag/1 refused");

    // SAFETY: the child only asks for signals, and is killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    let mut childs = connect(child.cast_unsigned());
    assert_eq!(kept(&ask(&mut childs, "dogtag/1 figures").1), 100_000);
    let hello = String::from_utf8(ask(&mut childs, "dogtag/1 hello").1).unwrap();
    assert!(hello.contains(&format!("\"pid\":{child},")), "{hello}");
    // The parent's connections are none of the child's: they end with the parent's.
    assert_eq!(kept(&ask(&mut stream, "dogtag/1 figures").1), 100_000);
    // SAFETY: ends our own child, and waits for it.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }

    // A program that closes all descriptors has a socket again when somebody asks.
    drop(stream);
    // SAFETY: no other part of this program has descriptors from 3 on that it uses again.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    std::mem::forget((slow, endless, long, longest, childs));
    loop {
        let mut stream = connect(own);
        let mut first = [0];
        if stream.write_all(b"dogtag/1 hello\n").is_ok()
            && stream.read(&mut first).is_ok_and(|read| read == 1)
        {
            break;
        }
    }
    println!("as expected");
}
