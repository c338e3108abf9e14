//! Processes that have a socket of dogtag's, and what they say. The library's `report::socket` has the
//! other side, and the protocol.

use crate::failure::{Context, Failure};
use crate::figures::Figures;
use crate::reports::Report;
use crate::size::printable;
use dogtag::Balance;
use serde::Deserialize;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What begins each line of the protocol that is spoken here.
const VERSION: &str = "dogtag/1";

/// The longest answer that is read.
const MOST_BYTES: u64 = 1 << 30;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// For a heap profile, names are looked up.
const LONG_PATIENCE: Duration = Duration::from_secs(120);

/// A connection to a process.
#[derive(Debug)]
pub struct Process {
    stream: UnixStream,
    pub pid: u32,
}

/// What a process says of itself.
#[derive(Debug, Deserialize)]
pub struct Hello {
    pub program: String,
    pub is_profiled: bool,
}

impl Process {
    /// Connects to a process.
    pub fn connect(pid: u32) -> Result<Self, Failure> {
        let prefix = format!("dogtag-{pid}-");
        // In containers, processes have other numbers for themselves.
        let (own, others): (Vec<String>, Vec<String>) =
            names()?.into_iter().partition(|name| name.starts_with(&prefix));
        for name in own.into_iter().chain(others) {
            if let Some(process) = Self::open(&name).filter(|process| process.pid == pid) {
                return Ok(process);
            }
        }
        Err(Failure::new(why_not(pid)))
    }

    /// Connects to all processes of the user, or for root, of all users.
    pub fn all() -> Result<Vec<Self>, Failure> {
        let mut found: Vec<Self> = names()?.iter().filter_map(|name| Self::open(name)).collect();
        found.sort_by_key(|process| process.pid);
        found.dedup_by_key(|process| process.pid);
        Ok(found)
    }

    /// Returns that process, or the only one that there is.
    pub fn chosen(pid: Option<u32>) -> Result<Self, Failure> {
        if let Some(pid) = pid {
            return Self::connect(pid);
        }
        let mut found = Self::all()?;
        match (found.len(), found.pop()) {
            (1, Some(process)) => Ok(process),
            (0, _) => Err(Failure::new(NONE)),
            _ => Err(Failure::new("there are several processes: say which; dogtag top lists them")),
        }
    }

    /// `None` where nobody listens, or somebody else does.
    fn open(name: &str) -> Option<Self> {
        let stream = connect(name).ok()?;
        let peer = peer(&stream).ok()?;
        // SAFETY: asks for a number.
        let user = unsafe { libc::geteuid() };
        let is_own = peer.uid == user || user == 0;
        let pid = u32::try_from(peer.pid).ok().filter(|pid| *pid > 0 && is_own)?;
        Some(Self { stream, pid })
    }

    /// Makes a connection of what is one already.
    #[cfg(test)]
    pub fn of(stream: UnixStream) -> Self {
        Self { stream, pid: std::process::id() }
    }

    pub fn hello(&mut self) -> Result<Hello, Failure> {
        self.json("hello")
    }

    pub fn balance(&mut self) -> Result<Balance, Failure> {
        self.json("balance")
    }

    pub fn figures(&mut self) -> Result<Figures, Failure> {
        self.figures_by("figures")
    }

    /// Returns the figures of the services with slots from one to the one before another, and of [as
    /// many](held) others as a request holds. Others may be among them.
    pub fn part(&mut self, first: u32, end: u32, others: &[u32]) -> Result<Figures, Failure> {
        self.figures_by(&part(first, end, others))
    }

    fn figures_by(&mut self, request: &str) -> Result<Figures, Failure> {
        let body = self.ask(request, PATIENCE)?;
        Figures::parse(&body).ok_or_else(|| Failure::new(format!("{} is cut off", self.what("figures"))))
    }

    pub fn report(&mut self) -> Result<Report, Failure> {
        let body = self.ask("report", PATIENCE)?;
        let line = str::from_utf8(&body).context(self.what("report"))?;
        Report::parse(line).context(self.what("report"))
    }

    /// Returns a heap profile as pprof has it.
    pub fn heap(&mut self) -> Result<Vec<u8>, Failure> {
        self.ask("heap", LONG_PATIENCE)
    }

    /// Starts the profiler, and returns whether it was off before.
    pub fn sample(&mut self, interval: &str) -> Result<bool, Failure> {
        Ok(self.ask(&format!("sample {interval}"), PATIENCE)? == b"on")
    }

    /// Stops the profiler.
    pub fn stop(&mut self) -> Result<(), Failure> {
        self.ask("stop", PATIENCE).map(drop)
    }

    /// Whether it has not ended.
    pub fn is_there(&self) -> bool {
        Path::new(&format!("/proc/{}", self.pid)).exists() && state(self.pid) != Some('Z')
    }

    fn what(&self, word: &str) -> String {
        format!("what process {} answers to {word}", self.pid)
    }

    fn json<T: for<'a> Deserialize<'a>>(&mut self, word: &str) -> Result<T, Failure> {
        let body = self.ask(word, PATIENCE)?;
        serde_json::from_slice(&body).context(self.what(word))
    }

    fn ask(&mut self, request: &str, patience: Duration) -> Result<Vec<u8>, Failure> {
        let exchanged = self.exchange(request, patience).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::new(match state(self.pid) {
                Some('T' | 't') => format!("process {} is stopped", self.pid),
                _ => format!("process {} does not answer", self.pid),
            }),
            _ if !self.is_there() => Failure::new(format!("process {} has ended", self.pid)),
            ErrorKind::InvalidData => {
                Failure::new(format!("process {} does not speak {VERSION}: {error}", self.pid))
            }
            _ => Failure::new(format!("process {} has closed the connection: {error}", self.pid)),
        })?;
        let (version, state, body) = exchanged;
        if version != VERSION {
            return Err(Failure::new(format!(
                "process {} speaks {}, and this dogtag {VERSION}: use the one of the process's version",
                self.pid,
                printable(&version, 40)
            )));
        }
        match state.as_str() {
            "ok" => Ok(body),
            _ => {
                let why = printable(&String::from_utf8_lossy(&body), 300);
                Err(Failure::new(format!("process {}: {why}", self.pid)))
            }
        }
    }

    /// Sends a request, and returns the version, the state and the body of the answer.
    fn exchange(&mut self, request: &str, patience: Duration) -> io::Result<(String, String, Vec<u8>)> {
        let no_answer = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        let mut timed = Timed { stream: &self.stream, until: Instant::now() + patience };
        timed.write_all(format!("{VERSION} {request}\n").as_bytes())?;
        let mut reader = BufReader::new(timed);
        let mut line = Vec::new();
        reader.by_ref().take(100).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(if line.len() == 99 {
                no_answer("its answer has no length")
            } else {
                ErrorKind::UnexpectedEof.into()
            });
        }
        let line = String::from_utf8(line).map_err(|_| no_answer("its answer is no text"))?;
        let [version, state, length] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(no_answer("its answer is of another form"));
        };
        if version != VERSION && version.starts_with("dogtag/") {
            return Ok((version.to_owned(), state.to_owned(), Vec::new()));
        }
        let length = length.parse().ok().filter(|length| version == VERSION && *length <= MOST_BYTES);
        let length: u64 = length.ok_or_else(|| no_answer("its answer is of another form"))?;
        let mut body = Vec::new();
        reader.by_ref().take(length).read_to_end(&mut body)?;
        if body.len() as u64 != length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if !reader.buffer().is_empty() {
            return Err(no_answer("it says more than was asked"));
        }
        Ok((version.to_owned(), state.to_owned(), body))
    }
}

/// A connection until a certain time, however often something comes.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, place: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(place)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The most bytes of a request, with the version before it.
const REQUEST: usize = 256;

/// How many of some slots a request holds beside those from one to the one before another.
pub fn held(first: u32, end: u32, others: &[u32]) -> usize {
    let mut length = VERSION.len() + 1 + part(first, end, &[]).len();
    let fits = |slot: &&u32| {
        length += 1 + slot.to_string().len();
        length <= REQUEST
    };
    others.iter().take_while(fits).count()
}

fn part(first: u32, end: u32, others: &[u32]) -> String {
    let others: String = others.iter().map(|slot| format!(",{slot}")).collect();
    format!("part {first}-{end}{others}")
}

/// What is said where there is no process.
pub const NONE: &str = "there is no process to look at: dogtag run starts one, and in others \
                        DOGTAG_REPORT=socket lets dogtag look";

/// The abstract names at which processes listen.
fn names() -> Result<Vec<String>, Failure> {
    let table = fs::read("/proc/net/unix").context("/proc/net/unix")?;
    Ok(listeners(&String::from_utf8_lossy(&table)))
}

fn listeners(table: &str) -> Vec<String> {
    const LISTENS: &str = "00010000";

    let name = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, _, LISTENS, _, _, _, name] = fields[..] else { return None };
        name.strip_prefix('@').filter(|name| name.starts_with("dogtag-")).map(str::to_owned)
    };
    table.lines().filter_map(name).collect()
}

/// Connects to an abstract name, without waiting: anybody can have taken it, and accept nothing.
fn connect(name: &str) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: makes a descriptor, which is nobody else's.
    let stream = unsafe {
        match libc::socket(libc::AF_UNIX, kind, 0) {
            -1 => return Err(io::Error::last_os_error()),
            number => UnixStream::from_raw_fd(number),
        }
    };
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // An abstract name begins with a zero.
    let place = address.sun_path.get_mut(1..=name.len()).ok_or(ErrorKind::InvalidInput)?;
    place.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte as libc::c_char);
    let length = mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: the address is there, and has that length.
    let result =
        unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), length as libc::socklen_t) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Who listens at the other side.
fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut found = MaybeUninit::<libc::ucred>::uninit();
    let mut length = mem::size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the place is valid for a result of that length, and filled if the call returns 0.
    unsafe {
        let place = found.as_mut_ptr().cast();
        match libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &mut length) {
            0 => Ok(found.assume_init()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Says why there is no connection to a process.
fn why_not(pid: u32) -> String {
    // SAFETY: asks for a number.
    let user = unsafe { libc::geteuid() };
    match fs::metadata(format!("/proc/{pid}")) {
        Err(_) => format!("there is no process {pid}"),
        Ok(found) if user != 0 && found.uid() != user => {
            format!(
                "process {pid} is another user's ({}): only that one and root may look at it",
                found.uid()
            )
        }
        Ok(_) => format!(
            "process {pid} does not let dogtag look: start it by dogtag run, or with DOGTAG_REPORT=socket where it \
             has dogtag inside"
        ),
    }
}

/// The letter by which the system tells what a process does.
fn state(pid: u32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have anything in it.
    text.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::thread;

    /// A process that answers whatever it is asked with these bytes, and closes the connection.
    fn answering(bytes: &'static [u8]) -> Process {
        let (own, mut other) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut request = [0; 64];
            let _ = other.read(&mut request);
            let _ = other.write_all(bytes);
        });
        Process::of(own)
    }

    #[test]
    fn what_is_answered_is_read_or_told() {
        assert_eq!(answering(b"dogtag/1 ok 003\nabc").heap().unwrap(), b"abc");
        for (answer, expected) in [
            (&b"dogtag/1 refused 3\nwhy"[..], ": why"),
            (b"dogtag/1 refused 7\n\x1b[2J\xff\r\n", ": \\u{1b}[2J\u{fffd}\\r\\n"),
            (b"dogtag/2 ok 3\nabc", "speaks dogtag/2, and this dogtag dogtag/1"),
            (b"dogtag/\x1b[2J ok 3\nabc", "speaks dogtag/\\u{1b}[2J, and this dogtag dogtag/1"),
            (b"dogtag/2 refused 3\nwhy", "speaks dogtag/2, and this dogtag dogtag/1"),
            (b"dogtag/1 ok 4\nabc", "has closed the connection"),
            (b"dogtag/1 ok", "has closed the connection"),
            (b"", "has closed the connection"),
            (b"dogtag/1 ok x\n", "does not speak dogtag/1"),
            (b"dogtag/1 ok 99999999999999\n", "does not speak dogtag/1"),
            (b"HTTP/1.1 400 Bad Request\r\n", "does not speak dogtag/1"),
            (&[b'a'; 200], "does not speak dogtag/1"),
            (b"\xff\n", "does not speak dogtag/1"),
            (b"dogtag/1 ok 3\nabcd", "does not speak dogtag/1"),
        ] {
            let failure = answering(answer).heap().unwrap_err();
            assert!(failure.message.contains(expected) && failure.status == 2, "{answer:?}: {failure}");
        }
        assert!(answering(b"dogtag/1 ok 2\n{}").hello().unwrap_err().message.contains("missing field"));
        assert!(answering(b"dogtag/1 ok 2\n{}").figures().unwrap_err().message.contains("cut off"));
    }

    #[test]
    fn who_answers_bit_by_bit_is_waited_for_no_longer() {
        for answer in
            [&b"dogtag/1 ok 00000000000000000003\nabc"[..], b"dogtag/1 ok 30\nbit by bit, and with no end..."]
        {
            let (own, mut other) = UnixStream::pair().unwrap();
            let answering = thread::spawn(move || {
                let mut request = [0; 64];
                let _ = other.read(&mut request);
                for byte in answer {
                    thread::sleep(Duration::from_millis(20));
                    if other.write_all(&[*byte]).is_err() {
                        return;
                    }
                }
            });
            let failure = Process::of(own).ask("hello", Duration::from_millis(300)).unwrap_err();
            assert!(failure.message.ends_with("does not answer"), "{failure}");
            answering.join().unwrap();
        }
    }

    #[test]
    fn requests_are_as_long_as_they_may_be() {
        assert_eq!(part(0, 64, &[7, 100]), "part 0-64,7,100");
        let others = [4_000_000_000; 100];
        let count = held(0, 64, &others);
        let length = |count| part(0, 64, &others[..count]).len() + VERSION.len() + 1;
        assert_eq!((count, length(count)), (21, 249));
        assert!(length(count + 1) > REQUEST);
        assert_eq!(held(0, 64, &[7, 100]), 2);
    }

    #[test]
    fn only_who_listens_is_found() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 100 @dogtag-12-00ff\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 101 @dogtag-12-00ff\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 102 /run/dogtag-13-0\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 103\n";
        assert_eq!(listeners(table), ["dogtag-12-00ff"]);
    }

    #[test]
    fn who_accepts_nothing_keeps_nobody_waiting() {
        let name = format!("accepts-nothing-{}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        // SAFETY: has fewer wait at the socket, which is open.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
        let connections: Vec<Process> = (0..4).map_while(|_| Process::open(&name)).collect();
        assert!((1..4).contains(&connections.len()), "{connections:?}");
        assert!(connections.iter().all(|process| process.pid == std::process::id()));
        // What is asked is waited for again.
        let (mut stream, _) = listener.accept().unwrap();
        let mut first = connections.into_iter().next().unwrap();
        let answer = thread::spawn(move || first.heap());
        stream.read_exact(&mut [0; 14]).unwrap();
        stream.write_all(b"dogtag/1 ok 1\na").unwrap();
        assert_eq!(answer.join().unwrap().unwrap(), b"a");
        drop(listener);
        assert!(Process::open(&name).is_none());
        assert!(Process::open(&"x".repeat(200)).is_none());
    }

    #[test]
    fn processes_that_cannot_be_seen_are_told_apart() {
        assert_eq!(why_not(u32::MAX), format!("there is no process {}", u32::MAX));
        assert!(why_not(std::process::id()).contains("DOGTAG_REPORT=socket"));
        assert_eq!(state(std::process::id()).map(|state| "RS".contains(state)), Some(true));
    }
}
