//! Pages that the system refuses dogtag itself, one kind at a time: `mmap` is this program's.
//! Each in a process that has had none of them.

#[cfg(not(feature = "memory-check"))]
use crate::events::told;
use crate::events::{listen, wait_for};
#[cfg(not(feature = "memory-check"))]
use dogtag::OwnerTable;
use dogtag::{Dogtag, RegisterError, Service};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::SeqCst};
#[cfg(not(feature = "memory-check"))]
use std::thread::sleep;
#[cfg(not(feature = "memory-check"))]
use std::time::{Duration, Instant};
use tracing::Level;

thread_local! {
    /// Whether the calling thread is refused pages.
    static REFUSES: Cell<bool> = const { Cell::new(false) };
    static REFUSED: Cell<u32> = const { Cell::new(0) };
}

/// Does `work` without memory for dogtag, of which some was asked for.
fn refused<R>(work: impl FnOnce() -> R) -> R {
    REFUSED.set(0);
    REFUSES.set(true);
    let result = work();
    REFUSES.set(false);
    assert!(REFUSED.get() > 0, "nobody asked for pages");
    result
}

/// What dogtag calls, as this program has it. jemalloc asks for pages that the system need not
/// promise, and gets them.
///
/// # Safety
///
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    if REFUSES.get() && file == -1 && flags & libc::MAP_NORESERVE == 0 {
        REFUSED.set(REFUSED.get() + 1);
        // SAFETY: the calling thread's own.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
        return libc::MAP_FAILED;
    }
    // SAFETY: the arguments are the C library's own for `mmap`, passed on unchanged.
    let mapped = unsafe { libc::syscall(libc::SYS_mmap, address, len, protection, flags, file, offset) };
    ptr::with_exposed_provenance_mut(mapped as usize)
}

const SMALL: Layout = Layout::new::<[u64; 5]>();
#[cfg(not(feature = "memory-check"))]
const LARGE: Layout = Layout::new::<[u64; 1024]>();

const SHARED: &str = "threads share their counters";

/// Not the global allocator, so that nobody else has the places that it needs.
static ALLOC: Dogtag<FarAway> = Dogtag::with_backend(FarAway);

/// Bytes and blocks that were allocated, and freed.
fn figures(service: &Service) -> [u64; 4] {
    let usage = service.usage();
    [usage.allocated_bytes, usage.allocated_blocks, usage.freed_bytes, usage.freed_blocks]
}

fn alloc(service: &Service) -> *mut u8 {
    // SAFETY: the layout is not empty.
    service.run(|| unsafe { ALLOC.alloc(SMALL) })
}

fn free(block: *mut u8) {
    // SAFETY: of `alloc`, and freed once.
    unsafe { ALLOC.dealloc(block, SMALL) };
}

/// Does `work` on a thread that has neither allocated nor freed, as std's have.
fn on_a_new_thread(work: &(dyn Fn() + Sync)) {
    extern "C" fn run(work: *mut c_void) -> *mut c_void {
        // SAFETY: what is passed below.
        unsafe { (*work.cast::<&(dyn Fn() + Sync)>())() };
        ptr::null_mut()
    }

    let mut thread = std::mem::MaybeUninit::uninit();
    // SAFETY: it is waited for, and so what it uses is there.
    unsafe {
        let work = (&raw const work).cast_mut().cast();
        assert_eq!(libc::pthread_create(thread.as_mut_ptr(), ptr::null(), run, work), 0);
        assert_eq!(libc::pthread_join(thread.assume_init(), ptr::null_mut()), 0);
    }
}

#[test]
fn a_thread_without_cells_is_counted_all_the_same() {
    alone!();
    listen();
    NEXT.store(map(0x2222_0000_0000), SeqCst);
    let service = Service::register("without cells").unwrap();
    free(alloc(&service));
    let held = AtomicPtr::new(ptr::null_mut());
    on_a_new_thread(&|| {
        refused(|| {
            for _ in 0..1000 {
                free(alloc(&service));
            }
            held.store(alloc(&service), SeqCst);
        });
        assert_eq!(figures(&service), [40_080, 1002, 40_040, 1001]);
        // Here there is memory again, and the thread gets its own cells.
        free(alloc(&service));
    });
    free(held.load(SeqCst));
    assert_eq!(figures(&service), [40_120, 1003, 40_120, 1003]);
    wait_for(SHARED, "threads", Level::WARN, 1);
}

#[test]
fn a_service_without_cells_is_counted_all_the_same() {
    alone!();
    listen();
    NEXT.store(map(0x2222_0000_0000), SeqCst);
    // The last of them stands in a chunk that no thread has touched.
    let services: Vec<Service> = (0..600).map(|i| Service::register(format!("{i}")).unwrap()).collect();
    let service = services.last().unwrap();
    free(alloc(&services[0]));
    refused(|| {
        let block = alloc(service);
        assert_eq!(figures(service), [40, 1, 0, 0]);
        free(block);
    });
    assert_eq!(figures(service), [40, 1, 40, 1]);
    free(alloc(service));
    assert_eq!(figures(service), [80, 2, 80, 2]);
    wait_for(SHARED, "threads", Level::WARN, 1);
}

#[test]
fn a_service_without_a_record_is_an_error() {
    alone!();
    NEXT.store(map(0x2222_0000_0000), SeqCst);
    // With memory-check, the place of the block's state.
    free(alloc(&Service::unattributed()));
    // Some records may be there already: a running profiler has one.
    let mut others = Vec::new();
    let name = |others: &[Service]| format!("number {}", others.len());
    let error = refused(|| {
        loop {
            match Service::register(name(&others)) {
                Ok(service) => others.push(service),
                Err(error) => break error,
            }
        }
    });
    assert_eq!(error, RegisterError::NoMemory);
    assert!(others.len() < 100_000, "{} records were there", others.len());
    assert_eq!(Service::by_name(&name(&others)), None);
    let service = Service::register(name(&others)).unwrap();
    free(alloc(&service));
    assert_eq!(figures(&service), [40, 1, 40, 1]);
}

/// Its owner is noted beside the heap, where there is no memory for that.
#[cfg(not(feature = "memory-check"))]
#[test]
fn a_large_block_without_an_owner_is_nobodys() {
    alone!();
    listen();
    NEXT.store(map(0x2222_0000_0000), SeqCst);
    let poor = Service::register("poor").unwrap();
    // What is not its own is nobody's, whose figures other threads change, too.
    let bytes = || poor.usage().bytes();
    // The thread's own part of the ledger is there already.
    free(alloc(&poor));
    // SAFETY: the layout is not empty, and blocks are freed once.
    unsafe {
        let first = poor.run(|| refused(|| ALLOC.alloc(LARGE)));
        assert!(!first.is_null());
        assert_eq!(bytes(), 0);
        let second = poor.run(|| ALLOC.alloc(LARGE));
        assert_eq!(bytes(), 8192);
        // Its owner's place has been mapped by now, with the other one's.
        ALLOC.dealloc(first, LARGE);
        assert_eq!(bytes(), 8192);

        // On to memory whose owners have no place yet; through the door, too.
        NEXT.store(map(0x3333_0000_0000), SeqCst);
        poor.set_hard_limit(Some(1 << 30));
        let grown = poor.run(|| refused(|| ALLOC.realloc(second, LARGE, 2 * LARGE.size())));
        assert_eq!(bytes(), 0);
        ALLOC.dealloc(grown, Layout::new::<[u64; 2048]>());
        assert_eq!(bytes(), 0);
    }
    assert_eq!(dogtag::snapshot().lost, dogtag::Lost::default());
    const NOBODYS: &str = "blocks were charged to nobody";
    wait_for(NOBODYS, "blocks", Level::WARN, 2);
    assert_eq!(told(NOBODYS, "total_bytes").last(), Some(&(Level::WARN, 3 * 8192)));
}

/// Its owner stands in a table by the page, for which there is no memory.
#[cfg(not(feature = "memory-check"))]
#[test]
fn a_block_without_an_owner_table_is_nobodys() {
    static TABLE: Dogtag<FarAway, OwnerTable> = Dogtag::with_backend_and_owner_table(FarAway);

    alone!();
    listen();
    NEXT.store(map(0x2222_0000_0000), SeqCst);
    let poor = Service::register("poor").unwrap();
    // The thread's own part of the ledger is there already.
    free(alloc(&poor));
    // What is not its own is nobody's, whose figures other threads change, too.
    let bytes = || poor.usage().bytes();
    // SAFETY: the layout is not empty, and blocks are freed once, with the layout that they have by then.
    unsafe {
        let first = poor.run(|| refused(|| TABLE.alloc(SMALL)));
        assert!(!first.is_null());
        assert_eq!(bytes(), 0);
        // The system is asked again now and then, not by each allocation.
        let since = Instant::now();
        REFUSED.set(0);
        REFUSES.set(true);
        let others: Vec<_> = (0..500).map(|_| poor.run(|| TABLE.alloc(SMALL))).collect();
        REFUSES.set(false);
        assert!(u64::from(REFUSED.get()) <= since.elapsed().as_secs() + 1, "{} times", REFUSED.get());
        assert!(others.iter().all(|block| !block.is_null()));
        others.into_iter().for_each(|block| TABLE.dealloc(block, SMALL));
        assert_eq!(bytes(), 0);
        sleep(Duration::from_millis(1100));
        // There is memory again: one beside it has its owner, and the first one is still nobody's.
        let second = poor.run(|| TABLE.alloc(SMALL));
        assert_eq!(bytes(), 40);
        TABLE.dealloc(first, SMALL);
        assert_eq!(bytes(), 40);
        // On to memory whose owners have no place yet, through the slow path.
        NEXT.store(map(0x3333_0000_0000), SeqCst);
        poor.set_hard_limit(Some(1 << 30));
        let grown = poor.run(|| refused(|| TABLE.realloc(second, SMALL, 80)));
        assert_eq!(bytes(), 0);
        sleep(Duration::from_millis(1100));
        let third = poor.run(|| TABLE.alloc_zeroed(SMALL));
        assert_eq!(bytes(), 40);
        TABLE.dealloc(grown, Layout::new::<[u64; 10]>());
        TABLE.dealloc(third, SMALL);
        assert_eq!(bytes(), 0);
    }
    assert_eq!(dogtag::snapshot().lost, dogtag::Lost::default());
    const NOBODYS: &str = "blocks were charged to nobody";
    wait_for(NOBODYS, "blocks", Level::WARN, 502);
    assert_eq!(told(NOBODYS, "total_bytes").last(), Some(&(Level::WARN, 501 * 40 + 80)));
}

/// What memory-check knows of a block stands beside the heap, too.
#[cfg(feature = "memory-check")]
#[test]
fn a_block_without_a_state_is_null() {
    alone!();
    NEXT.store(map(0x2222_0000_0000), SeqCst);
    let service = Service::register("without a state").unwrap();
    // The thread's own part of the ledger is there already.
    drop(service.run(|| std::hint::black_box(Box::new(0_u64))));
    assert!(refused(|| alloc(&service)).is_null());
    assert_eq!(figures(&service), [8, 1, 8, 1]);
    let block = alloc(&service);
    NEXT.store(map(0x3333_0000_0000), SeqCst);
    // SAFETY: a live block.
    let grown = service.run(|| refused(|| unsafe { ALLOC.realloc(block, SMALL, 100) }));
    assert!(grown.is_null());
    assert_eq!(figures(&service), [48, 2, 8, 1]);
    // Freed without a quarantine, unless that is there already.
    REFUSES.set(true);
    free(block);
    REFUSES.set(false);
    assert_eq!(figures(&service), [48, 2, 48, 2]);
}

/// Hands out one stretch of memory after the other, far from everything else.
struct FarAway;

static NEXT: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

// SAFETY: what is handed out is part of a mapping, and never handed out again.
unsafe impl GlobalAlloc for FarAway {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size().next_multiple_of(64);
        let next = |block: *mut u8| Some(block.wrapping_add(size));
        NEXT.fetch_update(SeqCst, SeqCst, next).unwrap()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

/// Maps memory where nobody else has any.
fn map(address: usize) -> *mut u8 {
    const LENGTH: usize = 1 << 20;

    let far_away = ptr::without_provenance_mut(address);
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: maps fresh memory, there if nothing else is.
    let memory = unsafe { mmap(far_away, LENGTH, protection, flags, -1, 0) };
    assert_eq!(memory, far_away);
    memory.cast()
}
