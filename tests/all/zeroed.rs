//! Zeroed memory that nobody writes to costs no page, in a process of its own:
//! memory that was used before has to be cleared.

use std::alloc::{Layout, alloc_zeroed};

#[test]
fn zeroed_memory_is_not_touched() {
    alone!();
    const SIZE: usize = 1 << 20;

    // SAFETY: only says that a touched page shall stay one page.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    for _ in 0..32 {
        let layout = Layout::from_size_align(SIZE, 1).unwrap();
        // SAFETY: the layout is not empty.
        let block = unsafe { alloc_zeroed(layout) };
        let first = block as usize / page * page;
        let pages = (block as usize + SIZE).div_ceil(page) - first / page;
        let mut resident = vec![0_u8; pages];
        // SAFETY: the range covers the block, which is mapped, and `resident`
        // has a byte for each of its pages.
        let error = unsafe { libc::mincore(first as *mut libc::c_void, pages * page, resident.as_mut_ptr()) };
        assert_eq!(error, 0);
        let touched = resident.iter().filter(|&&resident| resident & 1 != 0).count();
        // One that a neighbour may have used, or what stands around a checked block.
        let most = if cfg!(feature = "memory-check") { 2 } else { 1 };
        assert!(touched <= most, "{touched} of {pages} pages are touched");
        // The block is kept, so that the next one is fresh memory too.
    }
}
