//! With `interpose`, C's blocks in a Rust program are in the same ledger as its own.
#![cfg(feature = "interpose")]

use dogtag::{Dogtag, Service};
use dogtag_c as _;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
#[cfg(feature = "profile")]
use std::sync::{Mutex, PoisonError};
use std::thread;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

unsafe extern "C" {
    fn malloc_usable_size(block: *mut c_void) -> usize;
    fn dogtag_service_register(name: *const c_char) -> *mut c_void;
    fn dogtag_service_handle(service: *const c_void) -> u32;
    fn dogtag_service_release(service: *mut c_void);
}

#[test]
fn c_and_rust_share_a_ledger() {
    let codec = Service::register("codec").unwrap();
    let before = dogtag::totals();

    let (vector, block) = codec.run(|| {
        // SAFETY: any size may be asked of `malloc`.
        (vec![1_u8; 1000], unsafe { libc::malloc(500) })
    });
    // SAFETY: the block is live.
    let size = unsafe { malloc_usable_size(block) } as u64;
    assert!((500..600).contains(&size));
    let usage = codec.usage();
    assert_eq!((usage.bytes(), usage.blocks()), (1000 + size, 2));
    assert!(dogtag::totals().since(&before).bytes() >= 1000 + size);

    // Wherever it is freed: in another service, on another thread.
    let (block, janitor) = (block.expose_provenance(), Service::register("janitor").unwrap());
    thread::spawn(move || {
        // SAFETY: the block is live, and this thread alone has it.
        janitor.run(|| unsafe { libc::free(std::ptr::with_exposed_provenance_mut(block)) });
    })
    .join()
    .unwrap();
    assert_eq!((codec.usage().bytes(), codec.usage().blocks()), (1000, 1));
    drop(vector);
    assert_eq!(codec.usage().bytes(), 0);

    // The C library allocates a text, and its caller frees it.
    let text = codec.run(|| {
        let mut text: *mut c_char = std::ptr::null_mut();
        // SAFETY: the format takes one number, and `text` is a place for the result.
        let length = unsafe { asprintf(&mut text, c"%01000d".as_ptr(), 7) };
        assert_eq!(length, 1000);
        text
    });
    assert!(codec.usage().bytes() >= 1001);
    // SAFETY: the C library made the text, a C string in a block of its own, which is freed once.
    unsafe {
        assert_eq!(CStr::from_ptr(text).count_bytes(), 1000);
        libc::free(text.cast());
    }
    assert_eq!(codec.usage().bytes(), 0);
}

/// Beyond 65,533 services a block's cookie is longer.
#[test]
fn a_service_of_many_has_blocks_of_c() {
    let others: Vec<Service> =
        (0..66_000).map(|number| Service::register(format!("other {number}")).unwrap()).collect();
    let late = others.last().unwrap();
    for size in [0, 1, 6, 10, 100, 3580, 3586, 4090, 4091, 4095, 5000, 20_000, 1 << 20] {
        // SAFETY: any size may be asked for. Each block is live until it is moved or freed, and
        // written to and read within its usable size.
        unsafe {
            let mut block = late.run(|| libc::malloc(size));
            let usable = malloc_usable_size(block);
            assert!(usable >= size, "{usable} for {size}");
            assert_eq!((late.usage().bytes(), late.usage().blocks()), (usable as u64, 1));
            block.cast::<u8>().write_bytes(0x5a, usable);

            // To a short slot, and back.
            block = libc::realloc(block, size + 1);
            assert_eq!(late.usage().bytes(), 0);
            block = late.run(|| libc::realloc(block, 2 * size + 1));
            assert!((0..size).all(|byte| *block.cast::<u8>().add(byte) == 0x5a));
            assert_eq!(late.usage().bytes(), malloc_usable_size(block) as u64);
            libc::free(block);
            assert_eq!((late.usage().bytes(), late.usage().blocks()), (0, 0));
        }
    }
    assert_eq!(dogtag::snapshot().lost.blocks, 0);
}

#[test]
fn c_finds_the_services_of_rust() {
    let shared = Service::register("shared").unwrap();
    let name = CString::new("shared").unwrap();
    // SAFETY: the name is a C string, and the reference is live until it is released, once.
    unsafe {
        let reference = dogtag_service_register(name.as_ptr());
        assert_eq!(dogtag_service_handle(reference), shared.handle());
        dogtag_service_release(reference);
    }
    assert_eq!(Service::by_name("shared"), Some(shared));
}

unsafe extern "C" {
    fn asprintf(text: *mut *mut c_char, format: *const c_char, ...) -> c_int;
}

/// The figures of each service are exact, so what samples are left shows in their number.
#[test]
#[cfg(feature = "profile")]
fn no_sample_is_left_of_what_c_has_freed() {
    use dogtag::profile::{self, Profiler};
    // The compiler leaves out blocks that nobody looks at.
    use std::hint::black_box;

    let samples = |name: &str| -> (i64, u64) {
        let rows = profile::live().by_service().rows;
        rows.iter().find(|row| row.service == name).map_or((0, 0), |row| (row.bytes, row.samples))
    };
    let _alone = PROFILER.lock().unwrap_or_else(PoisonError::into_inner);
    let [first, second] = ["first", "second"].map(|name| Service::register(name).unwrap());
    let profiler = Profiler::builder().interval(1).start().unwrap();
    // SAFETY: any size may be asked for; each block is freed once, and moved by `realloc` alone.
    unsafe {
        let kept = black_box(first.run(|| libc::malloc(100)));
        let size = malloc_usable_size(kept) as i64;
        assert_eq!(samples("first"), (size, 1));
        for round in 0..1000_usize {
            let sizes = [1, 100, 3000, 4096, 5000, 100_000, 3 << 20].map(|size| size + round);
            let blocks = sizes.map(|size| black_box(first.run(|| libc::malloc(size))));
            if round % 100 == 0 {
                let live: usize = blocks.iter().map(|block| malloc_usable_size(*block)).sum();
                assert_eq!(samples("first"), (live as i64 + size, 8));
            }
            for (block, other) in blocks.into_iter().zip(sizes.into_iter().rev()) {
                libc::free(black_box(second.run(|| libc::realloc(block, other))));
            }
        }
        assert_eq!((samples("first"), samples("second")), ((size, 1), (0, 0)));
        let kept = black_box(second.run(|| libc::realloc(kept, 10_000)));
        assert_eq!((samples("first"), samples("second").1), ((0, 0), 1));
        libc::free(kept);
    }
    profiler.stop();
    assert_eq!((samples("first"), samples("second")), ((0, 0), (0, 0)));
}

/// A sampled block's cookie is longer, so it is charged with other bytes than all others of its size.
#[test]
#[cfg(all(feature = "profile", not(feature = "memory-check")))]
fn c_blocks_are_sampled_as_often_as_their_bytes_say() {
    use dogtag::profile::{self, Profiler};
    use std::hint::black_box;

    const INTERVAL: u64 = 4096;

    let _alone = PROFILER.lock().unwrap_or_else(PoisonError::into_inner);
    // Before one of them is sampled.
    // SAFETY: any size may be asked for, and each block is freed once.
    let sizes = [8, 60, 64, 1000].map(|size| unsafe {
        let block = black_box(libc::malloc(size));
        let usable = malloc_usable_size(block);
        libc::free(block);
        (size, usable)
    });
    let profiler = Profiler::builder().interval(INTERVAL).start().unwrap();
    for (size, usable) in sizes {
        let service = Service::register(format!("of {size}")).unwrap();
        // SAFETY: any size may be asked for, and each block is freed once.
        service.run(|| unsafe {
            for _ in 0..(30 << 20) / (size + 8) {
                libc::free(black_box(libc::malloc(size)));
            }
        });
        let allocated = profile::allocated();
        let rows = allocated.rows.iter().filter(|row| row.service == service.name());
        let samples = rows.map(|row| row.samples).sum::<u64>() as f64;
        let probability = -f64::exp_m1(-(usable as f64) / INTERVAL as f64);
        let expected = service.usage().allocated_blocks as f64 * probability;
        assert!((samples - expected).abs() < 6.0 * expected.sqrt(), "{size}: {samples}, not {expected}");
    }
    profiler.stop();
}

/// Of the process there is but one profiler.
#[cfg(feature = "profile")]
static PROFILER: Mutex<()> = Mutex::new(());
