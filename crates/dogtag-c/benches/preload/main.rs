//! Cost of dogtag to programs that know nothing of it: `sqlite3`, and `redis-server` under
//! `redis-benchmark`, with the library preloaded, beside jemalloc of the same version
//! preloaded; C's `malloc` and `free` alone; and forks of 4 threads, while 4 others allocate. With
//! memory-check, too.
//!
//! `cargo bench -p dogtag-c --bench preload [-- ROUNDS]`
//!
//! Each round runs all of them, in turn. jemalloc is there as its users have it, and with the
//! statistics that dogtag's keeps. Programs that are not installed are left out. Of programs
//! the processor's time is taken, which other programs disturb less.

#[path = "../../../../benches/programs/builder.rs"]
mod builder;
#[path = "../libraries/mod.rs"]
mod libraries;

use builder::fail;
use libraries::{compile, contestants};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, mem, process, thread};

const ROUNDS: usize = 11;

fn main() {
    let rounds = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    let folder = env::temp_dir().join(format!("dogtag-preload-{}", process::id()));
    fs::create_dir_all(&folder).unwrap_or_else(|error| fail(&format!("{}: {error}", folder.display())));
    let contestants = contestants(&folder);
    let [pair, forking] = ["pair.c", "forks.c"].map(|name| compile(&folder, &source(name)));

    // By row, the figures of each contestant.
    let mut rows: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    for _ in 0..rounds {
        for (number, (_, library)) in contestants.iter().enumerate() {
            let mut figures = pairs(&pair, library);
            figures.extend(forks(&forking, library).map(|taken| ("a fork, µs".to_owned(), taken)));
            figures.extend(sqlite(&folder, library).map(|seconds| ("sqlite3, s".to_owned(), seconds)));
            figures.extend(redis(&folder, library).map(|seconds| ("redis-server, s".to_owned(), seconds)));
            for (row, figure) in figures {
                rows.entry(row).or_insert_with(|| vec![Vec::new(); contestants.len()])[number].push(figure);
            }
        }
    }
    println!("medians of {rounds} rounds, and × jemalloc in the same round\n");
    print!("{:<24}", "");
    contestants.iter().for_each(|(name, _)| print!("{name:>26}"));
    println!();
    for (row, figures) in &rows {
        print!("{row:<24}");
        for own in figures {
            let ratios = own.iter().zip(&figures[0]).map(|(own, base)| own / base).collect();
            print!("{:>16.2} {:>8}", median(own.clone()), format!("{:.2}×", median(ratios)));
            print!(" ");
        }
        println!();
    }
    let _ = fs::remove_dir_all(folder);
}

/// Measures nanoseconds of each pattern.
fn pairs(program: &Path, library: &Path) -> Vec<(String, f64)> {
    let output = Command::new(program).env("LD_PRELOAD", library).output();
    let output = output.unwrap_or_else(|error| fail(&format!("{}: {error}", program.display())));
    let rows = String::from_utf8_lossy(&output.stdout);
    rows.lines()
        .filter_map(|row| {
            let (name, nanoseconds) = row.split_once('\t')?;
            Some((format!("{name}, ns"), nanoseconds.parse().ok()?))
        })
        .collect()
}

/// Measures microseconds of the processor for a fork, and for allocations meanwhile.
fn forks(program: &Path, library: &Path) -> Option<f64> {
    let output = Command::new(program).env("LD_PRELOAD", library).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// Measures the seconds in which a database is made and searched.
fn sqlite(folder: &Path, library: &Path) -> Option<f64> {
    let database = folder.join("words.db");
    let _ = fs::remove_file(&database);
    let statements = fs::File::open(source("statements.sql")).ok()?;
    let mut sqlite = Command::new("sqlite3");
    sqlite.arg(&database).env("LD_PRELOAD", library).stdin(statements).stdout(Stdio::null());
    Some(end(sqlite.spawn().ok()?))
}

/// Measures the seconds of a server for a number of requests.
fn redis(folder: &Path, library: &Path) -> Option<f64> {
    // Free a moment ago, and nobody else's soon.
    let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port().to_string();
    let mut server = Command::new("redis-server");
    server.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    server.current_dir(folder).env("LD_PRELOAD", library).stdout(Stdio::null());
    // Should this end in the middle, it does too.
    // SAFETY: the closure runs between fork and exec, and only makes a system call.
    unsafe {
        server.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        })
    };
    let mut server = server.spawn().ok()?;
    let client = |program: &str, arguments: &[&str]| {
        let mut client = Command::new(program);
        client
            .args(["-h", "127.0.0.1", "-p", &port])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        client.status().is_ok_and(|status| status.success())
    };
    let is_up = loop {
        thread::sleep(Duration::from_millis(50));
        if client("redis-cli", &["ping"]) {
            break true;
        }
        if server.try_wait().is_ok_and(|ended| ended.is_some()) {
            break false;
        }
    };
    let tests = "set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,lrange_100,mset";
    let requests = ["-q", "-n", "100000", "-r", "100000", "-c", "20", "-P", "16", "-t", tests];
    let is_done = is_up && client("redis-benchmark", &requests);
    if !is_done || !client("redis-cli", &["shutdown", "nosave"]) {
        let _ = server.kill();
        fail("redis-server or redis-benchmark failed");
    }
    Some(end(server))
}

/// Waits for a process to end, and returns the processor's time that it took.
fn end(child: Child) -> f64 {
    let (mut status, mut usage) = (0, mem::MaybeUninit::<libc::rusage>::uninit());
    // SAFETY: the child is waited for here alone, and the places for the results are valid.
    let usage = unsafe {
        if libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr()) < 0 || status != 0 {
            fail("a program failed");
        }
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/preload").join(name)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
