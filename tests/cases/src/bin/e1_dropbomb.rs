//! A callback whose drop panics, with a payload whose drop panics: the service ends well.
#![forbid(unsafe_code)]
use dogtag::Service;
#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
struct Bomb;
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("payload")
    }
}
struct Captured;
impl Drop for Captured {
    fn drop(&mut self) {
        std::panic::panic_any(Bomb)
    }
}
fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let c = Captured;
    let s = Service::builder("s")
        .on_soft_limit(move |_| {
            let _ = &c;
        })
        .register()
        .unwrap();
    let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(s)));
    println!("drop(service) panicked: {}", r.is_err());
    std::mem::forget(r);
}
