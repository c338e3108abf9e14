//! A block's way through memory-check: handed out, and verified when it is freed. From there on it is
//! [`retire`]'s.

mod retire;

use super::access_context::stamp;
use super::address_ranges::Spans;
use super::block::{self, BlockHeader, Family, Tag};
use super::block_state::{Entry, State};
use super::claim::Claim;
use super::handler::react;
use super::inspect::{
    about_any, inside_another, may_be_gone, violation, whole_and_live, whole_in, wrong_with_live,
};
use super::instance_id::{Identity, NUMBERS};
use super::quarantine::MagazineQueue;
use super::settings::{Fill, Settings};
use super::shadow::{self, Credits};
use super::violation_kind::{Operation, ViolationKind};
use super::zero_sized;
use crate::ledger::thread;
use crate::owner::SampleId;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sys;
use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// One allocator's part of memory-check.
#[derive(Debug)]
pub(crate) struct Checker {
    /// The allocator's [`Identity`], 0 until it has handed out a block.
    identity: AtomicU64,
    /// Where its blocks are.
    spans: Spans,
    quarantine: MagazineQueue,
    /// The quarantine's places, null until a magazine was full.
    places: AtomicPtr<AtomicU32>,
    /// A [`Release`](super::release::Release) of the allocator's backend, or null until a block was freed.
    release: AtomicPtr<()>,
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

/// Says what is to be done with a block that was given back.
pub(crate) enum Returned {
    /// All is well, and the block is the caller's alone until it is
    /// [retired](Checker::retire) or [kept](Checker::keep).
    Whole(Whole),
    /// All is well with a block of 0 bytes, which is the caller's alone until it is
    /// [retired](Checker::retire_zero_sized) or [kept](Checker::keep).
    ZeroSized(Whole),
    /// It was violated, which has been reported. For the program it is freed; its memory stays
    /// as it is. `None` if its header has been overwritten.
    Leaked(Option<BlockHeader>),
    /// It is no live block of the program's.
    Refused,
}

/// What is noted of a new block, beside its layout and who allocates it.
pub(crate) struct Noted {
    family: Family,
    sample: Option<SampleId>,
    born: u64,
}

impl Noted {
    /// Looks at the clock: to be done before the backend is asked, since little has to be kept across a call then.
    #[inline(always)]
    pub(crate) fn now(family: Family, sample: Option<SampleId>) -> Self {
        Self { family, sample, born: sys::milliseconds() }
    }
}

/// A block that was given back, and with which all is well.
pub(crate) struct Whole {
    pub(crate) block: NonNull<u8>,
    entry: &'static Entry,
    pub(crate) header: BlockHeader,
}

impl Checker {
    pub(crate) const fn new() -> Self {
        Self {
            identity: AtomicU64::new(0),
            spans: Spans::new(),
            quarantine: MagazineQueue::new(),
            places: AtomicPtr::new(ptr::null_mut()),
            release: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Makes a block of the backend's memory. `None` if there is no memory for
    /// its state; then nothing has happened.
    ///
    /// # Safety
    ///
    /// `base` must be memory of the layout `outer`, which [`block::layout`] says, and the
    /// caller's alone.
    #[inline(always)]
    pub(crate) unsafe fn hand_out(
        &self,
        base: NonNull<u8>,
        layout: Layout,
        outer: Layout,
        Noted { family, sample, born }: Noted,
        settings: &Settings,
    ) -> Option<NonNull<u8>> {
        // SAFETY: the memory is larger than the offset.
        let block = unsafe { base.add(block::offset(layout)) };
        let entry = shadow::occupy(block.addr().get(), thread::numbers().map(Credits))?;
        let header = BlockHeader::new(
            layout,
            outer,
            family,
            self.identity().number(),
            born,
            stamp(settings.backtrace),
            sample,
        )
        .with_zero_first(settings.fill == Fill::Zeros);
        // SAFETY: the memory around the block is the caller's alone, and as large as `layout` asked for.
        unsafe {
            header.write(block, Tag::Live);
            block::write_first_guards(block, &header, layout, outer);
        }
        self.spans.note(block.addr().get());
        shadow::cover(block.addr().get(), block.addr().get() + block::reach(layout.size()));
        entry.set(State::Live);
        Some(block)
    }

    /// Makes a block of 0 bytes to which nobody has access; `None` if there can be [none](zero_sized::take).
    #[cold]
    pub(crate) fn hand_out_zero_sized(
        &self,
        layout: Layout,
        family: Family,
        sample: Option<SampleId>,
    ) -> Option<NonNull<u8>> {
        let settings = Settings::get();
        // As if it were requested: the header says that nothing was.
        let outer = block::layout(layout)?;
        let block = zero_sized::take(layout.align(), settings)?;
        let Some(entry) = shadow::occupy(block.addr().get(), None) else {
            // SAFETY: it was taken just now.
            unsafe { zero_sized::put(block) };
            return None;
        };
        let (identity, allocated) = (self.identity(), stamp(settings.backtrace));
        let born = sys::milliseconds();
        let header = BlockHeader::new(layout, outer, family, identity.number(), born, allocated, sample);
        // SAFETY: the page before the block is the caller's alone.
        unsafe {
            header.zero_sized().write(block, Tag::Live);
            block::write_head(block);
        }
        self.spans.note(block.addr().get());
        entry.set(State::ZeroSized);
        Some(block)
    }

    /// Takes a block that the program gives back, if it is live and all is well
    /// with it. Otherwise nothing has changed, and [`take_back`](Self::take_back)
    /// is called for. What the program takes it for may be left open, as C does.
    #[inline(always)]
    pub(crate) fn take_whole(&self, address: *mut u8, claim: Claim) -> Option<Whole> {
        block::prefetch_freed(address, claim.size.unwrap_or(0));
        let entry = shadow::entry(address.addr())?;
        let block = NonNull::new(address)?;
        if !entry.seize_live() {
            return None;
        }
        // SAFETY: the block was live and has been seized.
        let whole = unsafe { self.whole(entry, block, claim) };
        if whole.is_none() {
            entry.set(State::Live);
        }
        whole
    }

    /// # Safety
    ///
    /// The block must have been live, and have been seized.
    #[inline(always)]
    unsafe fn whole(&self, entry: &'static Entry, block: NonNull<u8>, claim: Claim) -> Option<Whole> {
        // SAFETY: the block is seized, so nobody else changes what stands around it.
        let header = unsafe { whole_and_live(block) }?;
        self.is_meant(&header, claim).then_some(Whole { block, entry, header })
    }

    /// Whether the program takes a block for what it is.
    #[inline(always)]
    fn is_meant(&self, header: &BlockHeader, claim: Claim) -> bool {
        claim.mismatch(header).is_none() && header.instance() == self.identity().number()
    }

    /// Takes a block that the program gives back. Reports what was done to it, or that it is no live
    /// block.
    #[cold]
    pub(crate) fn take_back(&self, address: *mut u8, claim: Claim, operation: Operation) -> Returned {
        let violation = |kind| violation(kind, operation, address, claim);
        let (Some(entry), Some(block)) = (shadow::entry(address.addr()), NonNull::new(address)) else {
            react(&inside_another(violation(ViolationKind::InvalidFree)));
            return Returned::Refused;
        };
        match entry.seize_any_live() {
            // SAFETY: the block was live and has been seized.
            Ok(State::Live) => match unsafe { self.whole(entry, block, claim) } {
                // It was pinned a moment ago.
                Some(whole) => Returned::Whole(whole),
                None => leak(entry, block, State::Live, claim, operation),
            },
            // SAFETY: it was the program's and has been seized.
            Ok(State::ZeroSized) => match unsafe { zero_sized::whole(block) } {
                Some(header) if self.is_meant(&header, claim) => {
                    Returned::ZeroSized(Whole { block, entry, header })
                }
                _ => leak(entry, block, State::ZeroSized, claim, operation),
            },
            // What was done to it has been reported before.
            Ok(_) => {
                entry.set(State::Leaked);
                // SAFETY: the block was the program's, and nobody else has it.
                Returned::Leaked(unsafe { BlockHeader::read(block, Tag::Live) })
            }
            Err(State::None) => {
                react(&inside_another(violation(ViolationKind::InvalidFree)));
                Returned::Refused
            }
            Err(_) => {
                let violation = violation(ViolationKind::DoubleFree);
                // SAFETY: the block is pinned.
                let known = entry.pinned(|state| (state, unsafe { about_any(violation, block, state) }));
                react(&known.unwrap_or(violation));
                Returned::Refused
            }
        }
    }

    /// Returns the size that a live block was requested with. Reports a pointer to no live block, and
    /// what was done to the block.
    pub(crate) fn size(&self, address: *mut u8) -> Option<usize> {
        let violation = |kind| violation(kind, Operation::UsableSize, address, Claim::default());
        let (Some(entry), Some(block)) = (shadow::entry(address.addr()), NonNull::new(address)) else {
            react(&inside_another(violation(ViolationKind::BadUsableSize)));
            return None;
        };
        let found = entry.pinned(|state| {
            // SAFETY: the block is pinned.
            unsafe {
                match state {
                    State::Live | State::ZeroSized => match whole_in(block, state) {
                        Some(known) if known.instance() == self.identity().number() => {
                            (state, Ok(Some(known)))
                        }
                        Some(known) => {
                            let violation = violation(ViolationKind::BadUsableSize);
                            (state, Err(violation.about(block, Some(&known), Tag::Live, None)))
                        }
                        // Reported now, and not again when it is freed.
                        None => {
                            (State::Condemned, Err(wrong_with_live(violation, block, ViolationKind::Overrun)))
                        }
                    },
                    State::Condemned if may_be_gone(state) => (state, Ok(None)),
                    State::Condemned => (state, Ok(BlockHeader::read(block, Tag::Live))),
                    _ => (state, Err(about_any(violation(ViolationKind::BadUsableSize), block, state))),
                }
            }
        });
        match found {
            Some(Ok(known)) => known.map(|known| known.layout().size()),
            Some(Err(violation)) => {
                react(&violation);
                None
            }
            // Another thread was changing its state when the process was forked: nothing is reported.
            None if entry.get() != State::None => None,
            None => {
                react(&inside_another(violation(ViolationKind::BadUsableSize)));
                None
            }
        }
    }

    /// Returns a block to the program after [`take_back`](Self::take_back), as a reallocation that
    /// fails does.
    pub(crate) fn keep(&self, block: *mut u8, returned: &Returned) {
        let Some(entry) = shadow::entry(block.addr()) else { return };
        match returned {
            Returned::Whole(..) => entry.set(State::Live),
            Returned::ZeroSized(..) => entry.set(State::ZeroSized),
            Returned::Leaked(_) => {
                entry.change(State::Leaked, State::Condemned);
            }
            Returned::Refused => {}
        }
    }

    /// Makes a block smaller where it is, and leaves it to the program. `None` if its new alignment
    /// would need other memory; then the block is left as it was.
    ///
    /// # Safety
    ///
    /// The layout must be no larger than the block's.
    #[cold]
    pub(crate) unsafe fn shrink(
        &self,
        whole: Whole,
        claim: Claim,
        new: Layout,
        sample: Option<SampleId>,
    ) -> Option<NonNull<u8>> {
        let Whole { block, entry, header } = whole;
        // Who did not say what it is aligned to will not do so later.
        let align = if claim.alignment.is_some() { new.align() } else { header.layout().align() };
        let allocated = stamp(Settings::get().backtrace);
        // SAFETY: the block is the caller's alone, and no smaller.
        let is_done = unsafe { header.shrink(block, new.size(), align, allocated, sample) };
        entry.set(State::Live);
        is_done.then_some(block)
    }

    #[inline]
    fn identity(&self) -> Identity {
        let known = Identity::from_bits(self.identity.load(Ordering::Relaxed));
        known.unwrap_or_else(|| self.give_number())
    }

    #[cold]
    fn give_number(&self) -> Identity {
        let identity = NUMBERS.give().unwrap_or(Identity::UNNUMBERED);
        let given = self.identity.compare_exchange(0, identity.bits(), Ordering::Relaxed, Ordering::Relaxed);
        let first = given.err().and_then(Identity::from_bits);
        // Another thread was faster.
        first.inspect(|_| NUMBERS.take_back(identity)).unwrap_or(identity)
    }
}

/// Reports a block that has been seized and is not whole.
#[cold]
fn leak(
    entry: &'static Entry,
    block: NonNull<u8>,
    state: State,
    claim: Claim,
    operation: Operation,
) -> Returned {
    let violation = |kind| violation(kind, operation, block.as_ptr(), claim);
    // SAFETY: the block was in that state and has been seized.
    let (violation, known) = unsafe {
        let violation = match whole_in(block, state) {
            Some(known) => {
                // None, and so it is another allocator's.
                let kind = claim.mismatch(&known).unwrap_or(ViolationKind::InvalidFree);
                violation(kind).about(block, Some(&known), Tag::Live, None)
            }
            None => wrong_with_live(violation, block, ViolationKind::Overrun),
        };
        (violation, BlockHeader::read(block, Tag::Live))
    };
    entry.set(State::Leaked);
    react(&violation);
    Returned::Leaked(known)
}
