//! Shrinking somebody else's buffer inside a service that is at its limit.
use dogtag::Service;
#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
fn main() {
    let mut v: Vec<u8> = Vec::with_capacity(1 << 20);
    v.extend([1, 2, 3].iter().cycle().take(200_000));
    let s = Service::builder("full").hard_limit(100_000).register().unwrap();
    println!("shrinking a 1 MiB buffer to 200 kB in a service of 100 kB");
    s.run(|| v.shrink_to_fit());
    println!("ok {}", v.capacity());
}
