//! The header and the guards around a checked block. Other modules do not depend on the encoding.
//!
//! ```text
//!           | padding | header | head guard | the block      | tail guard |
//!            for large    48 bytes     16 bytes   layout.size()      32 bytes or more
//!            alignments
//! ```
//!
//! The tail guard takes what would be left of the backend's size class, up to 256 bytes. A large block begins
//! with a page, and has all up to the end of its last one: so access to it can be taken away
//! ([`protection`](super::protection)), and its header stays readable, in the page before. A block of 0 bytes may have
//! [no tail](super::zero_sized). One of the tail's
//! first bytes is 0, so that a text without an end ends there: the second one, since the zero that
//! belongs behind a text is the most frequent overrun; the first one with `fill=zero`.
//!
//! Everything is mixed with the block's address, so that what was copied from
//! another block does not pass. The guards' bytes are 0xF5 to 0xFC, which are
//! neither in text (no UTF-8 has them) nor zeros, ones, or the fill patterns: so
//! what an overrun is likely to write is never what stands there already.

use crate::owner::{SampleId, Slot};
use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// The byte that fresh memory is filled with.
pub(crate) const FRESH: u8 = 0xCD;
/// The byte that freed memory is filled with.
pub(crate) const FREED: u8 = 0xDD;

/// The bytes in front of a block in which any change is noticed, and behind one that has shrunk in its
/// place.
pub(crate) const GUARD: usize = 16;

/// The least number of bytes behind a block of that size in which any change is noticed.
#[inline]
const fn least_tail(size: usize) -> usize {
    if size < 512 { LEAST_TAIL } else { 64 }
}

const LEAST_TAIL: usize = 32;
/// The most of them, but for large blocks.
const MOST_TAIL: usize = 256;

/// Pages of large blocks, each a multiple of the system's.
pub(crate) const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };
/// Blocks from this size on are large: they share their pages with nobody.
pub(crate) const LARGE: usize = 16 * PAGE;

/// Rounds a size up to jemalloc's next size class: four to a doubling from 128 on.
#[inline]
const fn size_class(size: usize) -> usize {
    let spacing = if size <= 128 { 16 } else { 1 << ((size - 1).ilog2() - 2) };
    (size + (spacing - 1)) & !(spacing - 1)
}

/// skynet's words.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Tag {
    Live = 0x2014_0605,
    Freed = 0x0bad_f00d,
}

/// The functions that a block is allocated and given back by. Rust's are one with C's, whose
/// blocks come from an allocator of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// C's and Rust's.
    Malloc = 0,
    /// `operator new`.
    New = 1,
    /// `operator new[]`.
    NewArray = 2,
}

impl Family {
    /// Bits that it takes.
    pub(crate) const BITS: u32 = 2;

    #[inline]
    pub(crate) fn from_bits(bits: u64) -> Self {
        match bits & ((1 << Self::BITS) - 1) {
            1 => Self::New,
            2 => Self::NewArray,
            _ => Self::Malloc,
        }
    }

    /// What allocates its blocks.
    pub(crate) fn allocates(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::New => "operator new",
            Self::NewArray => "operator new[]",
        }
    }

    /// What they are given back by.
    pub(crate) fn frees(self) -> &'static str {
        match self {
            Self::Malloc => "free",
            Self::New => "operator delete",
            Self::NewArray => "operator delete[]",
        }
    }
}

/// Who did something to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    who: Who,
    /// The call stack's number in [`stack_depot`](super::stack_depot); 0 for none.
    pub(crate) trace: u32,
}

/// A service and a thread, as they stand in a header: slot (24 bits), generation (16), thread (24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Who(u64);

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
    /// The magic word, and a checksum over the address and what is known of the
    /// live block.
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

const HEADER: usize = size_of::<BlockHeader>();
/// What stands in front of a block.
pub(crate) const HEAD: usize = HEADER + GUARD;
/// What a block needs at least beside itself.
pub(crate) const AROUND: usize = HEAD + LEAST_TAIL;
const _: () = assert!(HEADER == 48 && HEAD == 64);

/// Whether a block is neither large nor aligned more than all are, as nearly all are.
#[inline]
pub(crate) fn is_plain(block: Layout) -> bool {
    block.size() < LARGE && block.align() <= ALIGN
}

/// The layout to request for a block; `None` when it would overflow.
#[inline]
pub(crate) fn layout(block: Layout) -> Option<Layout> {
    if block.size() >= LARGE {
        return large_layout(block);
    }
    // What fits is more than twice an alignment, and than these sizes.
    let size = offset(block) + block.size() + tail(block);
    Layout::from_size_align(size, block.align().max(ALIGN)).ok().filter(|_| size as u64 <= SIZES)
}

#[cold]
fn large_layout(block: Layout) -> Option<Layout> {
    let size = block.size().checked_add(offset(block) + LARGE_TAIL)?.checked_next_multiple_of(PAGE)?;
    Layout::from_size_align(size, block.align().max(PAGE)).ok().filter(|_| size as u64 <= SIZES)
}

/// The number of bytes behind a block in which any change is noticed.
#[inline]
pub(crate) fn tail(block: Layout) -> usize {
    if block.size() >= LARGE {
        return large_tail(block.size());
    }
    let size = block.size() + offset(block);
    (size_class(size + least_tail(block.size())) - size).min(MOST_TAIL)
}

/// The least number of bytes behind a large block.
const LARGE_TAIL: usize = least_tail(LARGE);

/// Up to the end of a page.
#[inline]
fn large_tail(size: usize) -> usize {
    (size + LARGE_TAIL).next_multiple_of(PAGE) - size
}

/// How far a block of that size is to be found from addresses in and behind it.
#[inline]
pub(crate) fn reach(size: usize) -> usize {
    size + if size >= LARGE { LARGE_TAIL + PAGE } else { GUARD }
}

/// How far into the requested memory the block begins.
#[inline]
pub(crate) fn offset(block: Layout) -> usize {
    offset_of(block.align(), block.size() >= LARGE)
}

#[inline]
fn offset_of(align: usize, has_own_pages: bool) -> usize {
    (if has_own_pages { PAGE } else { HEAD }).max(align)
}

/// What a size fits into, as addresses do.
const SIZE: u32 = 48;
const SIZES: u64 = (1 << SIZE) - 1;
/// What stands for all that a block can be smaller by than it was, from this on.
const MUCH: u64 = u64::MAX >> SIZE;

/// Every block's alignment is at least this.
pub(crate) const ALIGN: usize = 16;

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

/// What a slot fits into.
const SLOTS: u32 = Slot::COUNT - 1;
/// The last thread's number.
const THREADS: u32 = (1 << 24) - 1;

impl Stamp {
    /// Makes the stamp of a service, by its slot and which of those it is that have had the slot; of a thread, by its
    /// number in [`threads`](super::threads), of which those from 2^24 - 1 on are not distinguished; and of a call
    /// stack.
    #[cfg(test)]
    pub(crate) fn new(slot: u32, generation: u16, thread: u32, trace: u32) -> Self {
        Self::of(Self::place(slot, thread), generation, trace)
    }

    /// The part of a stamp that is a slot and a thread.
    #[inline]
    pub(crate) fn place(slot: u32, thread: u32) -> u64 {
        u64::from(slot) | u64::from(thread.min(THREADS)) << 40
    }

    /// Makes a stamp of such a part.
    #[inline(always)]
    pub(crate) fn of(place: u64, generation: u16, trace: u32) -> Self {
        Self { who: Who(place | u64::from(generation) << 24), trace }
    }

    pub(crate) fn slot(&self) -> u32 {
        self.who.0 as u32 & SLOTS
    }

    pub(crate) fn generation(&self) -> u16 {
        (self.who.0 >> 24) as u16
    }

    pub(crate) fn thread(&self) -> u32 {
        (self.who.0 >> 40) as u32
    }
}

impl BlockHeader {
    /// Makes the header of a block for which `outer` was requested, its [`layout`](fn@self::layout).
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

    /// The slot of the service that owns it.
    #[inline]
    pub(crate) fn owner(&self) -> Option<Slot> {
        Slot::new(self.allocated as u32 & SLOTS)
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

    /// Makes it the header of a block of 0 bytes behind which there is no guard, but a page
    /// [without access](super::zero_sized).
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
    fn zero(&self) -> usize {
        usize::from(self.packed & ZERO_FIRST == 0)
    }

    /// What was requested for the block: [`layout`](fn@layout) of its own, unless it was larger
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
    /// than all are.
    #[inline(always)]
    fn plain_outer_layout(&self) -> Option<Layout> {
        let (more, logarithm) = (self.traces as u32 >> TRACE, self.packed >> 16 & 63);
        let is_plain = self.size <= SIZES
            && more < ZERO_SIZED
            && !self.has_own_pages()
            && logarithm <= ALIGN.trailing_zeros().into();
        let size = HEAD + self.size as usize + LEAST_TAIL + more as usize;
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
    /// `block` must stand in memory of the layout that [`layout`] says, at its
    /// [`offset`], and be the caller's alone.
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

    /// The dogtag and the checksum. Odd factors, so that every bit counts. Who
    /// freed the block, and its sample, is left out: nothing but reports needs it, and so a free
    /// changes the dogtag only.
    #[inline]
    fn seal(&self, block: NonNull<u8>, tag: Tag) -> u64 {
        let mixed = mix(block);
        let sum = mixed
            .wrapping_add((self.size ^ self.packed.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .wrapping_add(self.allocated.wrapping_mul(0xC2B2_AE3D_27D4_EB4F))
            .wrapping_add((self.traces & 0xffff_ffff).wrapping_mul(0x85EB_CA77_C2B2_AE63));
        pair(tag as u32 ^ mixed as u32, (sum ^ sum >> 32) as u32)
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

/// Has the processor fetch what will be looked at of a block that somebody frees, if it is one of that size. (It
/// waits for each line where a locked instruction comes before.)
#[inline(always)]
pub(crate) fn prefetch_freed(block: *const u8, size: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which any address will do for.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_sub(HEAD).cast());
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_sub(1).cast());
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(size).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, size);
}

/// Has the processor fetch what will be looked at of a block and around it.
///
/// What is larger than some lines is left to the processor, which notices where it leads.
#[inline(always)]
pub(crate) fn prefetch(address: usize, footprint: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which any address will do for.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let head = ptr::without_provenance::<i8>(address.wrapping_sub(HEAD));
        _mm_prefetch::<_MM_HINT_T0>(head);
        _mm_prefetch::<_MM_HINT_T0>(head.wrapping_add(LINE));
        _mm_prefetch::<_MM_HINT_T0>(head.wrapping_add(2 * LINE));
        if footprint > 3 * LINE {
            _mm_prefetch::<_MM_HINT_T0>(head.wrapping_add(3 * LINE));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, footprint);
}

/// What the processor fetches at once.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

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

/// Writes both guards of a block that has this header.
///
/// # Safety
///
/// As for [`BlockHeader::write`].
#[inline]
pub(crate) unsafe fn write_guards(block: NonNull<u8>, header: &BlockHeader) {
    let (size, tail) = (header.layout().size(), header.tail());
    let guards = Guards::of(block, header, size, tail);
    // SAFETY: the requested memory holds both, the head and the tail of at least 16 bytes.
    unsafe {
        block.sub(GUARD).cast().write_unaligned(guards.head);
        let behind = block.add(size);
        let mut at = GUARD;
        while at + GUARD < tail {
            behind.add(at).cast().write_unaligned(guards.next);
            at += GUARD;
        }
        behind.add(tail - GUARD).cast().write_unaligned(guards.last);
        behind.cast().write_unaligned(guards.first);
    }
}

/// Writes the guard in front of a block.
///
/// # Safety
///
/// As for [`BlockHeader::write`].
pub(crate) unsafe fn write_head(block: NonNull<u8>) {
    let guard = guard(block);
    // SAFETY: the requested memory holds it.
    unsafe { block.sub(GUARD).cast().write_unaligned(Bytes([guard, guard])) };
}

/// Whether both guards are as they were written.
///
/// # Safety
///
/// As for [`BlockHeader::read`], for a block that has this header.
#[inline]
pub(crate) unsafe fn has_guards(block: NonNull<u8>, header: &BlockHeader) -> bool {
    let (size, tail) = (header.layout().size(), header.tail());
    let guards = Guards::of(block, header, size, tail);
    // SAFETY: the guards were written when the block was handed out.
    unsafe {
        let behind = block.add(size);
        let mut wrong = Bytes::default();
        wrong.add(block.sub(GUARD), guards.head);
        wrong.add(behind, guards.first);
        let mut at = GUARD;
        while at + GUARD < tail {
            wrong.add(behind.add(at), guards.next);
            at += GUARD;
        }
        if tail > GUARD {
            wrong.add(behind.add(tail - GUARD), guards.last);
        }
        wrong.0[0] | wrong.0[1] == 0
    }
}

/// Some bytes of a guard, or what is wrong with them.
#[derive(Clone, Copy, Default)]
struct Bytes([u64; 2]);

impl Bytes {
    /// Adds what is not as it was meant. By the word, so that the compiler compares both at once.
    ///
    /// # Safety
    ///
    /// So many bytes must be there.
    #[inline(always)]
    unsafe fn add(&mut self, place: NonNull<u8>, meant: Self) {
        // SAFETY: the caller's bytes.
        let found = unsafe { place.cast::<Self>().read_unaligned() };
        self.0[0] |= found.0[0] ^ meant.0[0];
        self.0[1] |= found.0[1] ^ meant.0[1];
    }
}

/// What stands around a block. Each byte is the guard's for its offset.
struct Guards {
    head: Bytes,
    /// Behind it, with the zero.
    first: Bytes,
    /// From there on.
    next: Bytes,
    /// At the end, before which a whole number of the others may leave some bytes.
    last: Bytes,
}

impl Guards {
    #[inline(always)]
    fn of(block: NonNull<u8>, header: &BlockHeader, size: usize, tail: usize) -> Self {
        let guard = guard(block);
        let from = |offset: usize| u64::from_le(guard.to_le().rotate_right((offset % 8 * 8) as u32));
        let (next, last) = (from(size), from(size + tail));
        let first = u64::from_le(next.to_le() & !(0xff << (8 * header.zero())));
        Self {
            head: Bytes([guard, guard]),
            first: Bytes([first, next]),
            next: Bytes([next, next]),
            last: if tail == GUARD { Bytes([first, next]) } else { Bytes([last, last]) },
        }
    }
}

/// The wrong byte of a block's guards that is nearest to it, from its
/// beginning: its size or more in the guard behind it, which is looked at
/// first, negative in the one in front of it.
///
/// # Safety
///
/// As for [`BlockHeader::read`], for a block that has this header.
pub(crate) unsafe fn wrong_guard(block: NonNull<u8>, header: &BlockHeader) -> Option<isize> {
    let size = header.layout().size();
    let wrong = (size..size + header.tail()).find(|&offset| {
        // SAFETY: the guard was written when the block was handed out.
        let byte = unsafe { block.add(offset).read() };
        meant(block, Some(header), None, offset as isize).is_some_and(|meant| meant != byte)
    });
    match wrong {
        Some(offset) => Some(offset as isize),
        // SAFETY: the head was written when the block was handed out.
        None => unsafe { wrong_head(block) },
    }
}

/// The wrong byte of the guard in front of a block that is nearest to it, however large it is.
///
/// # Safety
///
/// As for [`BlockHeader::read`].
pub(crate) unsafe fn wrong_head(block: NonNull<u8>) -> Option<isize> {
    // SAFETY: the head was written when the block was handed out.
    let head: [u8; GUARD] = unsafe { block.sub(GUARD).cast().read() };
    // Backwards, since the nearest byte is the last one.
    let guard = guard(block).to_ne_bytes();
    let last = (0..GUARD).rev().find(|&index| head[index] != guard[index % 8]);
    last.map(|index| index as isize - GUARD as isize)
}

/// The byte that should stand at an offset from the block's beginning; `None` where anything may.
/// `filled` is what the block is filled with.
pub(crate) fn meant(
    block: NonNull<u8>,
    header: Option<&BlockHeader>,
    filled: Option<u8>,
    offset: isize,
) -> Option<u8> {
    let guard = guard(block).to_ne_bytes();
    if offset < 0 {
        let is_near = offset >= -(GUARD as isize);
        return is_near.then(|| guard[offset.rem_euclid(8) as usize]);
    }
    let (header, offset) = (header?, offset as usize);
    match offset.checked_sub(header.layout().size()) {
        None => filled,
        Some(past) if past == header.zero() => Some(0),
        Some(past) => (past < header.tail()).then(|| guard[offset % 8]),
    }
}

/// The first byte of a freed block that is not what it was filled with any more.
///
/// # Safety
///
/// As for [`BlockHeader::read`], for a block of `size` bytes that was filled so.
#[inline]
pub(crate) unsafe fn wrong_fill(block: NonNull<u8>, size: usize, filled: u8) -> Option<isize> {
    // SAFETY: the block is `size` bytes of the backend's memory that nobody
    // may write to.
    let bytes = unsafe { NonNull::slice_from_raw_parts(block, size).as_ref() };
    if filled == 0 { wrong_byte::<0>(bytes) } else { wrong_byte::<FREED>(bytes) }
}

/// Whether a freed block is still what it was filled with, or was not filled.
///
/// # Safety
///
/// As for [`wrong_fill`].
#[inline]
pub(crate) unsafe fn has_fill(block: NonNull<u8>, size: usize, filled: Option<u8>) -> bool {
    // SAFETY: the caller's block.
    let bytes = unsafe { NonNull::slice_from_raw_parts(block, size).as_ref() };
    match filled {
        Some(0) => wrong_byte::<0>(bytes).is_none(),
        Some(_) => has_pattern(bytes),
        None => true,
    }
}

/// Whether all bytes are [`FREED`].
#[inline]
fn has_pattern(bytes: &[u8]) -> bool {
    const MEANT: u128 = u128::from_ne_bytes([FREED; 16]);
    let wrong = |bytes: &[u8; 16]| u128::from_ne_bytes(*bytes) ^ MEANT;

    // A few of them at once, since a way out after each takes longer than the comparisons.
    let (runs, rest) = bytes.as_chunks::<64>();
    for run in runs {
        let (words, _) = run.as_chunks::<16>();
        if words.iter().fold(0, |sum, word| sum | wrong(word)) != 0 {
            return false;
        }
    }
    if rest.is_empty() {
        return true;
    }
    let (words, few) = rest.as_chunks::<16>();
    let sum = words.iter().fold(0, |sum, word| sum | wrong(word));
    match bytes.last_chunk::<16>() {
        // The last ones again, with some of those before them.
        Some(last) => sum | wrong(last) == 0,
        None => few.iter().all(|byte| *byte == FREED),
    }
}

/// The first byte that is another one.
#[inline]
fn wrong_byte<const FILLED: u8>(bytes: &[u8]) -> Option<isize> {
    // By the run, without a way out within one, so that the compiler compares many bytes at once.
    let (runs, rest) = bytes.as_chunks::<64>();
    let start = match runs.iter().position(|run| !is_filled::<FILLED>(run)) {
        Some(run) => run * 64,
        None if is_filled::<FILLED>(rest) => return None,
        None => runs.len() * 64,
    };
    Some((start + bytes[start..].iter().position(|&byte| byte != FILLED)?) as isize)
}

#[inline(always)]
fn is_filled<const FILLED: u8>(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let meant = u64::from_ne_bytes([FILLED; 8]);
    let wrong = words.iter().fold(0_u64, |wrong, word| wrong | (u64::from_ne_bytes(*word) ^ meant));
    rest.iter().fold(wrong, |wrong, &byte| wrong | u64::from(byte ^ FILLED)) == 0
}

/// What stands on both sides of a block, again and again: three bits of the mixed address in
/// each byte.
#[inline]
fn guard(block: NonNull<u8>) -> u64 {
    0xF5F5_F5F5_F5F5_F5F5 + (mix(block) & 0x0707_0707_0707_0707)
}

#[inline]
fn mix(block: NonNull<u8>) -> u64 {
    let address = block.addr().get() as u64;
    let mixed = (address >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests;
