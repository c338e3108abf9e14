//! An extension module with dogtag as its own allocator, as a Python or Node extension has it.
use dogtag::Service;
#[global_allocator]
static A: dogtag::Dogtag = dogtag::Dogtag::new();
#[unsafe(no_mangle)]
pub extern "C" fn work(n: usize) -> u64 {
    let s = Service::register("ext")
        .or_else(|_| Ok::<_, dogtag::RegisterError>(Service::by_name("ext").unwrap()))
        .unwrap();
    let v = s.run(|| vec![7u8; n]);
    let b = s.usage().bytes();
    std::hint::black_box(&v);
    b
}
#[unsafe(no_mangle)]
pub extern "C" fn announce() {
    // has dogtag start its own thread: a soft limit that is passed
    let s = Service::builder("soft").soft_limit(1000).on_soft_limit(|_| {}).register().unwrap();
    let v = s.run(|| vec![1u8; 5000]);
    std::hint::black_box(&v);
}
