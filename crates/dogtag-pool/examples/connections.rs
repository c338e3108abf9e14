//! A server with a pool for each connection, and below it one for each request.
//!
//! `cargo run --release --example connections [-- --connections N]`
//!
//! Two listeners on loopback, each a service: `files` answers a name with what the file
//! holds, `words` a line with its words in order. All that a request needs, its open file
//! included, belongs to its pool, and is gone when that is cleared. Clients in the same program
//! make N connections (default: 100000). Most of them ask once and are reset; others ask ten
//! times and end in order. They check each byte that they get.
//!
//! Prints who holds what after a tenth of the connections and at the end, while none is open.
//! Exit status 1 if an answer was wrong, a file was not closed, or more memory is held or more
//! descriptors are open at the end than after that tenth; 2 for wrong arguments.

use allocator_api2::vec::Vec as PoolVec;
use dogtag::{Dogtag, Service};
use dogtag_pool::Pool;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};
use std::{env, iter};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// Threads of each listener, and of its clients.
const WORKERS: usize = 2;
const CLIENTS: usize = 2;
/// Nothing takes so long unless something is wrong, on a busy machine, too.
const TIMEOUT: Duration = Duration::from_secs(300);
/// What may become resident in between: the backend gives pages back when it sees fit.
const RESIDENT_SLACK: u64 = 8 << 20;

/// Names and sizes: nothing, what fits into a pool's first block, what takes another block, and what
/// is large enough to be an allocation of its own.
const FILES: [(&str, usize); 4] = [("empty", 0), ("note", 200), ("page", 3_900), ("picture", 40_000)];
/// How many words the lines have.
const LINES: [usize; 4] = [1, 10, 300, 2_000];

static CONNECTIONS_OPENED: AtomicU64 = AtomicU64::new(0);
static CONNECTIONS_CLOSED: AtomicU64 = AtomicU64::new(0);
static REQUESTS_SERVED: AtomicU64 = AtomicU64::new(0);
static FILES_OPENED: AtomicU64 = AtomicU64::new(0);
static FILES_CLOSED: AtomicU64 = AtomicU64::new(0);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let Some(connections) = connections(env::args().skip(1)) else {
        eprintln!("usage: connections [--connections NUMBER]");
        return ExitCode::from(2);
    };
    match run(connections) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("connections: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn connections(mut arguments: impl Iterator<Item = String>) -> Option<usize> {
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, ..) => Some(100_000),
        (Some("--connections"), Some(number), None) => number.parse().ok(),
        _ => None,
    }
}

fn run(connections: usize) -> Result<()> {
    let directory = env::temp_dir().join(format!("dogtag-connections-{}", process::id()));
    fs::create_dir(&directory)?;
    // Whichever way this function is left, the files are removed.
    let server = Pool::builder().name("server").build()?;
    let _ = server.cleanup(|| fs::remove_dir_all(&directory).expect("nobody else removes them"));

    let listeners = [
        Listener::bind("files", Job::ReadFiles(&directory), write_files(&directory)?)?,
        Listener::bind("words", Job::SortWords, make_lines())?,
    ];
    let is_over = AtomicBool::new(false);
    thread::scope(|threads| {
        let mut workers = Vec::new();
        for listener in listeners.iter().flat_map(|listener| iter::repeat_n(listener, WORKERS)) {
            workers.push((listener, threads.spawn(|| work(listener, &is_over))));
        }
        let mut outcome = load_and_compare(&listeners, connections);
        is_over.store(true, Ordering::Relaxed);
        for (listener, worker) in workers {
            while !worker.is_finished() {
                // It waits for somebody to connect. If it has just ended, nobody has to.
                let _ = TcpStream::connect_timeout(&listener.address, TIMEOUT);
                thread::sleep(Duration::from_millis(1));
            }
            // What ended a worker early is the cause of what its clients complain about.
            outcome = join(worker).and(outcome);
        }
        outcome
    })?;

    let left: u64 = listeners.iter().map(|listener| listener.service.usage().bytes()).sum();
    if left != 0 {
        return Err(format!("the workers have ended, but {left} bytes of theirs are left").into());
    }
    println!("The services' memory is flat, and all of it was freed when the workers ended.");
    Ok(())
}

fn load_and_compare(listeners: &[Listener], connections: usize) -> Result<()> {
    listeners.iter().try_for_each(visit_every_worker)?;
    load(listeners, connections / 10)?;
    let before = figures_at_rest(listeners)?;
    load(listeners, connections - connections / 10)?;
    let after = figures_at_rest(listeners)?;
    for ((what, before, slack), (_, after, _)) in before.iter().zip(&after) {
        if *after > before.saturating_add(*slack) {
            return Err(format!("{what}: {before} after the first tenth, {after} at the end").into());
        }
    }
    Ok(())
}

fn join(thread: ScopedJoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
}

/// Where clients connect to, and what is done for them.
struct Listener<'env> {
    service: Service,
    socket: TcpListener,
    address: SocketAddr,
    job: Job<'env>,
    exchanges: Vec<Exchange>,
}

enum Job<'env> {
    ReadFiles(&'env Path),
    SortWords,
}

/// What clients ask for, and what they are to get.
type Exchange = (String, Vec<u8>);

impl<'env> Listener<'env> {
    fn bind(name: &str, job: Job<'env>, exchanges: Vec<Exchange>) -> Result<Self> {
        let service = Service::register(name)?;
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(Self { service, address: socket.local_addr()?, socket, job, exchanges })
    }
}

/// Serves one connection after the other. The worker's pool lasts as long as the worker, and
/// what the pools below it have had, the next ones get.
///
/// The thread never enters the service: the pools know whose memory theirs is.
fn work(listener: &Listener, is_over: &AtomicBool) -> Result<()> {
    let worker = Pool::builder().name("worker").service(&listener.service).build()?;
    loop {
        let (stream, peer) = listener.socket.accept()?;
        if is_over.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Err(problem) = serve(listener, &worker, stream, peer) {
            eprintln!("{}: {peer}: {problem}", listener.service.name());
        }
        CONNECTIONS_CLOSED.fetch_add(1, Ordering::Release);
    }
}

/// Who is at the other end of a connection.
struct Peer(SocketAddr);

fn serve(listener: &Listener, worker: &Pool, stream: TcpStream, peer: SocketAddr) -> Result<()> {
    let connection = worker.child();
    connection.set_data(Peer(peer));
    // The socket is the pool's, which closes it.
    let stream = connection.alloc(prepared(stream)?);
    let mut request = connection.child();
    loop {
        // All that is left of the last request ends here.
        request.clear();
        let Some(line) = read_line(stream, &request)? else { return Ok(()) };
        let body = match listener.job {
            Job::ReadFiles(directory) => read_file(&request, directory, line)?,
            Job::SortWords => sort_words(&request, line),
        };
        stream.write_all(header(&connection, &request, body)?.as_bytes())?;
        stream.write_all(body)?;
        REQUESTS_SERVED.fetch_add(1, Ordering::Relaxed);
    }
}

/// The next line, without its end; `None` if the connection has ended.
fn read_line<'pool>(stream: &mut TcpStream, request: &'pool Pool) -> Result<Option<&'pool str>> {
    let mut line = PoolVec::new_in(request);
    // A client waits for its answer, so nothing follows the end of the line.
    while line.last() != Some(&b'\n') {
        let start = line.len();
        line.resize(start + 512, 0);
        let read = match stream.read(&mut line[start..]) {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            outcome => outcome?,
        };
        line.truncate(start + read);
    }
    line.pop();
    Ok(Some(str::from_utf8(line.leak())?))
}

fn read_file<'pool>(request: &'pool Pool, directory: &Path, name: &str) -> Result<&'pool [u8]> {
    // Any other name might lead out of the directory.
    let (name, _) = FILES.iter().find(|(known, _)| *known == name).ok_or("there is no such file")?;
    let path = request.alloc_fmt(format_args!("{}/{name}", directory.display()));
    let file = File::open(path)?;
    FILES_OPENED.fetch_add(1, Ordering::Relaxed);
    // The last one goes first: the file is dropped, which closes it, and then counted.
    let _ = request.cleanup(|| _ = FILES_CLOSED.fetch_add(1, Ordering::Relaxed));
    let file = request.alloc(file);
    let mut content = PoolVec::new_in(request);
    content.resize(usize::try_from(file.metadata()?.len())?, 0);
    file.read_exact(&mut content)?;
    // Nothing leaks: it is the pool's.
    Ok(content.leak())
}

fn sort_words<'pool>(request: &'pool Pool, line: &str) -> &'pool [u8] {
    let mut words = PoolVec::new_in(request);
    words.extend(line.split(' '));
    words.sort_unstable();
    let mut sorted = PoolVec::with_capacity_in(line.len() + 1, request);
    for word in words {
        sorted.extend_from_slice(word.as_bytes());
        sorted.push(b' ');
    }
    sorted.pop();
    sorted.leak()
}

fn header<'pool>(connection: &Pool, request: &'pool Pool, body: &[u8]) -> Result<&'pool str> {
    let Peer(peer) = connection.data().ok_or("this is nobody's connection")?;
    Ok(request.alloc_fmt(format_args!("{} bytes for {peer}\n", body.len())))
}

fn write_files(directory: &Path) -> io::Result<Vec<Exchange>> {
    let write = |(name, size): (&str, usize)| {
        let answer: Vec<u8> = (0..size).map(|place| (place ^ size) as u8).collect();
        fs::write(directory.join(name), &answer)?;
        Ok((format!("{name}\n"), answer))
    };
    FILES.into_iter().map(write).collect()
}

fn make_lines() -> Vec<Exchange> {
    let make = |words: usize| {
        let mut words: Vec<String> = (0..words).map(|word| (word * 7919 % 100_003).to_string()).collect();
        let request = words.join(" ") + "\n";
        words.sort_unstable();
        (request, words.join(" ").into_bytes())
    };
    LINES.into_iter().map(make).collect()
}

/// Neither side waits for more to send, or for ever.
fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Has as many connections at once as there are workers, so that each worker has one, and has
/// had to answer everything before anything is measured.
fn visit_every_worker(listener: &Listener) -> Result<()> {
    let clients: Result<Vec<_>> = (0..WORKERS).map(|_| Client::connect(listener)).collect();
    for client in &mut clients? {
        listener.exchanges.iter().try_for_each(|exchange| client.ask(exchange))?;
    }
    Ok(())
}

/// Has all clients make so many connections in sum, or a few more, so that each makes as many.
fn load(listeners: &[Listener], connections: usize) -> Result<()> {
    let share = connections.div_ceil(CLIENTS * listeners.len());
    thread::scope(|threads| {
        let mut clients = Vec::new();
        for listener in listeners.iter().flat_map(|listener| iter::repeat_n(listener, CLIENTS)) {
            clients.push(threads.spawn(move || make_connections(listener, share)));
        }
        let outcomes: Vec<_> = clients.into_iter().map(join).collect();
        outcomes.into_iter().collect()
    })
}

fn make_connections(listener: &Listener, connections: usize) -> Result<()> {
    let mut exchanges = listener.exchanges.iter().cycle();
    for number in 0..connections {
        let mut client = Client::connect(listener)?;
        let asks_often = number % 10 == 0;
        for exchange in exchanges.by_ref().take(if asks_often { 10 } else { 1 }) {
            client.ask(exchange)?;
        }
        if asks_often {
            client.end_in_order()?;
        }
    }
    Ok(())
}

/// Resets the connection when it is dropped.
struct Client {
    stream: TcpStream,
    address: SocketAddr,
}

impl Client {
    fn connect(listener: &Listener) -> Result<Self> {
        let stream = prepared(TcpStream::connect_timeout(&listener.address, TIMEOUT)?)?;
        CONNECTIONS_OPENED.fetch_add(1, Ordering::Relaxed);
        // An end in order occupies the port for a minute, and there are not that many ports.
        reset_when_closed(&stream)?;
        Ok(Self { address: stream.local_addr()?, stream })
    }

    fn ask(&mut self, (request, answer): &Exchange) -> Result<()> {
        self.stream.write_all(request.as_bytes())?;
        let mut wanted = format!("{} bytes for {}\n", answer.len(), self.address).into_bytes();
        wanted.extend(answer);
        let mut got = vec![0; wanted.len()];
        let request = request.trim_end();
        let broken = |error| format!("there is no whole answer to {request:.40}: {error}");
        self.stream.read_exact(&mut got).map_err(broken)?;
        if got != wanted {
            return Err(format!("the answer to {request:.40} is wrong").into());
        }
        Ok(())
    }

    /// Says that this is all, upon which the other side is to say no more, either.
    fn end_in_order(mut self) -> Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        match self.stream.read(&mut [0])? {
            0 => Ok(()),
            _ => Err("there was more than an answer".into()),
        }
    }
}

fn reset_when_closed(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of_val(&linger) as libc::socklen_t;
    let (socket, option) = (stream.as_raw_fd(), (&raw const linger).cast());
    // SAFETY: the socket is open, and the option is of that type and size.
    let outcome = unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, option, size) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What must not become more, how much it is, and by how much it may.
type Figure = (String, u64, u64);

/// Waits until all connections are closed, and says what there is then.
fn figures_at_rest(listeners: &[Listener]) -> Result<Vec<Figure>> {
    let connections = CONNECTIONS_OPENED.load(Ordering::Relaxed);
    let deadline = Instant::now() + TIMEOUT;
    while CONNECTIONS_CLOSED.load(Ordering::Acquire) < connections {
        if Instant::now() > deadline {
            return Err("workers do not notice that their clients have gone".into());
        }
        thread::sleep(Duration::from_millis(1));
    }

    let snapshot = dogtag::snapshot();
    let live = |Listener { service, .. }: &Listener| -> Figure {
        (format!("live bytes of {}", service.name()), service.usage().bytes(), 0)
    };
    let mut figures: Vec<Figure> = listeners.iter().map(live).collect();
    if let (Some(resident), Ok(descriptors)) = (resident(), fs::read_dir("/proc/self/fd")) {
        // It takes a while to settle, and never does where memory-check keeps what is freed.
        let is_settled = connections >= 1_000 && snapshot.quarantine.is_none();
        figures.push(("resident bytes".into(), resident, if is_settled { RESIDENT_SLACK } else { u64::MAX }));
        figures.push(("open descriptors".into(), descriptors.count() as u64, 0));
    }

    let requests = REQUESTS_SERVED.load(Ordering::Relaxed);
    let (opened, closed) = (FILES_OPENED.load(Ordering::Relaxed), FILES_CLOSED.load(Ordering::Relaxed));
    println!("{connections} connections, {requests} requests, {opened} files opened, {closed} closed");
    figures.iter().for_each(|(what, number, _)| println!("{what}: {number}"));
    println!("\n{snapshot}");
    if opened != closed {
        return Err(format!("{opened} files were opened, but {closed} closed").into());
    }
    Ok(figures)
}

/// Bytes, where the system tells.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))?;
    Some(kibibytes.trim().parse::<u64>().ok()? << 10)
}
