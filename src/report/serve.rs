//! A small server for the page: one thread, GET only, a few connections with bounded requests.

use super::connections::{self, Connections};
use super::error::ReportError;
use super::page::{Answer, get};
use super::reporter;
use crate::contained::contain;
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::Scope;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::sys::{self, fork};
use std::ffi::c_int;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Serves the [`page`](super::page()), its figures and the profiles on an address of this machine alone, such
/// as `127.0.0.1:0` for any free port, and returns the address.
///
/// One thread of dogtag's own answers what [`get`] does, one request after the other, until the program ends;
/// forked children do not. It answers requests with the method GET, of 8 KiB at most that come within five
/// seconds, and closes the connection. Requests by another host name than `localhost` are refused, so that no
/// page from elsewhere reads the figures by way of a browser.
///
/// Every user of the machine may connect. Where that is too many, serve [`get`] behind what the program has for
/// that.
///
/// # Errors
///
/// Returns [`ReportError::NotLoopback`] for an address that other machines reach,
/// [`ReportError::Address`] if the address cannot be had, and [`ReportError::Twice`] if there is such a
/// server.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::report::ReportError> {
/// let address = dogtag::report::serve("127.0.0.1:0")?;
/// println!("who holds the memory: http://{address}/");
/// # Ok(())
/// # }
/// ```
pub fn serve(address: impl ToSocketAddrs) -> Result<SocketAddr, ReportError> {
    serve_on(address, true)
}

/// Serves what [`serve`] does on an address that other machines may reach, such as `0.0.0.0:9000`: to
/// whoever asks, unencrypted.
///
/// # Errors
///
/// Those of [`serve`], but for the kind of address.
///
/// ```no_run
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::report::ReportError> {
/// // In a container, whose network is nobody else's.
/// dogtag::report::serve_to_anyone("0.0.0.0:9000")?;
/// # Ok(())
/// # }
/// ```
pub fn serve_to_anyone(address: impl ToSocketAddrs) -> Result<SocketAddr, ReportError> {
    serve_on(address, false)
}

fn serve_on(address: impl ToSocketAddrs, only_local: bool) -> Result<SocketAddr, ReportError> {
    static IS_ON: AtomicBool = AtomicBool::new(false);

    let _scope = Scope::enter(&UNATTRIBUTED);
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(ReportError::Address)?.collect();
    if only_local && let Some(address) = addresses.iter().copied().find(|address| !is_local(address.ip())) {
        return Err(ReportError::NotLoopback { address });
    }
    if IS_ON.swap(true, Ordering::SeqCst) {
        return Err(ReportError::Twice);
    }
    let begun = begin(&addresses, only_local);
    IS_ON.store(begun.is_ok(), Ordering::SeqCst);
    begun
}

fn begin(addresses: &[SocketAddr], only_local: bool) -> Result<SocketAddr, ReportError> {
    let listener = TcpListener::bind(addresses).map_err(ReportError::Address)?;
    listener.set_nonblocking(true).map_err(ReportError::Address)?;
    let address = listener.local_addr().map_err(ReportError::Address)?;
    let descriptor = listener.as_raw_fd();
    let is_begun = reporter::spawn(move || {
        let _scope = Scope::enter(&UNATTRIBUTED);
        let mut connections = Connections::new();
        loop {
            connections.wait(descriptor);
            connections.accept(|| {
                let (stream, _) = listener.accept()?;
                let is_ready = stream.set_nonblocking(true).is_ok();
                Ok(is_ready.then(|| Connection::of(stream, only_local)))
            });
            connections.go_on();
        }
    });
    if !is_begun {
        return Err(ReportError::NoMemory);
    }
    // A child has no thread that would answer, so whoever connects shall not wait there.
    if LISTENER.swap(descriptor.cast_unsigned(), Ordering::SeqCst) == NONE {
        fork::prepare();
        sys::at_fork_in_child(close_in_child);
    }
    Ok(address)
}

/// The listener's descriptor.
static LISTENER: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = u32::MAX;

extern "C" fn close_in_child() {
    let descriptor = LISTENER.swap(NONE, Ordering::SeqCst);
    if descriptor != NONE {
        // SAFETY: the descriptor is the server's, whose thread is not in this process.
        unsafe { libc::close(descriptor.cast_signed()) };
    }
}

/// Whether only this machine reaches an address.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.to_ipv4_mapped().is_some_and(|address| address.is_loopback())
        }
    }
}

/// One whose request is not complete yet: browsers open some before they need them.
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    until: Instant,
    only_local: bool,
}

/// Bytes of a request's line and headers.
const MOST_BYTES: usize = 8 << 10;

/// For a request, and for an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

impl connections::Connection for Connection {
    fn number(&self) -> c_int {
        self.stream.as_raw_fd()
    }

    fn until(&self) -> Option<Instant> {
        Some(self.until)
    }

    /// Reads what has come, and answers a request that is complete.
    fn go_on(&mut self) -> bool {
        let state = self.read();
        if let State::Complete | State::TooLong = state {
            let answer = match state {
                State::TooLong => Answer::refusal(431, "a request has 8 KiB at most"),
                _ => contain(|| answer_to(&self.request, self.only_local))
                    .unwrap_or_else(|| Answer::refusal(500, "the answer failed")),
            };
            // Who does not take it, does without.
            let _ = self.send(&answer);
        }
        matches!(state, State::Incomplete)
    }
}

enum State {
    Incomplete,
    Complete,
    TooLong,
    /// The other side has gone.
    Closed,
}

impl Connection {
    fn of(stream: TcpStream, only_local: bool) -> Self {
        Self { stream, request: Vec::new(), until: Instant::now() + PATIENCE, only_local }
    }

    fn read(&mut self) -> State {
        let mut piece = [0; 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return State::Closed,
                Ok(length) => self.request.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return State::Incomplete,
                Err(_) => return State::Closed,
            }
            if head(&self.request).is_some() {
                return State::Complete;
            }
            if self.request.len() > MOST_BYTES {
                return State::TooLong;
            }
        }
    }

    fn send(&mut self, answer: &Answer) -> io::Result<()> {
        let Answer { status, content_type, body } = answer;
        let reason = match status {
            200 => "OK",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let allow = if *status == 405 { "Allow: GET\r\n" } else { "" };
        let length = body.len();
        let mut bytes = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{allow}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; \
             style-src 'unsafe-inline'; connect-src 'self'; img-src data:\r\nConnection: close\r\n\r\n"
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        self.stream.set_nonblocking(false)?;
        let until = Instant::now() + PATIENCE;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_write_timeout(Some(left))?;
            match self.stream.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // What else has come, such as a body, is taken: to close with it unread would take the answer back.
        self.stream.shutdown(std::net::Shutdown::Write)?;
        self.stream.set_nonblocking(true)?;
        let mut piece = [0; 1024];
        (0..64).take_while(|_| self.stream.read(&mut piece).is_ok_and(|length| length > 0)).for_each(drop);
        Ok(())
    }
}

/// A request's line and headers, if they are complete.
fn head(request: &[u8]) -> Option<&[u8]> {
    let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    Some(&request[..end])
}

fn answer_to(request: &[u8], only_local: bool) -> Answer {
    let bad = || Answer::refusal(400, "that is no HTTP request");
    let Some(Ok(head)) = head(request).map(str::from_utf8) else { return bad() };
    let mut lines = head.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = line[..] else { return bad() };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return bad();
    }
    if method != "GET" {
        return Answer::refusal(405, "there is only GET");
    }
    let mut hosts =
        lines.filter_map(|line| line.split_once(':')).filter(|(name, _)| name.eq_ignore_ascii_case("host"));
    if only_local && !hosts.all(|(_, host)| is_own_name(host.trim())) {
        return Answer::refusal(
            403,
            "this page is for this machine: ask for it by the name localhost, or 127.0.0.1",
        );
    }
    get(target)
}

/// Whether a host, with or without its port, is this machine by a name that nobody else can give.
fn is_own_name(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return is_local(address.ip());
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(request: &str, only_local: bool) -> u16 {
        answer_to(request.as_bytes(), only_local).status
    }

    #[test]
    fn requests_are_answered_or_refused() {
        for (request, expected) in [
            ("GET /memory.json HTTP/1.1\r\nHost: localhost:3000\r\n\r\n", 200),
            ("GET /memory.json HTTP/1.0\r\n\r\n", 200),
            ("GET /nothing HTTP/1.1\r\n\r\n", 404),
            ("HEAD / HTTP/1.1\r\n\r\n", 405),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 405),
            ("get / HTTP/1.1\r\n\r\n", 405),
            ("GET  / HTTP/1.1\r\n\r\n", 400),
            ("GET http://localhost/ HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/2\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("\r\n\r\n", 400),
            ("\u{0}\r\n\r\n", 400),
        ] {
            assert_eq!(status(request, true), expected, "{request:?}");
        }
        assert_eq!(answer_to(b"GET /\xFF HTTP/1.1\r\n\r\n", true).status, 400);
    }

    #[test]
    fn other_names_of_this_machine_are_refused() {
        let of = |host: &str| format!("GET /memory.json HTTP/1.1\r\nA: b\r\nhOST:{host}\r\n\r\n");
        for host in ["localhost", " LOCALHOST:80 ", "127.0.0.1", "127.1.2.3:9", "[::1]:80", "[::1]"] {
            assert_eq!(status(&of(host), true), 200, "{host}");
        }
        for host in
            ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1", "[::2]:80", "", ":80"]
        {
            assert_eq!(status(&of(host), true), 403, "{host}");
            assert_eq!(status(&of(host), false), 200, "{host}");
        }
        let both = "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n";
        assert_eq!(status(both, true), 403);
    }
}
