//! What the program does.

mod server;
#[cfg(target_os = "linux")]
mod socket;

use crate::watch::{self, ended};
use crate::{Folder, OWN};
use dogtag::report::{self, ReportError};
use dogtag::{Service, snapshot};
use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// A service with one block, which lives as long as the program.
#[inline(never)]
fn keep() -> Service {
    let kept = Service::register("kept").unwrap();
    std::mem::forget(std::hint::black_box(kept.run(|| vec![1_u8; 100_000])));
    kept
}

pub fn run(task: &str) -> ExitCode {
    // SAFETY: says that no core shall be dumped.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
    let argument = std::env::var("DOGTAG_TEST_ARGUMENT").unwrap_or_default();
    #[cfg(feature = "profile")]
    if matches!(task, "profile" | "serve") {
        dogtag::profile::Profiler::builder().interval(1).start().unwrap();
    }
    let kept = keep();
    match task {
        "return" | "exit" | "exit-elsewhere" | "panic" | "abort" => exits(task, &kept),
        "signal" => signal(&argument),
        "clock" => clock(&argument),
        "fork" => fork(&argument),
        "close-stderr" => {
            report::at_exit().unwrap();
            println!("working");
            // SAFETY: nobody else has the descriptor, but for who writes to standard error.
            unsafe { libc::close(libc::STDERR_FILENO) };
        }
        "reuse-stderr" => reuse_stderr(&argument),
        "file" => file(&argument),
        "subscriber" => subscriber(),
        "closure" => closures(),
        "environment" => environment(),
        "init" => init(),
        "errors" => errors(),
        "nobodys" => nobodys(&kept, &argument),
        "profile" => profile(&argument),
        "serve" => server::serve(),
        "silent" => server::silent(),
        #[cfg(target_os = "linux")]
        "socket" => socket::socket(),
        _ => panic!("no task {task}"),
    }
    std::mem::forget(kept);
    ExitCode::from(OWN as u8)
}

fn exits(how: &str, kept: &Service) {
    report::at_exit().unwrap();
    println!("working");
    std::io::stdout().flush().unwrap();
    match how {
        "exit" => {
            let _scope = kept.enter();
            std::process::exit(OWN);
        }
        "exit-elsewhere" => {
            std::thread::spawn(|| std::process::exit(OWN)).join().unwrap();
        }
        "panic" => panic!("main has failed"),
        "abort" => std::process::abort(),
        _ => {}
    }
}

/// Raises the signal, and waits until the file has so many more reports.
fn raise(path: &str, heading: &str, reports: usize) {
    // SAFETY: only sends a signal, for which there is a handler.
    unsafe { libc::kill(libc::getpid(), libc::SIGUSR2) };
    wait_for(path, heading, reports);
}

fn wait_for(path: &str, text: &str, times: usize) {
    watch::eventually(|| {
        let found = fs::read_to_string(path).unwrap_or_default();
        // Each one ends with its balance.
        let complete =
            found.matches("\nRSS ").count() >= found.matches("(pid ").count() || text.contains('"');
        if complete && found.matches(text).count() >= times {
            Ok(())
        } else {
            Err(format!("no {text}: {found}"))
        }
    });
}

/// Two reports, though somebody else's fail.
fn signal(path: &str) {
    let failing = report::builder().on_signal(report::SIGUSR2).to(|_| panic!("a closure has failed"));
    failing.start().unwrap();
    report::builder().on_signal(report::SIGUSR2).to_file(path).start().unwrap();
    raise(path, "at a signal", 1);
    raise(path, "at a signal", 2);
}

fn clock(path: &str) {
    let builder = report::builder().every(Duration::from_millis(5)).without_balance().json();
    builder.to_file(path).start().unwrap();
    let path = path.replace("%p", &std::process::id().to_string());
    wait_for(&path, "\"occasion\":\"interval\"", 3);
}

fn fork(path: &str) {
    let builder = report::builder().at_exit().on_signal(report::SIGUSR2).every(Duration::from_millis(5));
    builder.to_file(path).start().unwrap();
    let own = |path: &str| path.replace("%p", &std::process::id().to_string());
    wait_for(&own(path), "by the clock", 1);
    let parent = std::process::id();
    // SAFETY: the child goes on as any program does; dogtag allows that.
    let child = unsafe { libc::fork() };
    let path = own(path);
    wait_for(&path, "by the clock", 1);
    raise(&path, "at a signal", 1);
    if child == 0 {
        std::process::exit(OWN);
    }
    assert_eq!(ended(child).code(), Some(OWN));
    println!("{parent} {child}");
}

fn reuse_stderr(path: &str) {
    report::at_exit().unwrap();
    let own = fs::File::create(path).unwrap();
    // SAFETY: both descriptors are open, and the file's is closed nowhere else.
    unsafe { libc::dup2(std::os::fd::IntoRawFd::into_raw_fd(own), libc::STDERR_FILENO) };
    eprint!("own");
}

fn file(path: &str) {
    let folder = std::path::Path::new(path).parent().unwrap();
    fs::create_dir_all(folder).unwrap();
    report::builder().at_exit().to_file(path).start().unwrap();
    if folder.ends_with("gone") {
        fs::remove_dir(folder).unwrap();
    }
    println!("working");
}

fn subscriber() {
    tracing_subscriber::fmt().with_ansi(false).init();
    // The subscriber has thread-locals of this thread, which are gone at the exit.
    tracing::info!("begins");
    report::builder().at_exit().to_tracing().start().unwrap();
    report::at_exit().unwrap();
}

fn closures() {
    println!("working");
    let said = report::builder().at_exit().to(|report| {
        let row = report.snapshot.rows.iter().find(|row| row.name == "kept").unwrap();
        assert_eq!(report.occasion, report::Occasion::Exit);
        println!("kept has {} bytes in {} block, at the exit", row.usage.bytes(), row.usage.blocks());
    });
    said.start().unwrap();
    report::builder().at_exit().to(|_| panic!("a closure has failed")).start().unwrap();
    report::at_exit().unwrap();
}

fn environment() {
    let asked = report::from_env();
    println!("{asked:?} {}", std::process::id());
    if let Ok(true) = asked {
        let path = std::env::var("DOGTAG_REPORT").unwrap().rsplit_once("file=").unwrap().1.to_owned();
        raise(&path.replace("%p", &std::process::id().to_string()), "\"occasion\":\"signal\"", 1);
    }
}

fn init() {
    report::init();
    let show = |who: &str| println!("{who} works for {}", Service::current().name());
    drop(std::hint::black_box(Box::new(1)));
    show("main");
    let worker = std::thread::Builder::new().name("worker-1".to_owned());
    let work = move || {
        std::mem::forget(std::hint::black_box(vec![1_u8; 5000]));
        show("worker-1");
    };
    worker.spawn(work).unwrap().join().unwrap();
}

fn errors() {
    extern "C" fn own(_: libc::c_int) {}

    report::at_exit().unwrap();
    assert!(matches!(report::at_exit(), Err(ReportError::Twice)));
    // Another form, another place: not the same.
    let folder = Folder::new("errors");
    report::builder().at_exit().json().to_file(folder.path("a")).start().unwrap();
    let again =
        report::builder().at_exit().on_signal(report::SIGUSR1).json().to_file(folder.path("a")).start();
    assert!(matches!(again, Err(ReportError::Twice)));
    // SAFETY: asks for the handler; SIGUSR1 was not taken by what was refused.
    assert_eq!(unsafe { libc::signal(libc::SIGUSR1, own as extern "C" fn(_) as usize) }, libc::SIG_DFL);
    let taken = report::on_signal(report::SIGUSR1);
    assert!(matches!(taken, Err(ReportError::SignalTaken { signal: libc::SIGUSR1, .. })), "{taken:?}");
    for signal in [libc::SIGTERM, libc::SIGKILL, 0, -1, 1000] {
        let refused = report::on_signal(signal);
        assert!(matches!(refused, Err(ReportError::Signal { signal: found, .. }) if found == signal));
    }
    report::on_signal(report::SIGUSR2).unwrap();
    assert!(matches!(report::on_signal(report::SIGUSR2), Err(ReportError::Twice)));
    for interval in [Duration::ZERO, Duration::MAX] {
        assert!(matches!(report::every(interval), Err(ReportError::Interval { .. })));
    }
    assert!(matches!(report::builder().json().start(), Err(ReportError::NoOccasion)));
    for path in ["/", "/nowhere/report", "a\0b"] {
        let refused = report::builder().at_exit().to_file(path).start().unwrap_err();
        assert!(matches!(&refused, ReportError::File { .. }), "{refused:?}");
        assert!(refused.to_string().contains(&path.escape_debug().to_string()), "{refused}");
    }
    println!("as expected");
}

/// Whichever service asks for them, or is interrupted.
fn nobodys(kept: &Service, path: &str) {
    let before = kept.usage();
    {
        let _scope = kept.enter();
        report::builder().at_exit().on_signal(report::SIGUSR2).to_file(path).start().unwrap();
        report::builder().at_exit().to(|_| drop(vec![1_u8; 1000])).start().unwrap();
        let report = report::take();
        drop(std::hint::black_box(report.to_json()));
        // SAFETY: only sends a signal, for which there is a handler; to this thread.
        unsafe { libc::raise(libc::SIGUSR2) };
    }
    wait_for(path, "at a signal", 1);
    let own = kept.usage().since(&before);
    assert_eq!(own.allocated_blocks, 0, "{}", snapshot());
    println!("as expected");
}

fn profile(path: &str) {
    report::at_exit().unwrap();
    report::builder().at_exit().json().to_file(path).start().unwrap();
}
