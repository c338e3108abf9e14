//! What the programs do: `PROGRAM WORKLOAD` runs one workload and prints the
//! nanoseconds that one operation took, and the process's peak RSS in bytes.
//!
//! `PROGRAM count OPERATION NUMBER` does that one so many times, and prints nothing.
//!
//! A module of each program rather than a library, so that it is compiled as a
//! user's own code is: an allocator that can be inlined into it, will be.

mod counted;
mod footprint;
mod growth;
mod micro;
mod patterns;
mod programs;

use std::time::Instant;

/// What a program has of services. Without any, the work is just done.
pub trait Services: Copy + Send + Sync + 'static {
    /// A service, or nothing.
    type Service: Send + Sync + 'static;

    /// A service of that number.
    fn service(self, number: u64) -> Self::Service;

    /// Runs on behalf of a service.
    fn run<R>(self, service: &Self::Service, work: impl FnOnce() -> R) -> R;

    /// Is on behalf of a service until what is returned is dropped.
    fn enter(self, _service: &Self::Service) -> impl Sized {}

    /// A future that is polled on behalf of a service of its own.
    fn request<F: Future + Send>(self, number: u64, future: F) -> impl Future<Output = F::Output> + Send;
}

/// Runs the workload that the command line names.
pub fn main(services: impl Services) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, operation, number] = &arguments[..]
        && command == "count"
    {
        let done = number.parse().ok().and_then(|number| counted::run(operation, number, services));
        std::process::exit(if done.is_some() { 0 } else { 2 });
    }
    let name = arguments.into_iter().next().unwrap_or_default();
    let Some(time) = run(&name, services) else {
        eprintln!("{name:?} is no workload; `benches/overhead/workloads.rs` lists them");
        std::process::exit(2);
    };
    println!("{time} {}", memory("VmHWM:") - footprint::before());
}

fn run(name: &str, services: impl Services) -> Option<f64> {
    let (kind, number) = name.rsplit_once('-').unwrap_or((name, ""));
    Some(match (kind, number.parse::<usize>()) {
        ("pair", Ok(size)) => micro::pair(size),
        ("threads", Ok(threads)) => micro::churn_on_threads(threads, 1..=256, 1_000),
        ("alive", Ok(threads)) => growth::alive(threads),
        ("services", Ok(number)) => growth::services(services, number),
        ("turns", Ok(number)) => growth::turns(services, number),
        ("live", Ok(size)) => footprint::live(size),
        _ => match name {
            "small-1k-live" => micro::churn(1..=128, 1_000),
            "two-threads" => micro::churn_on_threads(2, 1..=256, 1_000),
            "hand-over" => micro::hand_over(),
            "cold" => micro::churn(1..=1024, 100_000),
            "vec-growth" => micro::vec_growth(),
            "realloc-doubling" => micro::realloc_doubling(),
            "larson" => patterns::larson(),
            "xmalloc" => patterns::xmalloc(),
            "json" => programs::json(),
            "strings" => programs::strings(),
            "words" => programs::words(),
            "sort" => programs::sort(),
            "index" => programs::index(),
            "regex" => programs::regex(),
            "lru" => programs::lru(),
            "requests" => programs::requests(services),
            "merge" => programs::merge(),
            "log" => programs::log(),
            _ => return None,
        },
    })
}

/// Times `operations` of `work` in slices, after one to warm up, and gives the
/// fastest one: moments in which the machine did something else are left out.
fn timed(operations: usize, mut work: impl FnMut(usize)) -> f64 {
    const SLICES: usize = 9;

    let operations = operations / SLICES;
    fastest_of::<SLICES>(operations, || work(operations))
}

/// Times a program that does its whole work each time: the fastest run, in nanoseconds for
/// one of `operations` that it does.
fn passes(operations: usize, work: impl FnMut()) -> f64 {
    fastest_of::<5>(operations, work)
}

fn fastest_of<const SLICES: usize>(operations: usize, mut work: impl FnMut()) -> f64 {
    work();
    let time = || {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e9 / operations as f64
    };
    std::iter::repeat_with(time).take(SLICES).fold(f64::INFINITY, f64::min)
}

/// One of the process's own figures of its memory, in bytes; 0 where the system does
/// not say. (Not `getrusage`'s: that begins with what the parent had.)
fn memory(figure: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(figure));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
