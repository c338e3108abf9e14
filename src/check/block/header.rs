//! What stands in front of a block, and tells whether it is still as it was written.

use super::stamp::{SLOTS, Stamp, Who};
use super::{
    ALIGN, Family, GUARD, HEAD, LARGE, LEAST_TAIL, MOST_TAIL, PAGE, Tag, large_tail, mix, offset, offset_of,
    write_guards,
};
use crate::owner::{SampleId, Slot};
use std::alloc::Layout;
use std::ptr::NonNull;

/// What is known of a block, as it stands in front of it: whole words, since
/// all of them are read and written on every allocation and free.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockHeader {
    /// [`Who`] freed the block; of a live one, its sample, counted from 1, or zeros.
    freed: u64,
    /// The call stack of the allocation (24 bits), how many bytes are looked at behind the block (8), and the
    /// call stack of the free (32).
    traces: u64,
    /// A checksum over the address and what is known of the live block, mixed with the magic word.
    sealed: u64,
    /// The size (48 bits), and by how much the block was larger once, when its memory was
    /// requested (16): from [`MUCH`] on, that stands behind the guard.
    size: u64,
    /// Who allocated it: as `freed`.
    allocated: u64,
    /// Two flags, milliseconds (38 bits), the family (2), the alignment's logarithm (6), the instance (16).
    packed: u64,
}

/// The flag of a block whose guard begins with the zero that ends a text.
const ZERO_FIRST: u64 = 1 << 63;
/// The flag of a block that was large when its memory was requested.
const OWN_PAGES: u64 = 1 << 62;

/// What a size fits into, as addresses do.
const SIZE: u32 = 48;
pub(super) const SIZES: u64 = (1 << SIZE) - 1;
/// What stands for all that a block can be smaller by than it was, from this on.
const MUCH: u64 = u64::MAX >> SIZE;

/// How many bytes are looked at behind a block, as it stands above the number of a call stack: so many more than
/// the least, or those of a large block, or of one that has shrunk in its place.
const SHRUNK: u32 = 0xff;
const TO_END_OF_PAGE: u32 = 0xfe;
/// None at all: behind the block is a page without access.
const ZERO_SIZED: u32 = 0xfd;
const _: () = assert!(MOST_TAIL - LEAST_TAIL < ZERO_SIZED as usize);
/// What the number of an allocation's call stack fits into.
const TRACE: u32 = 24;
const TRACES: u32 = (1 << TRACE) - 1;

#[inline]
fn with_trace(tail: u32, trace: u32) -> u64 {
    u64::from(tail << TRACE | trace & TRACES)
}

impl BlockHeader {
    /// Makes the header of a block for which `outer` was requested, its [`layout`](fn@super::layout).
    #[inline(always)]
    pub(crate) fn new(
        layout: Layout,
        outer: Layout,
        family: Family,
        instance: u16,
        born: u64,
        allocated: Stamp,
        sample: Option<SampleId>,
    ) -> Self {
        let shift = u64::from(layout.align().trailing_zeros());
        let family = family as u64;
        let (tail, own_pages) = if layout.size() >= LARGE {
            (TO_END_OF_PAGE, OWN_PAGES)
        } else {
            ((outer.size() - offset(layout) - layout.size() - LEAST_TAIL) as u32, 0)
        };
        Self {
            sealed: 0,
            size: layout.size() as u64,
            allocated: allocated.who.0,
            freed: of_sample(sample),
            traces: with_trace(tail, allocated.trace),
            packed: own_pages | born << 26 >> 2 | family << 22 | shift << 16 | u64::from(instance),
        }
    }

    /// Notes who freed a block, of which these are the header.
    ///
    /// # Safety
    ///
    /// As for [`write`](Self::write).
    #[inline]
    pub(crate) unsafe fn set_freed(&mut self, block: NonNull<u8>, freed: Stamp) {
        self.freed = freed.who.0;
        self.traces = pair(self.traces as u32, freed.trace);
        self.sealed ^= (Tag::Live as u32 ^ Tag::Freed as u32) as u64;
        // SAFETY: in front of the block there is the header's memory, which is the caller's alone. The rest of
        // it stands there.
        unsafe {
            let header = block.sub(HEAD).cast::<Self>().as_ptr();
            (*header).freed = self.freed;
            (*header).traces = self.traces;
            (*header).sealed = self.sealed;
        }
    }

    /// Who allocated the block.
    pub(crate) fn allocated(&self) -> Stamp {
        Stamp { who: Who(self.allocated), trace: unpair(self.traces).0 & TRACES }
    }

    /// Who freed it; of a live block, nobody.
    pub(crate) fn freed(&self) -> Stamp {
        Stamp { who: Who(self.freed), trace: unpair(self.traces).1 }
    }

    /// A live block's sample; not to be believed, since no checksum is over it.
    #[inline]
    pub(crate) fn sample(&self) -> Option<SampleId> {
        SampleId::new(u32::try_from(self.freed).ok()?.checked_sub(1)?)
    }

    /// The index of the [owner's](Self::owner) slot, or of none.
    #[inline]
    pub(crate) fn owner_index(&self) -> u32 {
        self.allocated as u32 & SLOTS
    }

    /// The slot of the service that owns it.
    #[inline]
    pub(crate) fn owner(&self) -> Option<Slot> {
        Slot::new(self.owner_index())
    }

    /// As the program asked for it.
    #[inline]
    pub(crate) fn layout(&self) -> Layout {
        // SAFETY: made from a valid layout, and the checksum says that nothing
        // has changed since.
        unsafe {
            Layout::from_size_align_unchecked((self.size & SIZES) as usize, 1 << (self.packed >> 16 & 63))
        }
    }

    /// What it was allocated by.
    #[inline]
    pub(crate) fn family(&self) -> Family {
        Family::from_bits(self.packed >> 22)
    }

    /// The allocator that it came from.
    #[inline]
    pub(crate) fn instance(&self) -> u16 {
        self.packed as u16
    }

    /// When it was allocated, on the clock of [`sys::milliseconds`](crate::sys::milliseconds).
    pub(crate) fn born(&self) -> u64 {
        self.packed << 2 >> 26
    }

    /// Makes the first byte behind the block, rather than the second, the zero that ends a text.
    #[inline]
    pub(crate) fn with_zero_first(mut self, is_first: bool) -> Self {
        self.packed |= if is_first { ZERO_FIRST } else { 0 };
        self
    }

    /// The number of bytes behind the block in which any change is noticed.
    #[inline]
    pub(crate) fn tail(&self) -> usize {
        match self.traces as u32 >> TRACE {
            more @ 0..ZERO_SIZED => LEAST_TAIL + more as usize,
            ZERO_SIZED => 0,
            TO_END_OF_PAGE => large_tail(self.layout().size()),
            _ => GUARD,
        }
    }

    /// Variant of [`tail`](Self::tail) for nearly all blocks: `None` if it is large, or has shrunk, or has none.
    #[inline(always)]
    fn plain_tail(&self) -> Option<usize> {
        let more = self.traces as u32 >> TRACE;
        (more < ZERO_SIZED).then_some(LEAST_TAIL + more as usize)
    }

    /// Makes it the header of a block of 0 bytes behind which there is no guard, but a page
    /// [without access](super::super::zero_sized).
    pub(crate) fn zero_sized(mut self) -> Self {
        self.traces = with_trace(ZERO_SIZED, self.traces as u32);
        self
    }

    #[inline]
    pub(crate) fn is_zero_sized(&self) -> bool {
        self.traces as u32 >> TRACE == ZERO_SIZED
    }

    /// How many bytes there are from the block's beginning on that are nobody else's.
    #[inline]
    pub(crate) fn extent(&self) -> usize {
        if self.is_zero_sized() { PAGE } else { self.layout().size() + self.tail() }
    }

    /// How far into the requested memory the block begins.
    #[inline]
    pub(crate) fn offset(&self) -> usize {
        offset_of(self.layout().align(), self.has_own_pages())
    }

    #[inline]
    fn has_own_pages(&self) -> bool {
        self.packed & OWN_PAGES != 0
    }

    /// The length of the pages from the block's beginning on that are its alone, to the end of the requested
    /// memory. `None` if it was never large, or has shrunk.
    #[inline]
    pub(crate) fn own_pages(&self) -> Option<usize> {
        let size = self.layout().size();
        (self.traces as u32 >> TRACE == TO_END_OF_PAGE).then(|| size + large_tail(size))
    }

    /// Which of the bytes behind the block is the zero that ends a text.
    #[inline]
    pub(super) fn zero(&self) -> usize {
        usize::from(self.packed & ZERO_FIRST == 0)
    }

    /// What was requested for the block: [`layout`](fn@super::layout) of its own, unless it was larger
    /// then. `None` if something has overwritten how much.
    ///
    /// # Safety
    ///
    /// As for [`read`](Self::read).
    #[inline]
    pub(crate) unsafe fn outer_layout(&self, block: NonNull<u8>) -> Option<Layout> {
        if let Some(outer) = self.plain_outer_layout() {
            return Some(outer);
        }
        let layout = self.layout();
        let mut size = self.offset() + layout.size() + self.tail();
        match self.size >> SIZE {
            // SAFETY: a block that has become so much smaller has memory for both words behind the guard.
            MUCH => size += unsafe { read_much(block, layout.size()) }?,
            more => size += more as usize,
        }
        let align = if self.has_own_pages() { PAGE } else { ALIGN };
        // SAFETY: it was valid when the block was handed out.
        Some(unsafe { Layout::from_size_align_unchecked(size, layout.align().max(align)) })
    }

    /// Variant of [`outer_layout`](Self::outer_layout) for nearly all blocks: neither large, nor shrunk, nor aligned more
    /// than all are. They begin [`HEAD`] into it.
    #[inline(always)]
    pub(crate) fn plain_outer_layout(&self) -> Option<Layout> {
        // One that was large, or larger, has another tail.
        let tail = self.plain_tail()?;
        let is_plain = self.packed & (63 << 16) <= u64::from(ALIGN.trailing_zeros()) << 16;
        let size = HEAD + self.size as usize + tail;
        // SAFETY: it was valid when the block was handed out.
        is_plain.then(|| unsafe { Layout::from_size_align_unchecked(size, ALIGN) })
    }

    /// Makes a block smaller in the memory that was requested for it, as if it had been allocated
    /// anew. `false` if what it is to be aligned to would be another memory's; then nothing has changed.
    ///
    /// # Safety
    ///
    /// These must be the header of the block, it must be live and the caller's alone, and no
    /// smaller.
    pub(crate) unsafe fn shrink(
        mut self,
        block: NonNull<u8>,
        size: usize,
        align: usize,
        allocated: Stamp,
        sample: Option<SampleId>,
    ) -> bool {
        let former = self.layout().align();
        // SAFETY: this is the header of that live block.
        let Some(outer) = (unsafe { self.outer_layout(block) }) else { return false };
        if align != former && align.max(former) > ALIGN {
            return false;
        }
        let more = outer.size() - (self.offset() + size + GUARD);
        self.size = size as u64 | (more as u64).min(MUCH) << SIZE;
        self.packed = self.packed & !(0xff << 16) | u64::from(align.trailing_zeros()) << 16;
        self.allocated = allocated.who.0;
        self.freed = of_sample(sample);
        self.traces = with_trace(SHRUNK, allocated.trace);
        // SAFETY: the block is the caller's alone, and its memory ends behind the new guard.
        unsafe {
            if more as u64 >= MUCH {
                block.add(size + GUARD).cast().write_unaligned([more, !more]);
            }
            write_guards(block, &self);
            self.write(block, Tag::Live);
        }
        true
    }

    /// Writes the header of a block.
    ///
    /// # Safety
    ///
    /// `block` must stand in memory of the layout that [`layout`](fn@super::layout) says, at its
    /// [`offset`](fn@super::offset), and be the caller's alone.
    #[inline]
    pub(crate) unsafe fn write(mut self, block: NonNull<u8>, tag: Tag) {
        self.sealed = self.seal(block, tag);
        // SAFETY: the memory begins at least `HEAD` bytes before the block,
        // which is aligned to 16 like the header.
        unsafe { block.sub(HEAD).cast::<Self>().write(self) };
    }

    /// Reads what stands in front of a block; `None` if it cannot be believed,
    /// because something overwrote it.
    ///
    /// # Safety
    ///
    /// `block` must have been handed out by a checking allocator, not have been
    /// given back to the backend, and be the caller's alone or pinned.
    #[inline]
    pub(crate) unsafe fn read(block: NonNull<u8>, tag: Tag) -> Option<Self> {
        // SAFETY: in front of the block there is a header's memory, which nobody changes meanwhile.
        let read = unsafe { block.sub(HEAD).cast::<Self>().read() };
        (read.sealed == read.seal(block, tag)).then_some(read)
    }

    /// The dogtag and the checksum. Odd factors and no bit left out, so that every bit counts. Who
    /// freed the block, and its sample, is left out: nothing but reports needs it, and so a free
    /// changes the dogtag only.
    #[inline]
    fn seal(&self, block: NonNull<u8>, tag: Tag) -> u64 {
        let sum = mix(block)
            .wrapping_add((self.size ^ self.packed.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .wrapping_add(self.allocated.wrapping_mul(0xC2B2_AE3D_27D4_EB4F))
            .wrapping_add((self.traces & 0xffff_ffff).wrapping_mul(0x85EB_CA77_C2B2_AE63));
        sum ^ tag as u64
    }
}

/// The size of a live block that nobody keeps as it is: a hint, to be looked at again under a pin before
/// anything is said of it.
///
/// # Safety
///
/// The block's header must be mapped.
#[inline]
pub(crate) unsafe fn size_hint(block: NonNull<u8>) -> usize {
    // SAFETY: in front of the block there is a header's memory. Others may write to it: hence volatile.
    let size = unsafe { (&raw const (*block.sub(HEAD).cast::<BlockHeader>().as_ptr()).size).read_volatile() };
    (size & SIZES) as usize
}

/// By how much a block is smaller than it was once.
///
/// # Safety
///
/// There must be so much behind a block of that size.
#[cold]
unsafe fn read_much(block: NonNull<u8>, size: usize) -> Option<usize> {
    // SAFETY: a block with a larger size before has two words more behind its guard.
    let [more, inverted]: [usize; 2] = unsafe { block.add(size + GUARD).cast().read_unaligned() };
    (more == !inverted).then_some(more)
}
/// How a sample stands where later stands who freed the block.
#[inline]
fn of_sample(sample: Option<SampleId>) -> u64 {
    sample.map_or(0, |sample| sample.index() as u64 + 1)
}

#[inline]
fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn unpair(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}
