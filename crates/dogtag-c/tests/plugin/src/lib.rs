//! An extension module, as Python's and others', that has dogtag as its allocator.

use dogtag::Service;
use std::cell::RefCell;
use std::ffi::c_void;
use std::hint::black_box;
use std::mem;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();

fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| Service::register("extension").expect("nobody else has that name"))
}

/// Allocates so much for a while, and says how much there is in all.
#[unsafe(no_mangle)]
pub extern "C" fn work(size: usize) -> u64 {
    let block = service().run(|| vec![7_u8; size]);
    assert!(black_box(&block).iter().all(|&byte| byte == 7));
    service().usage().bytes()
}

/// Keeps a block for as long as the thread runs. Such destructors have the loader keep the library
/// until they have run, but no longer.
#[unsafe(no_mangle)]
pub extern "C" fn keep() {
    thread_local! {
        static KEPT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    service().run(|| KEPT.with_borrow_mut(|kept| *kept = vec![1; 100]));
}

/// What there is in all.
#[unsafe(no_mangle)]
pub extern "C" fn live() -> u64 {
    service().usage().bytes()
}

/// How often this was called.
#[unsafe(no_mangle)]
pub extern "C" fn calls() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed) + 1
}

/// Has dogtag's own thread call that, at a soft limit.
#[unsafe(no_mangle)]
pub extern "C" fn announce(told: extern "C" fn()) {
    let name = format!("announced-{}", calls());
    let service = Service::builder(name).soft_limit(1000).on_soft_limit(move |_| told()).register();
    let service = service.expect("nobody else has that name");
    drop(black_box(service.run(|| vec![1_u8; 5000])));
    mem::forget(service);
}

/// Begins a thread that works, calls that, and goes on.
#[unsafe(no_mangle)]
pub extern "C" fn begin(middle: extern "C" fn(), end: extern "C" fn()) {
    thread::spawn(move || {
        work(1000);
        middle();
        work(1000);
        end();
    });
}

/// What Node calls, in each of its workers.
#[unsafe(no_mangle)]
pub extern "C" fn napi_register_module_v1(_environment: *mut c_void, exports: *mut c_void) -> *mut c_void {
    work(100_000);
    exports
}
