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

/// Allocates so many bytes, returns how many are live in all, and frees them.
#[unsafe(no_mangle)]
pub extern "C" fn work(size: usize) -> u64 {
    let block = service().run(|| vec![7_u8; size]);
    assert!(black_box(&block).iter().all(|&byte| byte == 7));
    service().usage().bytes()
}

/// Keeps a block for as long as the thread runs. Until such a destructor has run the loader keeps the
/// library.
#[unsafe(no_mangle)]
pub extern "C" fn keep() {
    thread_local! {
        static KEPT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    service().run(|| KEPT.with_borrow_mut(|kept| *kept = vec![1; 100]));
}

/// Returns how many bytes are live in all.
#[unsafe(no_mangle)]
pub extern "C" fn live() -> u64 {
    service().usage().bytes()
}

/// Counts its calls, and returns how many there were.
#[unsafe(no_mangle)]
pub extern "C" fn calls() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed) + 1
}

/// Makes dogtag's own thread call a function, at a soft limit.
#[unsafe(no_mangle)]
pub extern "C" fn announce(told: extern "C" fn()) {
    let name = format!("announced-{}", calls());
    let service = Service::builder(name).soft_limit(1000).on_soft_limit(move |_| told()).register();
    let service = service.expect("nobody else has that name");
    drop(black_box(service.run(|| vec![1_u8; 5000])));
    mem::forget(service);
}

/// Begins a thread that works, calls a function, and goes on.
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
