//! [`b8_scopes`](b8_scopes.rs) on one thread.
#![forbid(unsafe_code)]
use dogtag::Service;
#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
fn main() {
    println!("begin"); // stdout has its buffer now
    let s = Service::register("in-for-good").unwrap();
    let t = std::time::Instant::now();
    for _ in 0..1u64 << 32 {
        std::mem::forget(s.enter());
    }
    println!("2^32 scopes forgotten in {:?}; the thread is in {:?}", t.elapsed(), Service::current());
    drop(s); // documented: "A scope that was forgotten, not dropped, keeps its service for good."
    println!("current after the last clone is gone: {:?}", Service::current());
    let cur = Service::current();
    Service::unattributed().run(|| {
        let other = Service::register("an-innocent-other-service-with-a-long-name").unwrap();
        println!("cur == other: {}", cur == other);
        let name: &str = cur.name();
        println!("name borrowed from `cur`: {name:?}");
        drop(other);
        let junk: Vec<Box<[u8]>> =
            (0..2000).map(|i| vec![b'A' + (i % 26) as u8; 42].into_boxed_slice()).collect();
        println!(
            "the same &str, borrowed all along: {:?}",
            name.as_bytes().iter().map(|b| *b as char).collect::<String>()
        );
        drop(junk);
    });
}
