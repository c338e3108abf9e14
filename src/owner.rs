//! Where a block's owner is kept. No other room knows: they ask for the layout
//! to request from the backend, and write or read an owner.
//!
//! (With memory-check owners are kept elsewhere: `check::block`.)
//!
//! That of a [large](page_map) block stands in a table beside the heap, for most backends.
//! That of any other stands in a *cookie* right behind the block, at `ptr + layout.size()`,
//! unaligned. So the block's own alignment is never disturbed, and the first byte
//! past its end is ours: an overrun of a single byte changes the cookie before it
//! changes a neighbour. The idea is skynet's, which kept a handle and, when
//! checking, a dogtag at the end of the usable size.
//!
//! ```text
//! short   | the block: layout.size() bytes | mark |               slots below 65,536
//!                                           2 bytes
//! long    | the block: layout.size() bytes | escape | slot, tag |  all others
//!                                           2 bytes   4 bytes
//! ```
//!
//! A short cookie is the slot, its higher byte first, scrambled so that what an
//! overrun is likely to leave there (zeros, ones, text, small numbers) is
//! unlikely to be a slot in use: with fewer than 256 services a single byte
//! that is written past the end never is one. A long one begins with a mark
//! that no slot has: services beyond the first 65,533 cost four more bytes a
//! block, and nobody else pays for them. Once there are so many, though, nearly
//! every short mark is somebody's, and an overwritten cookie is believed.

mod page_map;
#[cfg(all(feature = "capi", not(feature = "memory-check")))]
pub(crate) mod unsized_free;

use crate::sync::{AtomicBool, Ordering, shared};
#[cfg(all(feature = "capi", not(feature = "memory-check")))]
pub(crate) use page_map::LARGE;
use std::alloc::Layout;

/// The dense index behind a service's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(u32);

impl Slot {
    /// Where memory goes that nobody claims.
    pub(crate) const UNATTRIBUTED: Self = Self(0);

    /// How many slots there can be: what a long cookie has room for.
    pub(crate) const COUNT: u32 = 1 << 24;

    /// How many of them have short cookies: the first.
    pub(crate) const SHORT_COUNT: usize = 1 << 16;

    /// The slot of that index; `None` past the end and for the few indexes
    /// whose mark is reserved.
    pub(crate) const fn new(index: u32) -> Option<Self> {
        let scrambled = index ^ SCRAMBLE;
        if index >= Self::COUNT || scrambled == ZEROS || scrambled == ONES || scrambled == ESCAPE as u32 {
            return None;
        }
        Some(Self(index))
    }

    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    /// What a block of this slot is marked with.
    #[inline]
    pub(crate) const fn mark(self) -> Mark {
        if !self.is_short() {
            return Mark::LONG;
        }
        let [.., higher, lower] = (self.0 ^ SCRAMBLE).to_be_bytes();
        Mark::from_cookie([higher, lower])
    }

    /// The short slot whose blocks have that mark.
    const fn of_mark(mark: Mark) -> Option<Self> {
        Self::new(u16::from_be_bytes(mark.to_cookie()) as u32 ^ SCRAMBLE)
    }

    /// A long slot's number, as it is kept with a block.
    const fn tagged(self) -> u32 {
        self.0 | TAG
    }

    const fn of_tagged(tagged: u32) -> Option<Self> {
        let index = tagged & INDEX;
        if tagged & !INDEX != TAG || index <= u16::MAX as u32 { None } else { Self::new(index) }
    }

    /// Whether its blocks need no more than a short cookie.
    #[inline]
    pub(crate) const fn is_short(self) -> bool {
        self.index() < Self::SHORT_COUNT
    }

    /// The bytes that a cookie of this slot has.
    pub(crate) const fn cookie_size(self) -> usize {
        if self.is_short() { SHORT } else { LONG }
    }
}

/// The first two bytes of a cookie, as a number that is never 0: so a cell of
/// zeroed memory, which nobody has claimed, has no cookie's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u32);

impl Mark {
    /// What no cookie reads as.
    pub(crate) const NONE: Self = Self(0);

    /// What every block of a slot beyond the short ones is marked with.
    pub(crate) const LONG: Self = Self::from_cookie(ESCAPE.to_be_bytes());

    const fn from_cookie(bytes: [u8; SHORT]) -> Self {
        Self(FROM_COOKIE | u16::from_ne_bytes(bytes) as u32)
    }

    const fn to_cookie(self) -> [u8; SHORT] {
        (self.0 as u16).to_ne_bytes()
    }

    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// The two bytes of the cookie, as indexes: of a chunk of 256 slots that
    /// are close together, and in it.
    #[inline(always)]
    pub(crate) const fn position(self) -> (usize, usize) {
        let [chunk, cell] = self.to_cookie();
        (chunk as usize, cell as usize)
    }
}

/// Which blocks of an allocator have their owner beside the heap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    large: usize,
}

impl Placement {
    /// That of blocks from a backend.
    ///
    /// Beside the heap there is one place for an address. A backend with fields may
    /// be an arena in a block of another instance, whose owner stands there already;
    /// so all of its blocks have cookies.
    pub(crate) const fn of<B>() -> Self {
        Self { large: if size_of::<B>() == 0 { page_map::LARGE } else { usize::MAX } }
    }

    /// Whether the owner of a block of that size stands beside the heap.
    #[inline(always)]
    pub(crate) const fn is_large(self, size: usize) -> bool {
        size >= self.large
    }

    /// The layout to request for a block of `slot`, or `None` when it would
    /// overflow.
    pub(crate) fn layout(self, block: Layout, slot: Slot) -> Option<Layout> {
        if self.is_large(block.size()) {
            return Some(block);
        }
        let size = block.size().checked_add(slot.cookie_size())?;
        Layout::from_size_align(size, block.align()).ok()
    }

    /// The same for a short slot.
    ///
    /// # Safety
    ///
    /// `block.size()` must be less than [`UNCHECKED_SIZES`].
    #[inline(always)]
    pub(crate) unsafe fn short_layout(self, block: Layout) -> Layout {
        if self.is_large(block.size()) {
            return block;
        }
        // SAFETY: rounded up to the alignment, the size must stay below
        // `isize::MAX`. Alignments go up to 2^62 for blocks that are not empty, so
        // a size below 2^61 has room for its cookie and then some.
        unsafe { Layout::from_size_align_unchecked(block.size() + SHORT, block.align()) }
    }

    /// Notes the owner of a block. `false` if the system gives no memory for that,
    /// which happens to large blocks only; then it is the unattributed service's.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writes of what [`layout`](Self::layout) says for
    /// `slot`.
    #[must_use]
    pub(crate) unsafe fn write(self, ptr: *mut u8, size: usize, slot: Slot) -> bool {
        if self.is_large(size) {
            return page_map::write(ptr, slot);
        }
        // SAFETY: the mark is the first two bytes of a short and of a long cookie.
        unsafe { write_cookie(ptr, size, slot.mark()) };
        if !slot.is_short() {
            if !long_cookies_exist() {
                LONG_COOKIES_EXIST.store(true, Ordering::Relaxed);
            }
            // SAFETY: a long slot's layout has room for four more bytes.
            unsafe { ptr.add(size + SHORT).cast::<u32>().write_unaligned(slot.tagged()) };
        }
        true
    }

    /// The same for a short slot.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writes of what [`short_layout`](Self::short_layout)
    /// says.
    #[inline(always)]
    #[must_use]
    pub(crate) unsafe fn write_short(self, ptr: *mut u8, size: usize, mark: Mark) -> bool {
        if self.is_large(size) {
            return page_map::write_short(ptr, mark);
        }
        // SAFETY: the caller's promise.
        unsafe { write_cookie(ptr, size, mark) };
        true
    }

    /// Reads the mark of a block: the owner's, if its slot is a short one; none that a
    /// cell has, if it is a long one.
    ///
    /// # Safety
    ///
    /// `ptr` must be a live block of `size` bytes.
    #[inline(always)]
    pub(crate) unsafe fn read_mark(self, ptr: *const u8, size: usize) -> Mark {
        if self.is_large(size) {
            return page_map::read_mark(ptr);
        }
        // SAFETY: the caller's promise.
        unsafe { read_cookie(ptr, size) }
    }

    /// Reads the owner of a block: a slot, which need not be in use, or `None`
    /// where no slot's cookie looks like that, because something overwrote it.
    ///
    /// # Safety
    ///
    /// `ptr` must be a live block of `size` bytes.
    pub(crate) unsafe fn read(self, ptr: *const u8, size: usize) -> Option<Slot> {
        if self.is_large(size) {
            return page_map::read(ptr);
        }
        // SAFETY: the caller's promise.
        let mark = unsafe { read_cookie(ptr, size) };
        if mark != Mark::LONG {
            return Slot::of_mark(mark);
        }
        if !long_cookies_exist() {
            return None;
        }
        // SAFETY: a long cookie has four more bytes. Only a short one that was
        // overwritten with the very bytes of the escape has none, in a process
        // with more services than short slots; then this reads what follows in
        // the heap, after undefined behaviour elsewhere.
        Slot::of_tagged(unsafe { ptr.add(size + SHORT).cast::<u32>().read_unaligned() })
    }

    /// The layout that was requested for a block whose cookie is unbelievable;
    /// `None` when it cannot be known, because long cookies are about.
    pub(crate) fn layout_without_cookie(self, block: Layout) -> Option<Layout> {
        if long_cookies_exist() && !self.is_large(block.size()) {
            return None;
        }
        self.layout(block, Slot::UNATTRIBUTED)
    }
}

/// Below this many bytes a short cookie always fits behind a block, whatever
/// its alignment: 2^61.
pub(crate) const UNCHECKED_SIZES: u64 = 1 << 61;

/// # Safety
///
/// `ptr` must be valid for writes of a short cookie behind `size` bytes.
#[inline(always)]
unsafe fn write_cookie(ptr: *mut u8, size: usize, mark: Mark) {
    // SAFETY: the caller's promise.
    unsafe { ptr.add(size).cast::<[u8; SHORT]>().write_unaligned(mark.to_cookie()) };
}

/// # Safety
///
/// `ptr` must be a live block of `size` bytes with a cookie behind it.
#[inline(always)]
unsafe fn read_cookie(ptr: *const u8, size: usize) -> Mark {
    // SAFETY: a cookie is at least two bytes, and they were written before the
    // block was handed out; an overrun leaves other bytes there, no fewer.
    Mark::from_cookie(unsafe { ptr.add(size).cast::<[u8; SHORT]>().read_unaligned() })
}

fn long_cookies_exist() -> bool {
    LONG_COOKIES_EXIST.load(Ordering::Relaxed)
}

shared! {
    /// Set before the first long cookie is written, and never taken back. Who
    /// meets one got its block from who wrote it, and so sees this set.
    static LONG_COOKIES_EXIST: AtomicBool = AtomicBool::new(false);
}

/// Bytes of a short cookie.
const SHORT: usize = size_of::<u16>();
/// Bytes of a long cookie.
const LONG: usize = SHORT + size_of::<u32>();

/// Set in every mark, and in no unclaimed cell.
const FROM_COOKIE: u32 = 1 << 16;
/// The mark that a long cookie begins with.
const ESCAPE: u16 = 0xE5CA;
/// What cookies are scrambled with.
const SCRAMBLE: u32 = 0xD07A;
/// The two commonest overwrites are no slot's cookie.
const ZEROS: u32 = 0;
const ONES: u32 = 0xffff;
/// The part of a long cookie that is the slot, and what the rest must be.
const INDEX: u32 = Slot::COUNT - 1;
const TAG: u32 = 0x14 << 24;

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    /// Cookies behind every block.
    const COOKIES: Placement = Placement { large: usize::MAX };

    fn written(slot: Slot, size: usize) -> Vec<u8> {
        let mut memory = vec![0xAA; size + LONG];
        // SAFETY: the vector has room for the longest cookie behind the block.
        assert!(unsafe { COOKIES.write(memory.as_mut_ptr(), size, slot) });
        memory
    }

    fn owner(memory: &[u8], size: usize) -> Option<Slot> {
        // SAFETY: `written` left a cookie behind the first `size` bytes.
        unsafe { COOKIES.read(memory.as_ptr(), size) }
    }

    #[test]
    fn every_slot_reads_back_at_every_size() {
        for index in (0..70_000).chain([1 << 20, Slot::COUNT - 1]) {
            let Some(slot) = Slot::new(index) else { continue };
            for size in [1, 2, 7, 8, 63] {
                let memory = written(slot, size);
                assert_eq!(owner(&memory, size), Some(slot));
                assert!(memory[..size].iter().all(|&byte| byte == 0xAA), "the block is touched");
                let block = Layout::from_size_align(size, 1).unwrap();
                let cookie = COOKIES.layout(block, slot).unwrap().size() - size;
                assert!(memory[size + cookie..].iter().all(|&byte| byte == 0xAA), "written past");
            }
        }
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
                if let Some(read) = owner(&memory, 8) {
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
        }
    }

    #[test]
    fn layouts_that_overflow_are_refused() {
        let layout = |block, slot| COOKIES.layout(block, slot);
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
            assert!(COOKIES.layout(block, Slot::UNATTRIBUTED).is_some(), "align 2^{shift}");
        }
    }

    #[test]
    fn large_blocks_of_backends_without_fields_have_no_cookie() {
        let block = Layout::from_size_align(page_map::LARGE, 1).unwrap();
        for slot in [Slot::UNATTRIBUTED, Slot::new(70_000).unwrap()] {
            assert_eq!(Placement::of::<()>().layout(block, slot), Some(block));
            assert_ne!(Placement::of::<u8>().layout(block, slot), Some(block));
        }
    }
}
