//! 2^32 forgotten clones, made by [`Service::current`], do not bring a service's count to its end.
use dogtag::Service;
#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
fn main() {
    let wraps: u64 = std::env::args().nth(1).map_or(1, |a| a.parse().unwrap());
    let s = Service::register("victim-with-a-name-on-the-heap").unwrap();
    let t = std::time::Instant::now();
    {
        let _in = s.enter();
        for _ in 0..wraps * (1u64 << 32) {
            std::mem::forget(Service::current());
        }
    }
    println!("forgot {} clones in {:?}", wraps << 32, t.elapsed());
    println!("by_name: {:?}", Service::by_name("victim-with-a-name-on-the-heap"));
    let again = Service::register("victim-with-a-name-on-the-heap").unwrap();
    println!("registered again: same? {}", again == s);
    drop(again);
    let block = s.run(|| vec![0u8; 100]);
    let lost = dogtag::snapshot().lost;
    let h = std::thread::spawn(move || drop(block));
    h.join().unwrap();
    println!("lost before {lost:?} after {:?}", dogtag::snapshot().lost);
    println!("usage of victim after its block was freed on another thread: {:?}", s.usage());
    if wraps == 8 {
        let keep = s.clone();
        let name: &str = keep.name();
        println!("before: {name:?}");
        drop(s); // count is 2 -> 1 ... forget nothing more
        println!("after drop of one of two: {:?}", keep.name());
    }
}
