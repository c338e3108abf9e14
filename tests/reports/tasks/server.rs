//! The program asks its own server.

use crate::watch::ended;
use dogtag::report::{self, ReportError};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

/// Sends a request, and returns the answer's status, headers and body.
fn ask(address: SocketAddr, request: &[u8]) -> (u16, String, Vec<u8>) {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(request).unwrap();
    answer(&mut connection)
}

fn answer(connection: &mut TcpStream) -> (u16, String, Vec<u8>) {
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).unwrap();
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    (status, head, body)
}

fn get(address: SocketAddr, target: &str) -> (u16, String, Vec<u8>) {
    ask(address, format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
}

pub fn serve() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = report::serve(taken.local_addr().unwrap());
    assert!(matches!(refused, Err(ReportError::Address(_))), "{refused:?}");
    for address in ["0.0.0.0:0", "[::]:0", "10.0.0.1:80"] {
        let refused = report::serve(address);
        assert!(matches!(refused, Err(ReportError::NotLoopback { .. })), "{refused:?}");
    }
    drop(taken);
    let address = report::serve("127.0.0.1:0").unwrap();
    assert!(address.ip().is_loopback() && address.port() != 0);
    assert!(matches!(report::serve("127.0.0.1:0"), Err(ReportError::Twice)));

    let (status, head, body) = get(address, "/");
    assert!(status == 200 && head.contains("Content-Type: text/html; charset=utf-8"), "{head}");
    assert_eq!(String::from_utf8(body).unwrap(), report::page());
    let (status, head, body) = get(address, "/memory.json");
    assert!(status == 200 && head.contains("Content-Type: application/json"), "{head}");
    let figures: Value = serde_json::from_slice(&body).unwrap();
    let rows = figures["rows"].as_array().unwrap();
    let kept = rows.iter().find(|row| row["name"] == "kept").unwrap();
    assert_eq!(kept["usage"]["live_bytes"], 100_000);
    profiles(address);

    // One that says nothing yet keeps nobody waiting, nor do many.
    let mut early = TcpStream::connect(address).unwrap();
    early.write_all(b"GET /memory.json HT").unwrap();
    assert_eq!(get(address, "/nothing").0, 404);
    early.write_all(b"TP/1.1\r\n\r\n").unwrap();
    assert_eq!(answer(&mut early).0, 200);
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(get(address, "/memory").0, 200);
    drop(silent);

    let post = b"POST /memory.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabcde";
    let (status, head, _) = ask(address, post);
    assert!(status == 405 && head.contains("\r\nAllow: GET\r\n"), "{head}");
    assert_eq!(ask(address, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").0, 403);
    assert_eq!(ask(address, b"nonsense\r\n\r\n").0, 400);
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(8 << 10));
    assert_eq!(ask(address, long.as_bytes()).0, 431);
    // Who goes, goes.
    let mut gone = TcpStream::connect(address).unwrap();
    gone.write_all(b"GET / HT").unwrap();
    gone.shutdown(Shutdown::Write).unwrap();
    assert_eq!(gone.read(&mut [0; 10]).unwrap(), 0);
    drop(TcpStream::connect(address).unwrap());
    assert_eq!(get(address, "/memory.json").0, 200);
    assert!((0..1024).any(is_listening));

    // A child has no server, and keeps no address.
    // SAFETY: the child goes on as any program does; dogtag allows that.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let listening = (0..1024).filter(|descriptor| is_listening(*descriptor)).count();
        std::process::exit(listening.try_into().unwrap());
    }
    assert_eq!(ended(child).code(), Some(0), "a child listens");
    assert_eq!(get(address, "/memory.json").0, 200);
    println!("as expected");
}

fn is_listening(descriptor: libc::c_int) -> bool {
    let (mut listens, mut length): (libc::c_int, libc::socklen_t) = (0, 4);
    // SAFETY: the places are there, and as large as that. It is no socket of anybody's if this fails.
    let found = unsafe {
        let place = (&raw mut listens).cast();
        libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, place, &raw mut length)
    };
    found == 0 && listens != 0
}

fn profiles(address: SocketAddr) {
    let (status, _, body) = get(address, "/profile.json?service=kept&functions=own");
    if !cfg!(feature = "profile") {
        assert_eq!(status, 503);
        return;
    }
    let tree: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &tree["nodes"][0]["bytes"]), (200, &100_000.into()), "{tree}");
    let nodes = tree["nodes"].as_array().unwrap();
    let own = nodes.iter().filter(|node| node["own"] == true && node["bytes"] == 100_000);
    assert!(own.count() > 0, "{tree}");
    for (target, expected) in [
        ("/profile.json", 200),
        ("/profile.json?service=nobody", 404),
        ("/profile.json?service=%FF", 400),
        ("/profile.json?functions=some", 400),
        ("/debug/pprof/heap?seconds=1", 400),
    ] {
        assert_eq!(get(address, target).0, expected, "{target}");
    }
    for name in ["heap", "allocs"] {
        let (status, _, body) = get(address, &format!("/debug/pprof/{name}"));
        assert_eq!((status, &body[..2]), (200, &b"\x1f\x8b"[..]), "{name} is no gzip");
    }
}

pub fn silent() {
    let address = report::serve("127.0.0.1:0").unwrap();
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(connection.read(&mut [0; 10]).unwrap(), 0);
    println!("as expected");
}
