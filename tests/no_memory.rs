//! Where the system has no memory left for the owner of a large block, the
//! unattributed service gets it. In a process of its own, whose limits it lowers.
#![cfg(all(target_os = "linux", not(feature = "memory-check")))]

use dogtag::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

const SIZE: usize = 8192;
const LAYOUT: Layout = Layout::new::<[u8; SIZE]>();

/// Hands out one stretch of memory after the other, far from everything else.
struct FarAway;

static NEXT: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

// SAFETY: what is handed out is part of a mapping, and never handed out again.
unsafe impl GlobalAlloc for FarAway {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let next = |block: *mut u8| Some(block.wrapping_add(layout.size()));
        NEXT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).unwrap()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

/// Not the global allocator, so that nothing else runs out of memory.
static ALLOC: Dogtag<FarAway> = Dogtag::with_backend(FarAway);

fn let_grow(bytes: libc::rlim_t) {
    // SAFETY: the limits are read and written whole.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_AS, &raw mut limit), 0);
        limit.rlim_cur = bytes.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const limit), 0);
    }
}

/// Maps memory where nobody else has any.
fn map(address: usize) -> *mut u8 {
    let far_away = ptr::without_provenance_mut(address);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: maps fresh memory, there if nothing else is.
    let memory = unsafe { libc::mmap(far_away, 64 * SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_eq!(memory, far_away);
    memory.cast()
}

#[test]
fn a_large_block_whose_owner_cannot_be_noted_is_unattributed() {
    NEXT.store(map(0x2222_0000_0000), Ordering::SeqCst);

    let poor = Service::register("poor").unwrap();
    let unattributed = Service::unattributed();
    let usages = || (poor.usage().bytes(), unattributed.usage().bytes());
    // The thread's own part of the ledger is there already.
    // SAFETY: the layout is not empty.
    let small = poor.run(|| unsafe { ALLOC.alloc(Layout::new::<u64>()) });
    let before = usages();

    let scope = poor.enter();
    let_grow(1);
    // SAFETY: the layout is not empty.
    let first = unsafe { ALLOC.alloc(LAYOUT) };
    let_grow(libc::RLIM_INFINITY);
    assert!(!first.is_null());
    // The tests' own allocator is not this one, and its blocks are nobody's.
    assert_eq!(usages(), (before.0, before.1 + SIZE as u64));

    // SAFETY: as above, and each block is freed once.
    unsafe {
        let second = ALLOC.alloc(LAYOUT);
        assert_eq!(usages(), (before.0 + SIZE as u64, before.1 + SIZE as u64));
        // Its owner's place has been mapped by now, with the other one's.
        ALLOC.dealloc(first, LAYOUT);
        assert_eq!(usages(), (before.0 + SIZE as u64, before.1));

        // On to memory whose owners have no place yet; through the door, too.
        NEXT.store(map(0x3333_0000_0000), Ordering::SeqCst);
        poor.set_hard_limit(Some(1 << 30));
        let_grow(1);
        let grown = ALLOC.realloc(second, LAYOUT, 2 * SIZE);
        let_grow(libc::RLIM_INFINITY);
        assert_eq!(usages(), (before.0, before.1 + 2 * SIZE as u64));
        ALLOC.dealloc(grown, Layout::new::<[u8; 2 * SIZE]>());
        ALLOC.dealloc(small, Layout::new::<u64>());
    }
    drop(scope);
    assert_eq!(usages(), (0, before.1));
    assert_eq!(dogtag::snapshot().lost, dogtag::Lost::default());
}
