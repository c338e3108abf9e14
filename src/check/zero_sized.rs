//! Blocks of 0 bytes, such as C's `malloc(0)`: each points at a page without access, so who reads or writes one is
//! found at once.
//!
//! ```text
//! one mapping │ page │ behind │ page │ behind │ ...
//!             └── slot 0 ─────┘
//! ```
//!
//! The block begins with the page behind, so there is no guard behind it. The header stands at the end of the page
//! before, as with [large blocks](super::block). A slot is made when there is no free one; from then on its block
//! is allocated and freed without a system call. Freed blocks are in quarantine as large ones are
//! ([`State::Protected`](super::block_state::State::Protected)).
//!
//! Once an access has been let through, its slot is not used again.

mod faults;

pub(super) use faults::handle;

use super::block::{self, BlockHeader, PAGE, Tag};
use super::inspect::pointer;
use super::protection;
use super::settings::Settings;
use super::slot_stack::{self, SlotStack};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sys;
use crate::sys::fault::{self, Outcome};
use std::ptr::NonNull;

/// How many there may be at once, live or in quarantine. Each makes two mappings, of which Linux lets a process
/// have some 65,000.
const SLOTS: usize = 4096;
/// The addresses of a slot.
const STRIDE: usize = 2 * PAGE;
/// Free slots whose page stays in memory.
const MOST_WARM: usize = 64;

/// The first slot's address; 0 before there is one.
static BASE: AtomicUsize = AtomicUsize::new(0);
/// Set if the system has refused the mapping.
static IS_REFUSED: AtomicBool = AtomicBool::new(false);
/// How many slots have been made.
static MADE: AtomicUsize = AtomicUsize::new(0);
/// Slots whose page behind has its access.
static IS_OPEN: [AtomicBool; SLOTS] = [const { AtomicBool::new(false) }; SLOTS];

/// Free slots whose page may be in memory, and how many they are, about.
static WARM: SlotStack = SlotStack::new();
static WARM_SLOTS: AtomicUsize = AtomicUsize::new(0);
/// Free slots whose page was given back.
static COLD: SlotStack = SlotStack::new();
/// What is below each slot in its stack.
static BELOW: [AtomicU32; SLOTS] = [const { AtomicU32::new(0) }; SLOTS];
const _: () = assert!(SLOTS <= slot_stack::MOST);

/// Whether an address is in a slot, if only one that may be made.
#[inline]
pub(super) fn has(address: usize) -> bool {
    let base = BASE.load(Ordering::Acquire);
    base != 0 && address.wrapping_sub(base) < SLOTS * STRIDE
}

/// Takes a slot, and returns where its block begins. `None` if that is not wanted, would not be told of, or there are
/// no more slots.
pub(super) fn take(align: usize, settings: &Settings) -> Option<NonNull<u8>> {
    let is_wanted = settings.protect != 0 && align <= PAGE && !protection::is_confined() && !cfg!(miri);
    if !is_wanted || !is_heard_of() {
        return None;
    }
    loop {
        let slot = take_warm().or_else(|| pop(&COLD)).map_or_else(make, Some)?;
        if !slot.is_open() {
            return pointer(slot.block());
        }
    }
}

/// Makes a slot free.
///
/// # Safety
///
/// The block must have been [taken](take), and be nobody's any more.
pub(super) unsafe fn put(block: NonNull<u8>) {
    let Some(slot) = Slot::of(block.addr().get()).filter(|slot| !slot.is_open()) else { return };
    if WARM_SLOTS.fetch_add(1, Ordering::Relaxed) < MOST_WARM || protection::is_confined() {
        return WARM.push(&BELOW, slot.0);
    }
    WARM_SLOTS.fetch_sub(1, Ordering::Relaxed);
    if let Some(page) = pointer(slot.page()) {
        let page = NonNull::slice_from_raw_parts(page, PAGE);
        // SAFETY: the slot's, which nobody has.
        fault::keep_errno(|| unsafe { sys::zero_pages(page.as_ref()) });
    }
    COLD.push(&BELOW, slot.0);
}

/// Reads the header of a live block; `None` if it, or the guard before the block, has been overwritten.
///
/// # Safety
///
/// The block must have been [`ZeroSized`](super::block_state::State::ZeroSized), and have been seized or be pinned.
pub(super) unsafe fn whole(block: NonNull<u8>) -> Option<BlockHeader> {
    // SAFETY: the page before the block can be read.
    unsafe {
        let header = BlockHeader::read(block, Tag::Live)?;
        block::wrong_head(block).is_none().then_some(header)
    }
}

/// Whether a fault would be told of. That takes a system call, so it is asked once a second.
fn is_heard_of() -> bool {
    static LAST: AtomicU64 = AtomicU64::new(0);
    static IS_HEARD_OF: AtomicBool = AtomicBool::new(false);

    if sys::is_time(&LAST) {
        IS_HEARD_OF.store(protection::hears_of_faults(), Ordering::Relaxed);
    }
    IS_HEARD_OF.load(Ordering::Relaxed)
}

fn take_warm() -> Option<Slot> {
    pop(&WARM).inspect(|_| _ = WARM_SLOTS.fetch_sub(1, Ordering::Relaxed))
}

fn pop(stack: &SlotStack) -> Option<Slot> {
    stack.pop(&BELOW).map(Slot)
}

/// Makes one more slot. `None` if there are all, or the system refuses.
#[cold]
fn make() -> Option<Slot> {
    if MADE.load(Ordering::Relaxed) == 0 {
        reserve()?;
    }
    loop {
        let slot = Slot(MADE.load(Ordering::Relaxed)).exists()?;
        let page = pointer(slot.page())?;
        // SAFETY: the slot's, which nobody has; whoever makes the same one at this moment does the same.
        unsafe { protection::protect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE) }.ok()?;
        let next = slot.0 + 1;
        if MADE.compare_exchange(slot.0, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return Some(slot);
        }
    }
}

/// Reserves the addresses of all slots, once. `None` if the system refuses.
#[cold]
fn reserve() -> Option<()> {
    if BASE.load(Ordering::Acquire) != 0 {
        return Some(());
    }
    if IS_REFUSED.load(Ordering::Relaxed) {
        return None;
    }
    // Pages may be larger than the system's.
    let length = SLOTS * STRIDE + PAGE;
    let Some(mapped) = sys::reserve(length) else {
        IS_REFUSED.store(true, Ordering::Relaxed);
        return None;
    };
    let base = mapped.as_ptr().expose_provenance().next_multiple_of(PAGE);
    if BASE.compare_exchange(0, base, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: reserved just now; another thread was faster.
        unsafe { sys::unreserve(mapped, length) };
    }
    Some(())
}

/// One of the slots: its number.
#[derive(Clone, Copy)]
struct Slot(usize);

impl Slot {
    fn exists(self) -> Option<Self> {
        (self.0 < SLOTS).then_some(self)
    }

    /// The slot that an address is in, if it has been made.
    fn of(address: usize) -> Option<Self> {
        let number = address.wrapping_sub(BASE.load(Ordering::Acquire)) / STRIDE;
        (has(address) && number < MADE.load(Ordering::Relaxed)).then_some(Self(number))
    }

    /// The page with the header.
    fn page(self) -> usize {
        BASE.load(Ordering::Acquire) + self.0 * STRIDE
    }

    /// The page behind it, with which the block begins.
    fn block(self) -> usize {
        self.page() + PAGE
    }

    fn is_open(self) -> bool {
        IS_OPEN[self.0].load(Ordering::Relaxed)
    }

    /// Lets accesses through, for good.
    fn open(self) -> Outcome {
        IS_OPEN[self.0].store(true, Ordering::Relaxed);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the slot's, in which there is nothing.
        let is_open = pointer(self.block())
            .is_some_and(|behind| unsafe { protection::protect(behind, PAGE, access).is_ok() });
        if is_open { Outcome::TryAgain } else { Outcome::Told }
    }
}
