//! A scrape of families as deep as anybody makes them takes time in proportion to their size, and no
//! stack. In a child process that may use so much CPU and no more: what is done for each service and
//! all above it would take hours.

#[macro_use]
#[path = "../../../tests/child/mod.rs"]
mod child;

use dogtag::{Dogtag, Service};
use dogtag_prometheus::ServiceCollector;
use prometheus_client::{encoding::text::encode, registry::Registry};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
fn depth_costs_a_scrape_nothing() {
    alone!();
    let most = libc::rlimit { rlim_cur: 60, rlim_max: 60 };
    // SAFETY: bounds this process's CPU time, in seconds.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CPU, &most) }, 0);
    // Little more than the least that a thread may have.
    std::thread::Builder::new().stack_size(256 << 10).spawn(scrape).unwrap().join().unwrap();
}

fn scrape() {
    // With memory-check it takes longer to register one.
    let length = if dogtag::snapshot().quarantine.is_some() { 100_000 } else { 300_000 };
    let root = Service::register("root").unwrap();
    let last = (1..length).fold(root.clone(), |parent, i| {
        Service::builder(format!("child {i}")).parent(&parent).register().unwrap()
    });
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ServiceCollector::new()));
    for _ in 0..3 {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("child 1\"}"), "{text}");
        let longest = text.lines().map(str::len).max();
        assert!(text.len() < 200_000 && longest < Some(500), "{} bytes", text.len());
    }
    drop((root, last));
}
