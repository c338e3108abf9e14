//! Where a block's owner is kept. Other modules do not depend on it: they ask for the layout
//! to request from the backend, and write or read an owner.
//!
//! (With memory-check owners are kept elsewhere: `check::block`.)
//!
//! With an [owner table](table), [chosen by type](place), all owners stand there, by the page.
//!
//! Otherwise, for backends without fields a map beside the heap has the owners of [large](page_map) blocks.
//! Each other block has a [`cookie`] right behind it, at `ptr + layout.size()`,
//! unaligned. So the block's own alignment is never disturbed, and the first byte
//! past its end is ours: an overrun of a single byte changes the cookie before it
//! changes a neighbour. The idea is skynet's, which kept a handle and, when
//! checking, a magic word at the end of the usable size.

mod cookie;
mod page_map;
mod place;
mod slot;
mod table;
#[cfg(not(feature = "memory-check"))]
pub mod unsized_free;

use cookie::{LONG, SHORT};
#[cfg(not(feature = "memory-check"))]
pub use page_map::LARGE;
pub use place::{Cookies, OwnerPlace, OwnerTable};
pub use slot::{Mark, Named, SampleId, Slot};
use std::alloc::Layout;

/// Whether the process has an instance with an owner table.
pub(crate) fn has_table() -> bool {
    table::is_used()
}

/// Where the blocks of an allocator have their owners.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    /// Whether all of them have it in the [`table`].
    is_table: bool,
    /// Of others, from which size on they have it in the [`page_map`].
    large: usize,
}

impl Placement {
    /// The placement for blocks from a backend.
    ///
    /// Beside the heap there is one place for an address. A backend with fields may
    /// be an arena in a block of another instance, whose owner stands there already;
    /// so all of its blocks have cookies, and it cannot have a table (or does not compile).
    pub(crate) const fn of<B, P: OwnerPlace>() -> Self {
        assert!(!P::IS_TABLE || size_of::<B>() == 0, "an owner table is for backends without fields");
        Self { is_table: P::IS_TABLE, large: if size_of::<B>() == 0 { page_map::LARGE } else { usize::MAX } }
    }

    /// Whether the owners of all blocks stand in the table, by the page.
    #[inline(always)]
    pub(crate) const fn is_table(self) -> bool {
        self.is_table
    }

    /// Whether the owner of a block of that size stands in the map of large blocks.
    #[inline(always)]
    pub(crate) const fn is_large(self, size: usize) -> bool {
        !self.is_table && size >= self.large
    }

    /// Whether blocks of that size have no cookie.
    #[inline(always)]
    pub(crate) const fn is_beside(self, size: usize) -> bool {
        self.is_table || self.is_large(size)
    }

    /// The layout to request for a block, or `None` when it would overflow.
    pub(crate) fn layout(self, block: Layout, named: Named) -> Option<Layout> {
        if self.is_beside(block.size()) {
            return Some(block);
        }
        let size = block.size().checked_add(named.cookie_size())?;
        Layout::from_size_align(size, block.align()).ok()
    }

    /// The layout to request for a block of a short slot, without a check for overflow.
    ///
    /// # Safety
    ///
    /// `block.size()` must be less than [`UNCHECKED_SIZES`].
    #[inline(always)]
    pub(crate) unsafe fn short_layout(self, block: Layout) -> Layout {
        if self.is_beside(block.size()) {
            return block;
        }
        debug_assert!((block.size() as u64) < UNCHECKED_SIZES);
        // SAFETY: rounded up to the alignment, the size must stay below
        // `isize::MAX`. Alignments go up to 2^62 for blocks that are not empty, so
        // a size below 2^61 leaves enough for its cookie.
        unsafe { Layout::from_size_align_unchecked(block.size() + SHORT, block.align()) }
    }

    /// Variant of [`short_layout`](Self::short_layout) for a long slot.
    ///
    /// # Safety
    ///
    /// `block.size()` must be less than [`UNCHECKED_SIZES`], or `layout` must have returned a layout for the block.
    #[inline(always)]
    pub(crate) unsafe fn long_layout(self, block: Layout) -> Layout {
        if self.is_beside(block.size()) {
            return block;
        }
        // SAFETY: as in `short_layout`; there is as much space for six bytes as for two.
        unsafe { Layout::from_size_align_unchecked(block.size() + LONG, block.align()) }
    }

    /// Notes the owner of a block. `false` if the system gives no memory for that,
    /// which never happens to cookies; then it is the unattributed service's.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writes of what [`layout`](Self::layout) says for
    /// `named`.
    #[must_use]
    pub(crate) unsafe fn write(self, ptr: *mut u8, size: usize, named: Named) -> bool {
        if self.is_table {
            return table::write(ptr, named);
        }
        if self.is_large(size) {
            return page_map::write(ptr, named);
        }
        // SAFETY: `layout` asked for the cookie's bytes too, and `ptr` is valid for writes of it.
        unsafe { cookie::write(ptr, size, named) };
        true
    }

    /// Notes the owner of a block by its mark, if its slot is a short one. `false` as in
    /// [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writes of what [`short_layout`](Self::short_layout)
    /// says.
    #[inline(always)]
    #[must_use]
    pub(crate) unsafe fn write_short(self, ptr: *mut u8, size: usize, mark: Mark) -> bool {
        if self.is_table {
            return table::write_short(ptr, mark);
        }
        if self.is_large(size) {
            return page_map::write_short(ptr, mark);
        }
        // SAFETY: `short_layout` asked for the cookie's bytes too, and `ptr` is valid for writes of it.
        unsafe { cookie::write_short(ptr, size, mark) };
        true
    }

    /// Notes the owner of a block, a long slot. `false` as in [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writes of what [`long_layout`](Self::long_layout) says.
    #[inline(always)]
    #[must_use]
    pub(crate) unsafe fn write_long(self, ptr: *mut u8, size: usize, slot: Slot) -> bool {
        debug_assert!(!slot.is_short());
        if self.is_beside(size) {
            // SAFETY: nothing is written at `ptr`.
            return unsafe { self.write(ptr, size, slot.into()) };
        }
        // SAFETY: `long_layout` asked for the cookie's bytes too, and `ptr` is valid for writes of it.
        unsafe { cookie::write_long(ptr, size, slot) };
        true
    }

    /// Reads the owner of a block if it is a long slot, which need not be in use.
    ///
    /// # Safety
    ///
    /// `ptr` must be a live block of `size` bytes.
    #[inline(always)]
    pub(crate) unsafe fn read_long(self, ptr: *const u8, size: usize) -> Option<Slot> {
        if self.is_beside(size) {
            // SAFETY: the caller's block.
            return match unsafe { self.read(ptr, size) } {
                Some(Named::Slot(slot)) if !slot.is_short() => Some(slot),
                _ => None,
            };
        }
        // SAFETY: the block is live, and has a cookie behind it.
        unsafe { cookie::read_long(ptr, size) }
    }

    /// Reads of a block what mostly is its mark: with a table, it is if all of its page has one owner. Otherwise it is
    /// one that no cell has, and [`FirstMark::mark_after`] reads on.
    ///
    /// # Safety
    ///
    /// `ptr` must be a live block of `size` bytes. With a table it may also be none of ours, or null.
    #[inline(always)]
    pub(crate) unsafe fn first_mark(self, ptr: *const u8, size: usize) -> FirstMark {
        if self.is_table {
            let sight = table::Sight::of(ptr);
            return FirstMark { mark: sight.mark_of_page(), sight: Some(sight) };
        }
        // SAFETY: the caller's block.
        FirstMark { mark: unsafe { self.read_mark(ptr, size) }, sight: None }
    }

    /// Reads the mark of a block: the owner's, if its slot is a short one; none that a
    /// cell has, if it is a long one or the block is sampled.
    ///
    /// # Safety
    ///
    /// `ptr` must be a live block of `size` bytes.
    #[inline(always)]
    pub(crate) unsafe fn read_mark(self, ptr: *const u8, size: usize) -> Mark {
        if self.is_table {
            return table::read_mark(ptr);
        }
        if self.is_large(size) {
            return page_map::read_mark(ptr);
        }
        // SAFETY: the block is live, and one that is not large has a cookie behind it.
        unsafe { cookie::read_mark(ptr, size) }
    }

    /// Reads the owner of a block or its sample: a slot, which need not be in use, a sample, which need
    /// not be this block's, or `None` where no cookie looks like that, because something overwrote it.
    ///
    /// # Safety
    ///
    /// `ptr` must be a live block of `size` bytes.
    pub(crate) unsafe fn read(self, ptr: *const u8, size: usize) -> Option<Named> {
        if self.is_table {
            return table::read(ptr);
        }
        if self.is_large(size) {
            return page_map::read(ptr);
        }
        // SAFETY: the block is live, and one that is not large has a cookie behind it.
        unsafe { cookie::read(ptr, size) }
    }

    /// The layout that was requested for a block whose cookie is unbelievable;
    /// `None` when it cannot be known, because long cookies are about.
    pub(crate) fn layout_without_cookie(self, block: Layout) -> Option<Layout> {
        if cookie::long_ones_exist() && !self.is_beside(block.size()) {
            return None;
        }
        self.layout(block, Slot::UNATTRIBUTED.into())
    }
}

/// What was read of a block first.
#[derive(Clone, Copy)]
pub(crate) struct FirstMark {
    mark: Mark,
    sight: Option<table::Sight>,
}

impl FirstMark {
    /// The mark of the block, or one that no cell has.
    #[inline(always)]
    pub(crate) fn mark(self) -> Mark {
        self.mark
    }

    /// Notes the owner of a new block by its mark, where a table has it and the block's page is mixed already.
    #[inline(always)]
    pub(crate) fn write_in_mixed(self, ptr: *mut u8, mark: Mark) -> bool {
        self.sight.is_some_and(|sight| sight.write_in_mixed(ptr, mark))
    }

    /// The mark of the block that was looked at, as [`Placement::read_mark`].
    #[inline(always)]
    pub(crate) fn mark_after(self, ptr: *const u8) -> Mark {
        self.sight.map_or(self.mark, |sight| sight.mark(ptr))
    }
}

/// Below this many bytes a short cookie always fits behind a block, whatever
/// its alignment: 2^61.
pub(crate) const UNCHECKED_SIZES: u64 = 1 << 61;

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    /// Cookies behind every block.
    const COOKIES: Placement = Placement::of::<u8, Cookies>();

    fn written(named: impl Into<Named>, size: usize) -> Vec<u8> {
        let mut memory = vec![0xAA; size + LONG];
        // SAFETY: the vector holds the longest cookie behind the block.
        assert!(unsafe { COOKIES.write(memory.as_mut_ptr(), size, named.into()) });
        memory
    }

    fn owner(memory: &[u8], size: usize) -> Option<Named> {
        // SAFETY: `written` left a cookie behind the first `size` bytes.
        unsafe { COOKIES.read(memory.as_ptr(), size) }
    }

    fn long_owner(memory: &[u8], size: usize) -> Option<Slot> {
        // SAFETY: `written` left a cookie behind the first `size` bytes.
        unsafe { COOKIES.read_long(memory.as_ptr(), size) }
    }

    #[test]
    fn every_slot_reads_back_at_every_size() {
        for index in (0..70_000).chain([1 << 20, Slot::COUNT - 1]) {
            let Some(slot) = Slot::new(index) else { continue };
            for size in [1, 2, 7, 8, 63] {
                let memory = written(slot, size);
                assert_eq!(owner(&memory, size), Some(slot.into()));
                assert_eq!(long_owner(&memory, size), (!slot.is_short()).then_some(slot));
                assert!(memory[..size].iter().all(|&byte| byte == 0xAA), "the block is touched");
                let block = Layout::from_size_align(size, 1).unwrap();
                let outer = COOKIES.layout(block, slot.into()).unwrap();
                let cookie = outer.size() - size;
                // The shorter way.
                if !slot.is_short() {
                    let mut short_cut = vec![0xAA; size + LONG];
                    // SAFETY: the vector holds the longest cookie behind the block.
                    unsafe {
                        assert!(COOKIES.write_long(short_cut.as_mut_ptr(), size, slot));
                        assert_eq!(COOKIES.long_layout(block), outer);
                    }
                    assert_eq!(short_cut, memory);
                }
                assert!(memory[size + cookie..].iter().all(|&byte| byte == 0xAA), "written past");
            }
        }
    }

    #[test]
    fn every_sample_reads_back_and_is_no_slot() {
        for index in [0, 1, 65_535, 65_536, SampleId::COUNT - 1] {
            let sample = Named::Sample(SampleId::new(index).unwrap());
            for size in [1, 2, 7, 8, 63] {
                let memory = written(sample, size);
                assert_eq!(owner(&memory, size), Some(sample));
                assert_eq!(long_owner(&memory, size), None);
                // Its free leaves the hot path.
                // SAFETY: `written` left a cookie behind the first `size` bytes.
                assert_eq!(unsafe { COOKIES.read_mark(memory.as_ptr(), size) }, Mark::LONG);
            }
        }
        assert_eq!(SampleId::new(SampleId::COUNT), None);
    }

    #[test]
    fn reserved_marks_are_no_slots() {
        let usable = (0..=u32::from(u16::MAX)).filter_map(Slot::new).count();
        assert_eq!(usable, 65_533);
        assert_eq!(Slot::new(Slot::COUNT), None);
        for overwritten in [[0, 0], [0xff, 0xff]] {
            let mut memory = written(Slot::UNATTRIBUTED, 8);
            memory[8..10].copy_from_slice(&overwritten);
            assert_eq!(owner(&memory, 8), None);
        }
    }

    #[test]
    fn a_single_byte_past_the_end_is_no_other_slot_of_the_first_256() {
        for index in 0..256 {
            for byte in 0..=u8::MAX {
                let slot = Slot::new(index).unwrap();
                let mut memory = written(slot, 8);
                memory[8] = byte;
                if let Some(Named::Slot(read)) = owner(&memory, 8) {
                    assert!(read == slot || read.index() >= 256, "{byte:#x}");
                }
            }
        }
    }

    #[test]
    fn a_long_cookie_with_a_broken_slot_is_not_believed() {
        let slot = Slot::new(70_000).unwrap();
        for byte in [13, 11] {
            let mut memory = written(slot, 8);
            memory[byte] ^= 0x41;
            memory[12] = 0;
            assert_eq!(owner(&memory, 8), None, "byte {byte}");
            assert_eq!(long_owner(&memory, 8), None, "byte {byte}");
        }
    }

    #[test]
    fn layouts_that_overflow_are_refused() {
        let layout = |block, slot: Slot| COOKIES.layout(block, slot.into());
        let largest = Layout::from_size_align(isize::MAX as usize, 1).unwrap();
        assert_eq!(layout(largest, Slot::UNATTRIBUTED), None);
        let roomy = Layout::from_size_align(isize::MAX as usize - SHORT, 1).unwrap();
        assert!(layout(roomy, Slot::UNATTRIBUTED).is_some());
        assert_eq!(layout(roomy, Slot::new(70_000).unwrap()), None);
        let aligned = Layout::from_size_align((1 << 62) - 1, 1 << 62).unwrap();
        assert_eq!(layout(aligned, Slot::UNATTRIBUTED), None);
    }

    #[test]
    fn unchecked_layouts_are_valid_at_every_alignment() {
        let size = UNCHECKED_SIZES as usize - 1;
        for shift in 0..=62 {
            let block = Layout::from_size_align(size, 1 << shift).unwrap();
            assert!(COOKIES.layout(block, Slot::UNATTRIBUTED.into()).is_some(), "align 2^{shift}");
        }
    }

    #[test]
    fn large_blocks_of_backends_without_fields_have_no_cookie() {
        let block = Layout::from_size_align(page_map::LARGE, 1).unwrap();
        for slot in [Slot::UNATTRIBUTED, Slot::new(70_000).unwrap()] {
            assert_eq!(Placement::of::<(), Cookies>().layout(block, slot.into()), Some(block));
            assert_ne!(Placement::of::<u8, Cookies>().layout(block, slot.into()), Some(block));
        }
    }
}
