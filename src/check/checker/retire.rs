//! A block's way through the quarantine: put in when it is freed, and released when it leaves.

use super::{Checker, Whole};
use crate::backend;
use crate::check::access_context::stamp;
use crate::check::block::{BlockHeader, FREED, LARGE, PAGE, Tag};
use crate::check::block_state::{self, Entry, State};
use crate::check::depot::{is_free, kept_for, magazines, place_for, places_of, take_kept};
use crate::check::fill::fill;
use crate::check::inspect::{SOME_HAVE_ENDED, may_be_gone, pointer};
use crate::check::instance_id::{Identity, NUMBERS};
use crate::check::magazine::{self, Place};
use crate::check::protection::{self, Closed};
use crate::check::quarantine::{ADDRESSES, Held, Leaves, Left, Magazine};
use crate::check::release::{Release, Releases, give_back, give_back_after_forks, release_block};
use crate::check::settings::{Fill, Settings};
use crate::check::shadow::{self, Vacancies};
use crate::check::{scrubber, threads, uncommitted, wild_access, zero_sized};
use crate::sync::{AtomicU32, Ordering};
use crate::sys;
use std::marker::PhantomData;
use std::ptr::NonNull;

impl Checker {
    /// Puts a block that was taken back into quarantine, and releases the blocks that leave it.
    ///
    /// # Safety
    ///
    /// The block must be from the allocator of this checker and that backend.
    #[inline(always)]
    pub(crate) unsafe fn retire<B, R: Releases<B>>(&self, whole: Whole, backend: &B) {
        if whole.header.layout().size() >= LARGE {
            // SAFETY: as the caller says.
            return unsafe { self.retire_large::<B, R>(whole.block, whole.entry, backend) };
        }
        let Whole { block, entry, mut header } = whole;
        let settings = Settings::get();
        let identity = self.identity();
        let outer = match header.plain_outer_layout() {
            // SAFETY: the block is the caller's alone.
            None => unsafe { header.outer_layout(block) },
            plain => plain,
        };
        let footprint = outer.map_or(0, |outer| outer.size());
        let is_kept_back = identity != Identity::UNNUMBERED
            && footprint as u64 <= settings.quarantine
            && has_quarantine(settings);
        if !is_kept_back {
            shadow::vacate(block.addr().get(), entry);
            // SAFETY: the block is seized, and was requested from that backend.
            return unsafe { give_back(block, &header, |base, outer| R::release(backend, base, outer)) };
        }
        threads::settle_name();
        let size = header.layout().size();
        // SAFETY: the block is the caller's alone.
        unsafe {
            header.set_freed(block, stamp(settings.backtrace));
            fill_freed(block, size, settings);
        }
        entry.set(State::Quarantined);
        // SAFETY: as the caller says.
        unsafe { self.keep_back::<B, R>(block, Held::memory(footprint), settings, identity, backend) }
    }

    /// Variant of [`retire`](Self::retire) for a large block, which loses its access, and its memory if it is large enough.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire).
    #[cold]
    #[inline(never)]
    unsafe fn retire_large<B, R: Releases<B>>(&self, block: NonNull<u8>, entry: &'static Entry, backend: &B) {
        // Read again: a header that was passed would have to be in memory, for small blocks as well.
        // SAFETY: the block is the caller's alone.
        let Some(mut header) = (unsafe { BlockHeader::read(block, Tag::Live) }) else {
            return entry.set(State::Leaked);
        };
        let settings = Settings::get();
        let identity = self.identity();
        let size = header.layout().size();
        // SAFETY: the block is the caller's alone.
        let footprint = unsafe { header.outer_layout(block) }.map_or(0, |outer| outer.size());
        let fits = footprint as u64 <= settings.quarantine;
        // Where the system counts every byte that is mapped, others could use what is without memory.
        let may_empty = size >= EMPTIED
            && footprint as u64 <= settings.quarantine.saturating_mul(ADDRESSES)
            && backend::is_own_memory::<B>()
            && !uncommitted::are_left_to_backend();
        let is_wanted = identity != Identity::UNNUMBERED && has_quarantine(settings) && (fits || may_empty);
        // SAFETY: the block is the caller's alone, and that backend's.
        let kept = unsafe {
            let mut closed = Closed::No;
            if is_wanted {
                threads::settle_name();
                header.set_freed(block, stamp(settings.backtrace));
                closed = protection::close(block, settings, may_empty);
            }
            match closed {
                Closed::Emptied(addresses) => Some((State::Protected, Held { memory: PAGE, addresses })),
                Closed::Kept if fits => Some((State::Protected, Held::memory(footprint))),
                Closed::No if fits && is_wanted => {
                    fill_freed(block, size, settings);
                    Some((State::Quarantined, Held::memory(footprint)))
                }
                Closed::Kept if !protection::reopen(block, &header) => return entry.set(State::Leaked),
                _ => None,
            }
        };
        match kept {
            Some((state, held)) => {
                entry.set(state);
                // SAFETY: as the caller says.
                unsafe { self.keep_back::<B, R>(block, held, settings, identity, backend) }
            }
            None => {
                shadow::vacate(block.addr().get(), entry);
                // SAFETY: the block is seized, and was requested from that backend.
                unsafe { give_back(block, &header, |base, outer| R::release(backend, base, outer)) }
            }
        }
    }

    /// Variant of [`retire`](Self::retire) for a block of 0 bytes, to which nobody has access.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire).
    #[cold]
    pub(crate) unsafe fn retire_zero_sized<B, R: Releases<B>>(&self, whole: Whole, backend: &B) {
        let Whole { block, entry, mut header } = whole;
        let settings = Settings::get();
        let identity = self.identity();
        if identity == Identity::UNNUMBERED || !has_quarantine(settings) {
            shadow::vacate(block.addr().get(), entry);
            // SAFETY: the block was seized, and nobody has it any more.
            return unsafe { zero_sized::put(block) };
        }
        threads::settle_name();
        // SAFETY: the block is the caller's alone. It takes nothing of the backend's.
        unsafe {
            header.set_freed(block, stamp(settings.backtrace));
            entry.set(State::Protected);
            self.keep_back::<B, R>(block, Held::memory(0), settings, identity, backend);
        }
    }

    /// Puts a freed block into quarantine, and releases the blocks that leave it.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire).
    #[inline(always)]
    unsafe fn keep_back<B, R: Releases<B>>(
        &self,
        block: NonNull<u8>,
        held: Held,
        settings: &'static Settings,
        identity: Identity,
        backend: &B,
    ) {
        let address = block.addr().get();
        let place = place_for(identity);
        // SAFETY: the block was requested from that backend.
        unsafe {
            match place.and_then(|place| Some((place, kept_for(place, identity)?))) {
                Some((place, kept)) => {
                    if kept.push(address, held) && magazine::take_out(place) {
                        self.enter::<B, R>(kept, settings, backend);
                    }
                }
                None => self.begin_magazine::<B, R>((address, held), place, identity, backend),
            }
        }
    }

    /// Puts a freed block into a magazine that the calling thread keeps from then on, if it can.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire).
    #[inline(never)]
    unsafe fn begin_magazine<B, R: Releases<B>>(
        &self,
        (address, held): (usize, Held),
        place: Option<&'static Place>,
        identity: Identity,
        backend: &B,
    ) {
        // All of the allocator's magazines begin here.
        self.release.store(R::release as Release<B> as *mut (), Ordering::Relaxed);
        let settings = Settings::get();
        let magazines = magazines(settings);
        let place = place.filter(|place| is_free(&magazines, place));
        let heavy = self.quarantine.heavy(settings.quarantine);
        let Some(magazine) = magazines.take(identity, heavy) else {
            // SAFETY: the block was requested from that backend.
            let release = |base, outer| unsafe { R::release(backend, base, outer) };
            // SAFETY: the caller has put it into quarantine.
            return unsafe {
                release_block(Left::new(address), &mut Vacancies::default(), settings, release)
            };
        };
        let is_full = magazine.push(address, held);
        match place {
            Some(place) if !is_full => magazine::put(place, magazine),
            // SAFETY: the caller's block is from that backend.
            _ => unsafe { self.enter::<B, R>(magazine, settings, backend) },
        }
    }

    /// Puts a magazine that the caller has into quarantine, and releases the blocks that leave it.
    ///
    /// # Safety
    ///
    /// What is in it, and in quarantine, must be from that backend.
    #[inline(never)]
    unsafe fn enter<B, R: Releases<B>>(
        &self,
        magazine: &'static Magazine,
        settings: &'static Settings,
        backend: &B,
    ) {
        let magazines = magazines(settings);
        // SAFETY: all that is in there was put in by `retire`, for that backend.
        let mut leaving = unsafe { Leaving::<B, R>::new(backend, settings) };
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
                    &mut leaving,
                );
                give_back_after_forks(less);
                scrubber::begin_by_free(settings);
                wild_access::begin_by_free();
            }
            None => magazines.empty(magazine, &mut leaving),
        }
    }

    /// Releases the blocks in quarantine and says whether there were any: for an allocator whose
    /// backend has no memory left. Magazines that other threads are filling at this moment are left.
    ///
    /// # Safety
    ///
    /// Both must be what [`retire`](Self::retire) is called with.
    #[cold]
    pub(crate) unsafe fn flush<B, R: Releases<B>>(&self, backend: &B) -> bool {
        let settings = Settings::get();
        let identity = Identity::from_bits(self.identity.load(Ordering::Relaxed));
        let Some(identity) = identity.filter(|_| has_quarantine(settings)) else {
            return false;
        };
        let magazines = magazines(settings);
        // SAFETY: put in by `retire`, for that backend.
        let mut leaving = unsafe { Leaving::<B, R>::new(backend, settings) };
        if let Some(places) = self.places(settings) {
            self.quarantine.clear(places, &magazines, &mut leaving);
        }
        take_kept(&magazines, identity, &mut leaving);
        leaving.were_any
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
                // it out; only `begin_magazine` stores there, such a function.
                unsafe {
                    let release = std::mem::transmute::<*mut (), Release<B>>(release);
                    let release = |base, outer| release(backend, base, outer);
                    release_block(Left { address, entry: Some(entry) }, &mut vacancies, settings, release);
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
}

/// Blocks from this size on lose their memory in quarantine. Smaller ones are used again so often that to have their pages
/// from the system anew takes longer than all that the memory is worth.
const EMPTIED: usize = 2 << 20;

/// Releases blocks that leave a quarantine.
struct Leaving<'a, B, R> {
    backend: &'a B,
    settings: &'a Settings,
    vacancies: Vacancies,
    were_any: bool,
    release: PhantomData<fn() -> R>,
}

impl<'a, B, R> Leaving<'a, B, R> {
    /// # Safety
    ///
    /// All blocks that leave must have been put in by [`Checker::retire`], for that backend.
    unsafe fn new(backend: &'a B, settings: &'a Settings) -> Self {
        Self { backend, settings, vacancies: Vacancies::default(), were_any: false, release: PhantomData }
    }
}

impl<B, R: Releases<B>> Leaves for Leaving<'_, B, R> {
    #[inline(always)]
    fn leave(&mut self, left: Left) {
        self.were_any = true;
        // SAFETY: the block was requested from that backend, as `new` asks.
        let release = |base, outer| unsafe { R::release(self.backend, base, outer) };
        // SAFETY: `retire` has put it in.
        unsafe { release_block(left, &mut self.vacancies, self.settings, release) };
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
