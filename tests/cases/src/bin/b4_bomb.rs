//! A callback whose panic has a payload that panics itself when it is dropped: all later crossings
//! are told, too. Waits for each for as long as it takes.
use dogtag::Service;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
struct Bomb;
impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("payload drop panics")
        }
    }
}
static CALLS: AtomicU32 = AtomicU32::new(0);
fn main() {
    let what = std::env::args().nth(1).unwrap();
    let w = what.clone();
    let s = Service::builder("s")
        .soft_limit(1 << 20)
        .on_soft_limit(move |_| {
            CALLS.fetch_add(1, SeqCst);
            match &*w {
                "bomb" => std::panic::panic_any(Bomb),
                "plain" => panic!("plain"),
                _ => {}
            }
        })
        .register()
        .unwrap();
    for round in 0..5 {
        let v = s.run(|| std::hint::black_box(vec![1u8; 4 << 20]));
        while CALLS.load(SeqCst) <= round {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        drop(v);
        for _ in 0..50 {
            s.run(|| drop(std::hint::black_box(vec![1u8; 100 << 10])));
        }
    }
    println!("{what}: soft limit callback calls: {} (expected 5)", CALLS.load(SeqCst));
}
