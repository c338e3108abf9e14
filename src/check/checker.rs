//! A block's way through memory-check: handed out, verified when it is freed, kept in quarantine, and
//! released.

use super::access_context::stamp;
use super::address_ranges::Spans;
use super::block::{self, BlockHeader, FREED, Family, LARGE, Tag};
use super::block_state::{self, Entry, State};
use super::claim::Claim;
use super::depot::{is_free, kept_for, magazines, place_for, places_of, take_kept};
use super::fill::fill;
use super::handler::react;
use super::inspect::{
    SOME_HAVE_ENDED, about_any, inside_another, may_be_gone, pointer, violation, whole_and_live, whole_in,
    wrong_with_live,
};
use super::instance_id::{Identity, NUMBERS};
use super::magazine::{self, Place};
use super::protection;
use super::quarantine::{Magazine, MagazineQueue};
use super::release::{Release, give_back, give_back_after_forks, release_block};
use super::scrubber;
use super::settings::{Fill, Settings};
use super::shadow::{self, Credits, Vacancies};
use super::threads;
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
    /// A [`Release`] of the allocator's backend, or null until a block was freed.
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
        family: Family,
        sample: Option<SampleId>,
    ) -> Option<NonNull<u8>> {
        let settings = Settings::get();
        // SAFETY: the memory is larger than the offset.
        let block = unsafe { base.add(block::offset(layout)) };
        let entry = shadow::occupy(block.addr().get(), thread::numbers().map(Credits))?;
        let header = BlockHeader::new(
            layout,
            outer,
            family,
            self.identity().number(),
            sys::milliseconds(),
            stamp(settings.backtrace),
            sample,
        )
        .with_zero_first(settings.fill == Fill::Zeros);
        // SAFETY: the memory around the block is the caller's alone, and as large as `layout` asked for.
        unsafe {
            header.write(block, Tag::Live);
            block::write_guards(block, &header);
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

    /// Puts a block that was taken back into quarantine, and releases the blocks that leave it.
    ///
    /// # Safety
    ///
    /// The block must be from the allocator of this checker and that backend.
    #[inline(always)]
    pub(crate) unsafe fn retire<B>(&self, whole: Whole, backend: &B, release: Release<B>) {
        let Whole { block, entry, mut header } = whole;
        let settings = Settings::get();
        let identity = self.identity();
        // SAFETY: the block is the caller's alone.
        let footprint = unsafe { header.outer_layout(block) }.map_or(0, |outer| outer.size());
        let is_kept_back = identity != Identity::UNNUMBERED
            && footprint as u64 <= settings.quarantine
            && has_quarantine(settings);
        if !is_kept_back {
            shadow::vacate(block.addr().get(), entry);
            // SAFETY: the block is seized, and was requested from that backend.
            return unsafe { give_back(block, &header, backend, release) };
        }
        if self.release.load(Ordering::Relaxed).is_null() {
            self.release.store(release as *mut (), Ordering::Relaxed);
        }
        threads::settle_name();
        let size = header.layout().size();
        // SAFETY: the block is the caller's alone.
        let state = unsafe {
            header.set_freed(block, stamp(settings.backtrace));
            if size >= LARGE && protection::close(block, settings) {
                State::Protected
            } else {
                fill_freed(block, size, settings);
                State::Quarantined
            }
        };
        entry.set(state);
        // SAFETY: as the caller says.
        unsafe { self.keep_back(block, footprint, settings, identity, backend, release) }
    }

    /// Variant of [`retire`](Self::retire) for a block of 0 bytes, to which nobody has access.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire).
    #[cold]
    pub(crate) unsafe fn retire_zero_sized<B>(&self, whole: Whole, backend: &B, release: Release<B>) {
        let Whole { block, entry, mut header } = whole;
        let settings = Settings::get();
        let identity = self.identity();
        if identity == Identity::UNNUMBERED || !has_quarantine(settings) {
            shadow::vacate(block.addr().get(), entry);
            // SAFETY: the block was seized, and nobody has it any more.
            return unsafe { zero_sized::put(block) };
        }
        if self.release.load(Ordering::Relaxed).is_null() {
            self.release.store(release as *mut (), Ordering::Relaxed);
        }
        threads::settle_name();
        // SAFETY: the block is the caller's alone. It takes nothing of the backend's.
        unsafe {
            header.set_freed(block, stamp(settings.backtrace));
            entry.set(State::Protected);
            self.keep_back(block, 0, settings, identity, backend, release);
        }
    }

    /// Puts a freed block into quarantine, and releases the blocks that leave it.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire).
    #[inline(always)]
    unsafe fn keep_back<B>(
        &self,
        block: NonNull<u8>,
        footprint: usize,
        settings: &'static Settings,
        identity: Identity,
        backend: &B,
        release: Release<B>,
    ) {
        let address = block.addr().get();
        let heavy = self.quarantine.heavy(settings.quarantine);
        let place = place_for(identity);
        // SAFETY: the block was requested from that backend.
        unsafe {
            match place.and_then(|place| Some((place, kept_for(place, identity)?))) {
                Some((place, kept)) => {
                    if kept.push(address, footprint, heavy) && magazine::take_out(place) {
                        self.enter(kept, settings, backend, release);
                    }
                }
                None => self.begin_magazine((address, footprint), place, identity, backend, release),
            }
        }
    }

    /// Puts a freed block into a magazine that the calling thread keeps from then on, if it can.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire).
    #[inline(never)]
    unsafe fn begin_magazine<B>(
        &self,
        (address, footprint): (usize, usize),
        place: Option<&'static Place>,
        identity: Identity,
        backend: &B,
        release: Release<B>,
    ) {
        let settings = Settings::get();
        let magazines = magazines(settings);
        let place = place.filter(|place| is_free(&magazines, place));
        let Some(magazine) = magazines.take(identity) else {
            // SAFETY: the caller has put it into quarantine, and it was requested from that backend.
            return unsafe { release_block(address, &mut Vacancies::default(), settings, backend, release) };
        };
        let is_full = magazine.push(address, footprint, self.quarantine.heavy(settings.quarantine));
        match place {
            Some(place) if !is_full => magazine::put(place, magazine),
            // SAFETY: the caller's block is from that backend.
            _ => unsafe { self.enter(magazine, settings, backend, release) },
        }
    }

    /// Puts a magazine that the caller has into quarantine, and releases the blocks that leave it.
    ///
    /// # Safety
    ///
    /// What is in it, and in quarantine, must be from that backend.
    #[inline(never)]
    unsafe fn enter<B>(
        &self,
        magazine: &'static Magazine,
        settings: &'static Settings,
        backend: &B,
        release: Release<B>,
    ) {
        let magazines = magazines(settings);
        let mut vacancies = Vacancies::default();
        // SAFETY: all that is in there was put in by `retire`, for that backend.
        let release_block =
            |address| unsafe { release_block(address, &mut vacancies, settings, backend, release) };
        // Nothing is kept while blocks are released: that may come back here.
        match self.places_or_map(settings) {
            Some(places) => {
                block_state::count_magazine();
                let less = self.quarantine.enter(
                    places,
                    &magazines,
                    magazine,
                    settings.quarantine,
                    block_state::forks(),
                    release_block,
                );
                give_back_after_forks(less);
                scrubber::begin_by_free(settings);
            }
            None => magazines.empty(magazine, release_block),
        }
    }

    /// Releases the blocks in quarantine and says whether there were any: for an allocator whose
    /// backend has no memory left. Magazines that other threads are filling at this moment are left.
    ///
    /// # Safety
    ///
    /// Both must be what [`retire`](Self::retire) is called with.
    #[cold]
    pub(crate) unsafe fn flush<B>(&self, backend: &B, release: Release<B>) -> bool {
        let settings = Settings::get();
        let identity = Identity::from_bits(self.identity.load(Ordering::Relaxed));
        let Some(identity) = identity.filter(|_| has_quarantine(settings)) else {
            return false;
        };
        let magazines = magazines(settings);
        let mut were_any = false;
        let mut vacancies = Vacancies::default();
        let mut release_block = |address| {
            were_any = true;
            // SAFETY: put in by `retire`, for that backend.
            unsafe { release_block(address, &mut vacancies, settings, backend, release) };
        };
        if let Some(places) = self.places(settings) {
            self.quarantine.clear(places, &magazines, &mut release_block);
        }
        take_kept(&magazines, identity, &mut release_block);
        were_any
    }

    /// Releases all blocks that are in quarantine, for an allocator that ends,
    /// and forgets those that the program still has. No block says its number any more.
    pub(crate) fn end<B>(&mut self, backend: &B) {
        enum Found {
            KeptBack,
            Forgotten,
            Others,
        }

        let identity = Identity::from_bits(*self.identity.get_mut());
        let Some(identity) = identity.filter(|identity| *identity != Identity::UNNUMBERED) else {
            return;
        };
        let settings = Settings::get();
        let release = *self.release.get_mut();
        let mut vacancies = Vacancies::default();
        self.spans.for_each(|address, entry| {
            let Some(block) = pointer(address) else { return };
            let found = entry.pinned(|state| {
                let is_own = !may_be_gone(state)
                    && [Tag::Live, Tag::Freed]
                        .iter()
                        // SAFETY: the block is pinned.
                        .filter_map(|tag| unsafe { BlockHeader::read(block, *tag) })
                        .any(|known| known.instance() == identity.number());
                match state {
                    State::Quarantined | State::Protected if is_own => (state, Found::KeptBack),
                    State::Quarantined | State::Protected => (state, Found::Others),
                    _ if is_own => (State::None, Found::Forgotten),
                    _ => {
                        if matches!(state, State::Condemned | State::Leaked) {
                            // Nobody can know whether it was.
                            SOME_HAVE_ENDED.store(true, Ordering::Relaxed);
                        }
                        (state, Found::Others)
                    }
                }
            });
            if matches!(found, Some(Found::Forgotten)) {
                shadow::vacated(address, 1);
            }
            if matches!(found, Some(Found::KeptBack)) && !release.is_null() {
                // SAFETY: put in by `retire`, and only this allocator would take
                // it out; only `retire` stores there, such a function.
                unsafe {
                    let release = std::mem::transmute::<*mut (), Release<B>>(release);
                    release_block(address, &mut vacancies, settings, backend, release);
                }
            }
        });
        if let Some(places) = self.places(settings) {
            let magazines = magazines(settings);
            let numbers = places.iter().map(|place| place.load(Ordering::Relaxed));
            numbers
                .filter_map(|number| magazines.get(number))
                .for_each(|magazine| magazines.give_back(magazine));
            // SAFETY: mapped by `places_or_map`; nobody else has this allocator any more.
            unsafe { sys::unmap_slice(places) };
        }
        // Threads give back the magazines that they keep for it.
        NUMBERS.take_back(identity);
    }

    /// Returns the quarantine's places; `None` before the first magazine was full.
    fn places(&self, settings: &Settings) -> Option<&'static [AtomicU32]> {
        let places = NonNull::new(self.places.load(Ordering::Acquire))?;
        // SAFETY: mapped below with that length. Unmapped only by `end`, which has the
        // allocator to itself.
        Some(unsafe { NonNull::slice_from_raw_parts(places, places_of(settings)).as_ref() })
    }

    /// Maps the quarantine's places if need be; `None` where the operating system refuses.
    fn places_or_map(&self, settings: &Settings) -> Option<&'static [AtomicU32]> {
        // SAFETY: zeros are valid. Unmapped only by `end`, which has the allocator to itself.
        unsafe { sys::get_or_map_slice(&self.places, places_of(settings)) }
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

/// Fills a freed block.
///
/// # Safety
///
/// The block must be the caller's alone, and of that size.
#[inline(always)]
unsafe fn fill_freed(block: NonNull<u8>, size: usize, settings: &Settings) {
    // SAFETY: the caller's block.
    let fill = |byte| unsafe { fill(block.as_ptr(), byte, size) };
    match settings.fill {
        Fill::Patterns => fill(FREED),
        Fill::Zeros => fill(0),
        Fill::Nothing => {}
    }
}

/// Whether there is a quarantine. Without one the magazines must not be asked for: the first request
/// settles their number.
#[inline]
fn has_quarantine(settings: &Settings) -> bool {
    settings.quarantine != 0 && settings.quarantine_blocks != 0
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
