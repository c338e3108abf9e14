//! 2^32 forgotten scopes keep their service for good, and do not end it by coming to their count's end.
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
    let other =
        std::thread::spawn(|| Service::register("an-innocent-other-service-with-a-long-name").unwrap())
            .join()
            .unwrap();
    println!("other: {other:?}; current() == other: {}", cur == other);
    let block = vec![0u8; 1000];
    println!("usage of other, which nobody has entered: {:?}", other.usage());
    let name: &str = cur.name();
    println!("name borrowed from `cur`: {name:?}");
    std::thread::spawn(move || drop(other)).join().unwrap(); // cur and its name are still borrowed here
    let junk: Vec<Box<[u8]>> =
        (0..2000).map(|i| vec![b'A' + (i % 26) as u8; 42].into_boxed_slice()).collect();
    println!(
        "the same name, borrowed all along: {:?}",
        name.as_bytes().iter().map(|b| *b as char).collect::<String>()
    );
    drop(junk);
    drop(block);
}
