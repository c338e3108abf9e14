//! What threads share in this crate goes by way of here: the standard library's atomics
//! and locks, or loom's when the concurrency is model-checked (`RUSTFLAGS="--cfg
//! dogtag_loom"`), so that the code that is checked is the code that ships.

#[cfg(not(dogtag_loom))]
#[allow(unused_imports, reason = "each set of features needs some of them")]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    },
};

#[cfg(dogtag_loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    },
};

/// Reads a counter that no other thread writes meanwhile.
#[cfg(not(dogtag_loom))]
#[inline(always)]
pub(crate) fn load_own(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Reads a counter that no other thread writes meanwhile, which loom checks. Not as one of the accesses that it
/// reorders: of those it compares a store with the last one before it alone, which would be this, and so would
/// not try what a reader sees that has read before.
#[cfg(dogtag_loom)]
pub(crate) fn load_own(counter: &AtomicU64) -> u64 {
    // SAFETY: only the calling thread writes it; the model fails otherwise.
    unsafe { counter.unsync_load() }
}

/// Waits for others, the more patiently the more often it was tried.
pub(crate) fn spin(attempt: u32) {
    match attempt {
        _ if cfg!(dogtag_loom) => yield_now(),
        0..10 => std::hint::spin_loop(),
        10..100 => yield_now(),
        _ => std::thread::sleep(std::time::Duration::from_millis(1)),
    }
}

/// Lets others run, who have what the calling thread waits for.
pub(crate) fn yield_now() {
    #[cfg(not(dogtag_loom))]
    std::thread::yield_now();
    #[cfg(dogtag_loom)]
    loom::thread::yield_now();
}

/// A function that is `const`, so that statics can be made with it, except
/// under loom, whose atomics are made while a model runs.
macro_rules! const_unless_loom {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block) => {
        $(#[$attribute])*
        #[cfg(not(dogtag_loom))]
        $visibility const fn $name($($argument: $type),*) -> $result $body

        $(#[$attribute])*
        #[cfg(dogtag_loom)]
        $visibility fn $name($($argument: $type),*) -> $result $body
    };
}
pub(crate) use const_unless_loom;

/// Statics. Under loom each run of a model begins with new ones.
macro_rules! shared {
    ($($(#[$attribute:meta])* $(pub($scope:ident))? static $name:ident: $type:ty = $value:expr;)*) => {
        $(
            #[cfg(not(dogtag_loom))]
            $(#[$attribute])*
            $(pub($scope))? static $name: $type = $value;

            #[cfg(dogtag_loom)]
            loom::lazy_static! {
                $(#[$attribute])*
                $(pub($scope))? static ref $name: $type = $value;
            }
        )*
    };
}
pub(crate) use shared;

/// An array of null pointers.
macro_rules! nulls {
    ($length:expr) => {{
        #[cfg(not(dogtag_loom))]
        let nulls = [const { crate::sync::AtomicPtr::new(std::ptr::null_mut()) }; $length];
        #[cfg(dogtag_loom)]
        let nulls = std::array::from_fn(|_| crate::sync::AtomicPtr::new(std::ptr::null_mut()));
        nulls
    }};
}
pub(crate) use nulls;

/// Runs a model under loom. Bounds the switches that are tried within it, where
/// trying all would take hours; the literature finds that few bugs need more than
/// three.
#[cfg(all(test, dogtag_loom))]
pub(crate) fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    check(&builder, body);
}

/// Runs a model under loom, and tries all switches.
#[cfg(all(test, dogtag_loom))]
pub(crate) fn whole_model(body: impl Fn() + Sync + Send + 'static) {
    check(&loom::model::Builder::new(), body);
}

/// Panics if loom has found nothing to try: the model then shows nothing.
#[cfg(all(test, dogtag_loom))]
fn check(builder: &loom::model::Builder, body: impl Fn() + Sync + Send + 'static) {
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    builder.check({
        let runs = std::sync::Arc::clone(&runs);
        move || {
            runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            body();
        }
    });
    let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
    println!("{runs} runs");
    assert!(runs > 1, "one run alone: nothing that threads share is accessed by both");
}
