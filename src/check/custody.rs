//! A block's way through memory-check: handed out, looked at when it comes
//! back, kept in quarantine, and released.

use super::block::{self, FREED, Particulars, Tag};
use super::inspect::{
    SOME_HAVE_ENDED, about_any, inside_another, may_be_gone, pointer, violation, whole_and_freed,
    whole_and_live, wrong_with_freed, wrong_with_live,
};
use super::quarantine::{MAGAZINE, Magazine, Magazines, Quarantine};
use super::reaction::react;
use super::settings::Settings;
use super::state::{Entry, State};
use super::state_table;
use super::threads;
use super::violation::{Crime, Operation, stamp};
use crate::ledger::thread;
use crate::sync::{AtomicPtr, AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::sys;
use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// One allocator's part in it.
#[derive(Debug)]
pub(crate) struct Custody {
    /// The allocator's number, 0 until it has handed out a block.
    instance: AtomicU16,
    quarantine: Quarantine,
    /// The quarantine's places, null until a block was freed.
    places: AtomicPtr<AtomicU32>,
    /// A [`Release`] of the allocator's backend, or null until a block was freed.
    release: AtomicPtr<()>,
}

/// Gives a block's memory back to the backend.
pub(crate) type Release<B> = unsafe fn(&B, NonNull<u8>, Particulars);

impl Default for Custody {
    fn default() -> Self {
        Self::new()
    }
}

/// What is to be done with a block that was given back.
pub(crate) enum Returned {
    /// All is well, and the block is the caller's alone until it is
    /// [retired](Custody::retire) or [kept](Custody::keep).
    Whole(Whole),
    /// A crime was done to it. For the program it is freed; its memory stays
    /// as it is. `None` if what was known of it has been overwritten.
    Leaked(Option<Particulars>),
    /// It was not the program's to give.
    Refused,
}

/// A block that was given back, and with which all is well.
pub(crate) struct Whole {
    block: NonNull<u8>,
    entry: &'static Entry,
    pub(crate) particulars: Particulars,
}

impl Custody {
    pub(crate) const fn new() -> Self {
        Self {
            instance: AtomicU16::new(0),
            quarantine: Quarantine::new(),
            places: AtomicPtr::new(ptr::null_mut()),
            release: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Makes a block of the backend's memory. `None` if there is no memory for
    /// its state; then nothing has happened.
    ///
    /// # Safety
    ///
    /// `base` must be memory of the layout that [`block::layout`] says, and the
    /// caller's alone.
    #[inline]
    pub(crate) unsafe fn hand_out(&self, base: NonNull<u8>, layout: Layout) -> Option<NonNull<u8>> {
        let settings = Settings::get();
        // SAFETY: the memory is larger than the offset.
        let block = unsafe { base.add(block::offset(layout.align())) };
        let entry = state_table::entry_or_map(block.addr().get())?;
        let particulars =
            Particulars::new(layout, self.instance(), sys::milliseconds(), stamp(settings.backtrace));
        // SAFETY: the caller's promise.
        unsafe {
            particulars.write(block, Tag::Live);
            block::write_guards(block, layout.size());
        }
        entry.set(State::Live);
        Some(block)
    }

    /// Takes a block that the program gives back, if it is live and all is well
    /// with it. Otherwise nothing has changed, and [`take_back`](Self::take_back)
    /// is called for. What the program takes it for may be left open, as C does.
    #[inline(always)]
    pub(crate) fn take_whole(&self, address: *mut u8, given: Option<Layout>) -> Option<Whole> {
        let entry = state_table::entry(address.addr())?;
        let block = NonNull::new(address)?;
        if !entry.seize_live() {
            return None;
        }
        // SAFETY: the block was live and has been seized.
        let whole = unsafe { self.whole(entry, block, given) };
        if whole.is_none() {
            entry.set(State::Live);
        }
        whole
    }

    /// # Safety
    ///
    /// The block must have been live, and have been seized.
    #[inline(always)]
    unsafe fn whole(
        &self,
        entry: &'static Entry,
        block: NonNull<u8>,
        given: Option<Layout>,
    ) -> Option<Whole> {
        // SAFETY: the caller's promise.
        let particulars = unsafe { whole_and_live(block) }?;
        let is_meant = is_layout(&particulars, given) && particulars.instance() == self.instance();
        is_meant.then_some(Whole { block, entry, particulars })
    }

    /// Takes a block that the program gives back, and tells of what was done to
    /// it; or tells that it is not the program's.
    #[cold]
    pub(crate) fn take_back(
        &self,
        address: *mut u8,
        given: Option<Layout>,
        operation: Operation,
    ) -> Returned {
        let violation = |crime| violation(crime, operation, address, given);
        let (Some(entry), Some(block)) = (state_table::entry(address.addr()), NonNull::new(address)) else {
            react(&inside_another(violation(Crime::InvalidFree)));
            return Returned::Refused;
        };
        match entry.seize_any_live() {
            // SAFETY: the block was live and has been seized.
            Ok(State::Live) => match unsafe { self.whole(entry, block, given) } {
                // It was pinned a moment ago.
                Some(whole) => Returned::Whole(whole),
                None => leak(entry, block, given, operation),
            },
            // What was done to it has been told before.
            Ok(_) => {
                entry.set(State::Leaked);
                // SAFETY: the block was the program's, and nobody else has it.
                Returned::Leaked(unsafe { Particulars::read(block, Tag::Live) })
            }
            Err(State::None) => {
                react(&inside_another(violation(Crime::InvalidFree)));
                Returned::Refused
            }
            Err(_) => {
                let violation = violation(Crime::DoubleFree);
                // SAFETY: the block is pinned.
                let known = entry.pinned(|state| (state, unsafe { about_any(violation, block, state) }));
                react(&known.unwrap_or(violation));
                Returned::Refused
            }
        }
    }

    /// The size that a live block was requested with; `None` of what is none.
    #[cfg(feature = "capi")]
    pub(crate) fn size(&self, address: *mut u8) -> Option<usize> {
        let entry = state_table::entry(address.addr())?;
        let block = NonNull::new(address)?;
        let known = entry.pinned(|state| {
            let is_live = matches!(state, State::Live | State::Condemned) && !may_be_gone(state);
            // SAFETY: the block is live, and pinned.
            (state, if is_live { unsafe { Particulars::read(block, Tag::Live) } } else { None })
        });
        known.flatten().map(|known| known.layout().size())
    }

    /// Leaves a block to the program, which was taken back in vain.
    pub(crate) fn keep(&self, block: *mut u8, returned: &Returned) {
        let Some(entry) = state_table::entry(block.addr()) else { return };
        match returned {
            Returned::Whole(..) => entry.set(State::Live),
            Returned::Leaked(_) => {
                entry.change(State::Leaked, State::Condemned);
            }
            Returned::Refused => {}
        }
    }

    /// Puts a block that was taken back into quarantine, and has those released
    /// that leave it.
    ///
    /// # Safety
    ///
    /// The block must be from the allocator of this custody and that backend.
    #[inline(always)]
    pub(crate) unsafe fn retire<B>(&self, whole: Whole, backend: &B, release: Release<B>) {
        let Whole { block, entry, mut particulars } = whole;
        let settings = Settings::get();
        let instance = self.instance();
        let footprint = particulars.outer_layout().size();
        let places = self.places(settings, release);
        if places.is_empty() || footprint as u64 > settings.quarantine || instance == UNNUMBERED {
            entry.set(State::None);
            // SAFETY: the caller's promise.
            return unsafe { release(backend, block, particulars) };
        }
        threads::settle_name();
        // SAFETY: the block is the caller's alone.
        unsafe {
            if settings.fill {
                block.write_bytes(FREED, particulars.layout().size());
            }
            particulars.set_freed(block, stamp(settings.backtrace));
        }
        entry.set(State::Quarantined);

        let keepsake = thread::keepsake(instance.into());
        let kept = keepsake.and_then(|keepsake| kept_magazine(keepsake, settings));
        let own = kept.filter(|kept| kept.instance() == instance);
        let Some(magazine) = own.or_else(|| magazines(settings).take(instance)) else {
            // SAFETY: put in quarantine just now, for that backend.
            return unsafe { let_go(block.addr().get(), settings, backend, release) };
        };
        let is_full = magazine.push(block.addr().get(), footprint, settings.heavy());
        match (keepsake, kept) {
            (Some(_), _) if !is_full && own.is_some() => return,
            (Some(keepsake), None) if !is_full => {
                return keepsake.store(ptr::from_ref(magazine).cast_mut().cast(), Ordering::Relaxed);
            }
            // Before anything is released: that may come back here.
            (Some(keepsake), Some(_)) if own.is_some() => keepsake.store(ptr::null_mut(), Ordering::Relaxed),
            // There is no place to keep it, or another allocator's is there.
            _ => {}
        }
        self.quarantine.enter(places, &magazines(settings), magazine, settings.quarantine, |address| {
            // SAFETY: put in by this function, and taken out just now.
            unsafe { let_go(address, settings, backend, release) };
        });
    }

    /// Releases all blocks that are in quarantine, for an allocator that ends,
    /// and forgets those that the program still has.
    pub(crate) fn end<B>(&mut self, backend: &B) {
        let instance = *self.instance.get_mut();
        if instance == 0 || instance == UNNUMBERED {
            return;
        }
        let settings = Settings::get();
        let release = *self.release.get_mut();
        state_table::for_each(|address, entry| {
            let Some(block) = pointer(address) else { return };
            let is_kept_back = entry.pinned(|state| {
                let is_own = !may_be_gone(state)
                    && [Tag::Live, Tag::Freed]
                        .iter()
                        // SAFETY: the block is pinned.
                        .filter_map(|tag| unsafe { Particulars::read(block, *tag) })
                        .any(|known| known.instance() == instance);
                match state {
                    State::Quarantined => (state, is_own),
                    _ if is_own => (State::None, false),
                    _ => (state, false),
                }
            });
            if is_kept_back == Some(true) && !release.is_null() {
                // SAFETY: put in by `retire`, and only this allocator would take
                // it out; only `places` stores there, such a function.
                unsafe {
                    let release = std::mem::transmute::<*mut (), Release<B>>(release);
                    let_go(address, settings, backend, release);
                }
            }
        });
        SOME_HAVE_ENDED.store(true, Ordering::Relaxed);
        // Threads give back the magazines that they keep for it.
        ENDED[usize::from(instance / 64)].fetch_or(1 << (instance % 64), Ordering::Relaxed);
        let places = *self.places.get_mut();
        if !places.is_null() {
            // SAFETY: as in `places`; nobody else has this allocator any more.
            let places = unsafe { std::slice::from_raw_parts(places, places_of(settings)) };
            let magazines = magazines(settings);
            let numbers = places.iter().map(|place| place.load(Ordering::Relaxed));
            numbers
                .filter_map(|number| magazines.get(number))
                .for_each(|magazine| magazines.give_back(magazine));
            // SAFETY: mapped by `places`.
            unsafe { sys::unmap_slice(places) };
        }
    }

    /// Mapped at the first free; none where the operating system refuses.
    #[inline]
    fn places<B>(&self, settings: &Settings, release: Release<B>) -> &'static [AtomicU32] {
        if self.places.load(Ordering::Relaxed).is_null() {
            if settings.quarantine == 0 || places_of(settings) == 0 || magazines(settings).all.is_empty() {
                return &[];
            }
            self.release.store(release as *mut (), Ordering::Relaxed);
        }
        // SAFETY: zeros are valid. Unmapped only by `end`, which has the
        // allocator to itself.
        let places = unsafe { sys::get_or_map_slice(&self.places, places_of(settings)) };
        places.unwrap_or_default()
    }

    /// Numbers are not given again, since blocks and magazines refer to them.
    #[inline]
    fn instance(&self) -> u16 {
        match self.instance.load(Ordering::Relaxed) {
            0 => self.give_number(),
            number => number,
        }
    }

    #[cold]
    fn give_number(&self) -> u16 {
        static LAST: AtomicU16 = AtomicU16::new(0);

        let next = |last: u16| (last < UNNUMBERED - 1).then(|| last + 1);
        let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let number = last.map_or(UNNUMBERED, |last| last + 1);
        let first = self.instance.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
        first.err().unwrap_or(number)
    }
}

/// What the allocators have in common for which no number is left: they are not
/// told apart, and have no quarantine.
const UNNUMBERED: u16 = u16::MAX;

/// A bit for each number whose allocator has ended.
static ENDED: [AtomicU64; 1 << 10] = [const { AtomicU64::new(0) }; 1 << 10];

/// Tells of a block that has been seized and with which not all is well.
#[cold]
fn leak(entry: &'static Entry, block: NonNull<u8>, given: Option<Layout>, operation: Operation) -> Returned {
    let violation = |crime| violation(crime, operation, block.as_ptr(), given);
    // SAFETY: the block was live and has been seized.
    let (violation, known) = unsafe {
        let violation = match whole_and_live(block) {
            Some(known) if is_layout(&known, given) => {
                violation(Crime::InvalidFree).about(block, Some(&known), Tag::Live, None)
            }
            _ => wrong_with_live(violation, block),
        };
        (violation, Particulars::read(block, Tag::Live))
    };
    entry.set(State::Leaked);
    react(&violation);
    Returned::Leaked(known)
}

/// Whether that is what the program takes a block for, as far as it says.
#[inline(always)]
fn is_layout(particulars: &Particulars, given: Option<Layout>) -> bool {
    given.is_none_or(|given| given == particulars.layout())
}

/// Places of a ring, a power of two, or none.
#[inline]
fn places_of(settings: &Settings) -> usize {
    (settings.quarantine_blocks as usize).div_ceil(MAGAZINE)
}

/// The magazines of all allocators and threads; none where the operating
/// system refuses.
fn magazines(settings: &Settings) -> Magazines<'static> {
    static ALL: AtomicPtr<Magazine> = AtomicPtr::new(ptr::null_mut());
    static NEXT: AtomicU32 = AtomicU32::new(0);

    /// For so many full rings, and so many threads beside. When there are more,
    /// blocks pass the quarantine by.
    const RINGS: usize = 8;
    const THREADS: usize = 4096;

    let length = RINGS * places_of(settings) + THREADS;
    // SAFETY: zeros are free magazines.
    let all = unsafe { sys::get_or_map_slice(&ALL, length) };
    Magazines { all: all.unwrap_or_default(), next: &NEXT }
}

/// The magazine that a thread keeps in that place. One whose allocator has
/// ended is given back.
#[inline]
fn kept_magazine(keepsake: &AtomicPtr<()>, settings: &Settings) -> Option<&'static Magazine> {
    // SAFETY: only magazines are stored there, which are never unmapped.
    let magazine: &Magazine = unsafe { keepsake.load(Ordering::Relaxed).cast::<Magazine>().as_ref() }?;
    let instance = magazine.instance();
    let has_ended = ENDED[usize::from(instance / 64)].load(Ordering::Relaxed) >> (instance % 64) & 1 != 0;
    if has_ended {
        keepsake.store(ptr::null_mut(), Ordering::Relaxed);
        magazines(settings).give_back(magazine);
        return None;
    }
    Some(magazine)
}

/// Bytes and blocks in the quarantines of all allocators.
pub(crate) fn quarantined() -> (u64, u64) {
    let settings = Settings::get();
    let all = magazines(settings).all.iter().map(Magazine::holds);
    all.fold((0, 0), |(bytes, blocks), more| (bytes + more.0, blocks + more.1))
}

/// Releases a block that has left the quarantine, unless a crime was done to it.
///
/// # Safety
///
/// [`Custody::retire`] must have put it in, for that backend.
#[inline]
unsafe fn let_go<B>(address: usize, settings: &Settings, backend: &B, release: Release<B>) {
    let (Some(entry), Some(block)) = (state_table::entry(address), pointer(address)) else { return };
    if !entry.seize_quarantined() {
        // `verify` has found a crime there.
        return;
    }
    // SAFETY: it was in quarantine and has been seized.
    match unsafe { whole_and_freed(block, settings) } {
        Some(particulars) => {
            entry.set(State::None);
            // SAFETY: the caller's promise.
            unsafe { release(backend, block, particulars) };
        }
        None => {
            // SAFETY: as above.
            let violation = unsafe { wrong_with_freed(block, Operation::Reuse, settings) };
            entry.set(State::Leaked);
            react(&violation);
        }
    }
}
