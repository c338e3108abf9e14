//! `dogtag top` and `dogtag profile`, of programs that run.

use crate::place::{Done, Place, word};
use crate::watch;
use serde_json::Value;
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Registers services by the library's own functions, which a program finds if it is preloaded, and has
/// each of some threads allocate in all of them. Then it does as lines on standard input say.
const SERVICES: &str = include_str!("services.c");

/// The program under `dogtag run`, which ends with this.
struct Running {
    dogtag: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pid: u32,
}

impl Running {
    fn start(place: &Place, services: u32, threads: u32, options: &[&str]) -> Self {
        let program = place.compile("services", SERVICES, &["-lpthread", "-ldl"]);
        let numbers = [services.to_string(), threads.to_string()];
        let mut words = vec!["run"];
        words.extend(options);
        words.extend(["--", word(&program), &numbers[0], &numbers[1]]);
        let mut command = place.command(words);
        let mut dogtag =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (input, output) = (dogtag.stdin.take(), BufReader::new(dogtag.stdout.take().unwrap()));
        let mut running = Self { dogtag, input, output, pid: 0 };
        running.pid = running.line().parse().unwrap();
        running
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, word: &str) -> String {
        self.input.as_mut().unwrap().write_all(format!("{word}\n").as_bytes()).unwrap();
        self.line()
    }

    fn signal(pid: u32, signal: i32) {
        // SAFETY: signals a process that this test has started, and that has not been waited for.
        unsafe { libc::kill(pid.cast_signed(), signal) };
    }

    fn end(mut self) -> Done {
        drop(self.input.take());
        Done::of(self.dogtag.wait_with_output().unwrap())
    }
}

fn figures(place: &Place, pid: u32) -> Value {
    let done = place.run(["top", "--json", &pid.to_string()]);
    done.has_status(0);
    serde_json::from_str(&done.out).unwrap()
}

/// Waits until a process answers.
fn wait_for(place: &Place, pid: u32) {
    watch::eventually(|| {
        let done = place.run(["top", "--json", &pid.to_string()]);
        if done.status == Some(0) { Ok(()) } else { Err(done.err) }
    });
}

fn live(service: &Value) -> u64 {
    let figure = |name: &str| service["usage"][name].as_u64().unwrap();
    figure("allocated_bytes") - figure("freed_bytes")
}

#[test]
fn figures_are_right_to_the_byte() {
    let place = Place::new();
    let mut running = Running::start(&place, 300, 8, &[]);
    let held: Vec<u64> = running.ask("sums").split(' ').map(|sum| sum.parse().unwrap()).collect();
    let figures = figures(&place, running.pid);
    let services = figures["services"].as_array().unwrap();
    let mut found = 0;
    for service in services {
        let Some(number) = service["name"].as_str().unwrap().strip_prefix("service-") else { continue };
        assert_eq!(live(service), held[number.parse::<usize>().unwrap()], "{service}");
        found += 1;
    }
    assert_eq!(found, 300);
    let sum: u64 = services.iter().map(live).sum();
    let totals = &figures["totals"];
    assert_eq!(sum, totals["allocated_bytes"].as_u64().unwrap() - totals["freed_bytes"].as_u64().unwrap());
    let done = place.run(["top", "--once", &running.pid.to_string()]);
    assert!(done.out.contains("\nservice-2") && done.out.contains("\nRSS "), "{done:#?}");
    place.run(["top", &running.pid.to_string()]).has_status(2).says(&["there is no terminal"]);
    let list = place.run(["top"]).out;
    assert!(list.contains(&format!("{:>9}  services ", running.pid)), "{list}");
    let pid = running.pid;
    running.end().has_status(0);
    place.run(["top", "--once", &pid.to_string()]).has_status(2).says(&["there is no process"]);
}

#[test]
fn children_have_a_socket_of_their_own_and_closed_ones_come_back() {
    let place = Place::new();
    let mut running = Running::start(&place, 3, 1, &[]);
    let child: u32 = running.ask("fork").parse().unwrap();
    // Its parent knows its number before it has begun.
    wait_for(&place, child);
    let services = |pid| figures(&place, pid)["services"].as_array().unwrap().len();
    assert_eq!(services(child), services(running.pid));
    Running::signal(child, libc::SIGKILL);
    assert_eq!(running.ask("close"), "closed");
    // The first question tells the thread that its socket is gone.
    wait_for(&place, running.pid);
    running.end().has_status(0);
}

/// Both sides of a terminal: whoever shows it, and who is on it. No child of another test has them.
fn terminal() -> (File, File) {
    let open = |path: &str| {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
    };
    let near = open("/dev/ptmx");
    let mut name = [0; 64];
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and what is written to outlives the calls.
    let name = unsafe {
        assert_eq!(libc::unlockpt(near.as_raw_fd()), 0);
        assert_eq!(libc::ptsname_r(near.as_raw_fd(), name.as_mut_ptr(), name.len()), 0);
        assert_eq!(libc::ioctl(near.as_raw_fd(), libc::TIOCSWINSZ, &size), 0);
        CStr::from_ptr(name.as_ptr())
    };
    let far = open(name.to_str().unwrap());
    (near, far)
}

/// Reads until it waits for the next key, mostly.
fn read_until_quiet(near: &mut File) {
    let mut ready = libc::pollfd { fd: near.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which outlives the call.
    while unsafe { libc::poll(&mut ready, 1, 200) } > 0 {
        assert_ne!(near.read(&mut [0; 4096]).unwrap(), 0);
    }
}

/// Reads until the text comes, and asks for it again for as long as it does not.
fn read_until(near: &mut File, text: &str, mut ask: impl FnMut()) {
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(text) {
        let mut ready = libc::pollfd { fd: near.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which outlives the call.
        if unsafe { libc::poll(&mut ready, 1, 100) } > 0 {
            let mut read = [0; 4096];
            let length = near.read(&mut read).unwrap();
            all.extend_from_slice(&read[..length]);
        } else {
            ask();
        }
    }
}

#[test]
fn a_key_stops_it_and_it_goes_on_where_it_was() {
    let place = Place::new();
    let running = Running::start(&place, 1, 1, &[]);
    let (mut near, far) = terminal();
    let mut command = place.command(["top", &running.pid.to_string()]);
    command.stdin(far.try_clone().unwrap()).stdout(far).stderr(Stdio::piped());
    let mut top = command.spawn().unwrap();
    drop(command);
    read_until(&mut near, "service", || ());
    near.write_all(b"\x1a").unwrap();
    // As a terminal that has never been drawn on.
    read_until(&mut near, "\x1b[?1049l", || ());
    let pid = top.id();
    // It may not have stopped yet.
    read_until(&mut near, "\x1b[?1049h", || Running::signal(pid, libc::SIGCONT));
    read_until(&mut near, "service", || ());
    near.write_all(b"q").unwrap();
    read_until(&mut near, "\x1b[?1049l", || ());
    let mut error = String::new();
    top.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!((top.wait().unwrap().code(), error.as_str()), (Some(0), ""));
    running.end().has_status(0);
}

/// Whether the signal that comes with it is heeded or not, and whether keys have been pressed.
#[test]
fn a_terminal_that_is_gone_ends_it() {
    let place = Place::new();
    let running = Running::start(&place, 1, 1, &[]);
    for (signal, keys) in [(None, ""), (None, "jj"), (Some(libc::SIGTERM), "")] {
        let (mut near, far) = terminal();
        let mut command = place.command(["top", &running.pid.to_string()]);
        command.stdin(far.try_clone().unwrap()).stdout(far).stderr(Stdio::piped());
        // One that reads what is gone for ever takes no more than this.
        let most = libc::rlimit { rlim_cur: 60, rlim_max: 60 };
        // SAFETY: one system call, of a value that the closure has.
        unsafe {
            command.pre_exec(move || {
                libc::setrlimit(libc::RLIMIT_CPU, &most);
                Ok(())
            })
        };
        let mut top = command.spawn().unwrap();
        // Which holds the other descriptors of the terminal.
        drop(command);
        // Begins to draw.
        near.read_exact(&mut [0]).unwrap();
        read_until_quiet(&mut near);
        near.write_all(keys.as_bytes()).unwrap();
        read_until_quiet(&mut near);
        if let Some(signal) = signal {
            Running::signal(top.id(), signal);
        }
        drop(near);
        let status = top.wait().unwrap();
        match signal {
            Some(signal) => assert!(
                [Some(128 + signal), Some(2)].contains(&status.code()),
                "{status}: either may come first"
            ),
            None => assert_eq!(status.code(), Some(2), "{status}"),
        }
    }
    running.end().has_status(0);
}

#[test]
fn a_process_that_is_stopped_is_told() {
    let place = Place::new();
    let running = Running::start(&place, 1, 1, &[]);
    Running::signal(running.pid, libc::SIGSTOP);
    place.run(["top", "--once", &running.pid.to_string()]).has_status(2).says(&["is stopped"]);
    Running::signal(running.pid, libc::SIGCONT);
    place.run(["top", "--once", &running.pid.to_string()]).has_status(0);
    running.end().has_status(0);
}

#[test]
fn another_users_process_is_refused() {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    let place = Place::new();
    let running = Running::start(&place, 1, 1, &[]);
    let dogtag = place.path("dogtag");
    fs::copy(env!("CARGO_BIN_EXE_dogtag"), &dogtag).unwrap();
    let pid = running.pid.to_string();
    for (words, message) in [
        (vec!["top", "--once", &pid], "is another user's (0): only that one and root may look at it"),
        (vec!["profile", &pid], "is another user's (0)"),
        // Nor is it in the list.
        (vec!["top"], "there is no process to look at"),
    ] {
        let output = Command::new(&dogtag).args(words).uid(65_533).gid(65_533).output().unwrap();
        Done::of(output).has_status(2).says(&[message]);
    }
    running.end().has_status(0);
}

#[test]
fn processes_that_cannot_be_seen_are_refused() {
    let place = Place::new();
    let running = Running::start(&place, 1, 1, &["--no-top"]);
    for command in ["top", "profile"] {
        let pid = running.pid.to_string();
        place.run([command, &pid]).has_status(2).says(&["does not let dogtag look"]);
        place.run([command, "4000000000"]).has_status(2).says(&["there is no process 4000000000"]);
        place.run([command, "x"]).has_status(2).says(&["invalid value 'x'"]);
    }
    running.end().has_status(0);
}

#[test]
fn profiles_are_taken_of_processes_that_run() {
    let place = Place::new();
    let mut running = Running::start(&place, 1, 1, &["--profile=4K"]);
    assert_eq!(running.ask("hold"), "held");
    let pid = running.pid.to_string();
    place.run(["profile", &pid, "-o", "x.folded"]).has_status(0).says(&["x.folded"]);
    assert!(place.read("x.folded").contains(";main "), "{}", place.read("x.folded"));
    place.run(["profile", &pid]).has_status(0);
    assert!(fs::read(place.path(&format!("heap.{pid}.pb.gz"))).unwrap().starts_with(&[0x1f, 0x8b]));
    running.end().has_status(0);

    let mut running = Running::start(&place, 1, 1, &[]);
    let pid = running.pid.to_string();
    place.run(["profile", &pid]).has_status(2).says(&["takes no samples"]);
    let dogtag = place
        .command(["profile", &pid, "--for", "1m", "--interval", "4K", "-o", "y.folded"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until it takes samples, which the next one sees.
    while place.run(["profile", &pid, "-o", "z.folded"]).status != Some(0) {}
    assert_eq!(running.ask("hold"), "held");
    Running::signal(dogtag.id(), libc::SIGINT);
    Done::of(dogtag.wait_with_output().unwrap()).has_status(0);
    assert!(place.read("y.folded").contains(";main "), "{}", place.read("y.folded"));
    place.run(["profile", &pid]).has_status(2).says(&["takes no samples"]);
    running.end().has_status(0);
}
