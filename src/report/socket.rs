//! A socket by which the same user's tools look at the process while it runs: `dogtag top`, `dogtag
//! profile`.
//!
//! It has an abstract name, `dogtag-PID-` and a number that nobody knows before, so that nothing is left
//! of it when the process ends, however it ends. Tools find it in `/proc/net/unix`. One thread of dogtag's
//! own waits at it, and does nothing until somebody asks; answers are complete before they are sent, so
//! nothing waits for a slow reader.

mod answer;
mod descriptor;

use super::connections::{self, Connections};
use super::error::ReportError;
use super::reporter;
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::Scope;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sys::{self, fork};
use answer::answer_to;
use descriptor::Descriptor;
use std::ffi::{c_int, c_short};
use std::io::{self, ErrorKind};
use std::os::fd::IntoRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Whether the process has a socket, and so its children.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// Opens the socket, if there is none.
pub(super) fn start() -> Result<(), ReportError> {
    static FORKS_ARE_HEEDED: AtomicBool = AtomicBool::new(false);

    if IS_ON.swap(true, Ordering::SeqCst) {
        return Err(ReportError::Twice);
    }
    if !FORKS_ARE_HEEDED.swap(true, Ordering::Relaxed) {
        // In a child other locks are released before the thread begins.
        fork::prepare();
        sys::at_fork_in_child(begin_in_child);
    }
    let begun = begin();
    IS_ON.store(begun.is_ok(), Ordering::SeqCst);
    begun
}

fn begin() -> Result<(), ReportError> {
    let listener = listen().map_err(ReportError::Socket)?;
    let is_begun = reporter::spawn(move || {
        let _scope = Scope::enter(&UNATTRIBUTED);
        serve(listener);
    });
    if is_begun { Ok(()) } else { Err(ReportError::NoMemory) }
}

/// Descriptors of this process that a forked child has copies of, one more than are accepted at once.
static OPEN: [Open; 2 + connections::MOST] =
    [const { Open { number: AtomicU32::new(0), inode: AtomicU64::new(0) } }; 2 + connections::MOST];

struct Open {
    /// Its number, or 0, which is standard input's.
    number: AtomicU32,
    /// What tells that it is still the socket's.
    inode: AtomicU64,
}

extern "C" fn begin_in_child() {
    for place in &OPEN {
        let number = place.number.swap(0, Ordering::SeqCst).cast_signed();
        if number != 0 && descriptor::is_of(number, place.inode.load(Ordering::SeqCst)) {
            // SAFETY: the descriptor is the socket's, whose thread is not in this process.
            unsafe { libc::close(number) };
        }
    }
    if IS_ON.load(Ordering::SeqCst) {
        // A child that may not have one, of a sandbox or without memory, goes without.
        IS_ON.store(begin().is_ok(), Ordering::SeqCst);
    }
}

/// Notes a descriptor, for forks. Only the socket's one thread does, after the one that has begun it.
fn note(number: u32, inode: u64) {
    if let Some(place) = OPEN.iter().find(|place| place.number.load(Ordering::SeqCst) == 0) {
        place.inode.store(inode, Ordering::SeqCst);
        place.number.store(number, Ordering::SeqCst);
    }
}

fn forget(number: u32) {
    if let Some(place) = OPEN.iter().find(|place| place.number.load(Ordering::SeqCst) == number) {
        place.number.store(0, Ordering::SeqCst);
    }
}

fn listen() -> io::Result<Descriptor> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    // Whoever has taken a name takes none of the next.
    let number = now ^ (u64::from(NUMBER.fetch_add(1, Ordering::Relaxed)) << 56);
    let name = format!("dogtag-{}-{number:016x}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    Descriptor::keep(listener.into_raw_fd())
}

/// Bytes of a request, its end not counted.
const MOST_BYTES: usize = 256;

/// For an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers whoever asks, for as long as there is a socket or one to be had.
fn serve(mut listener: Descriptor) {
    let mut connections = Connections::new();
    loop {
        connections.wait(listener.number());
        if listener.get().is_none() {
            // The program has closed all descriptors, as daemons do when they begin.
            match listen() {
                Ok(new) => listener = new,
                Err(_) => return,
            }
        }
        connections.accept(|| {
            let descriptor = listener.accept()?;
            Ok(descriptor.is_of_the_same_user().then(|| Connection::of(descriptor)))
        });
        connections.go_on();
    }
}

struct Connection {
    descriptor: Descriptor,
    request: Vec<u8>,
    /// What is to be sent, and how much of it has been.
    answer: Vec<u8>,
    sent: usize,
    until: Option<Instant>,
}

impl connections::Connection for Connection {
    fn number(&self) -> c_int {
        self.descriptor.number()
    }

    fn events(&self) -> c_short {
        if self.answer.is_empty() { libc::POLLIN } else { libc::POLLOUT }
    }

    fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Sends what is left to be sent, or reads what has come and answers it.
    fn go_on(&mut self) -> bool {
        loop {
            if self.answer.is_empty() {
                let Some(end) = self.request.iter().position(|byte| *byte == b'\n') else {
                    match self.read() {
                        Ok(0) => return false,
                        Ok(_) if self.is_too_long() => return false,
                        Ok(_) => continue,
                        Err(error) => return error.kind() == ErrorKind::WouldBlock,
                    }
                };
                let request: Vec<u8> = self.request.drain(..=end).collect();
                answer_to(&request[..end], &mut self.answer);
                self.until = Some(Instant::now() + PATIENCE);
            }
            match self.descriptor.send(&self.answer[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            if self.sent == self.answer.len() {
                // Its place is kept: the next answer is as long, mostly.
                self.answer.clear();
                (self.sent, self.until) = (0, None);
            }
        }
    }
}

impl Connection {
    const fn of(descriptor: Descriptor) -> Self {
        Self { descriptor, request: Vec::new(), answer: Vec::new(), sent: 0, until: None }
    }

    /// Whether the next request has no end where it must have one. Behind that others may follow, as many
    /// as came with it.
    fn is_too_long(&self) -> bool {
        self.request.get(..=MOST_BYTES).is_some_and(|start| !start.contains(&b'\n'))
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut piece = [0; MOST_BYTES];
        let length = self.descriptor.receive(&mut piece)?;
        self.request.extend_from_slice(&piece[..length]);
        Ok(length)
    }
}
