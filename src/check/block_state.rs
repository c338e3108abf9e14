//! The state of one block. Of two frees of it, at once from two threads too,
//! exactly one finds it live.
//!
//! ```text
//!     none ─ hand out ─▶ live ── seize ─▶ busy ─ retire ─▶ quarantined (or protected)
//!      ▲                 │  ▲              │ │                │     │
//!      │        reported │  └─ in vain ────┘ └ violation ─▶ leaked ◀─┤ reported
//!      │                 ▼                                  ▲       │
//!      │             condemned ── seize ─▶ busy ────────────┘       │
//!      └────────────────────── release ── busy ◀──────────── seize ─┘
//! ```
//!
//! A reader of a block *pins* it: while it does, who wants to seize it waits.
//! In a forked child the pins of other threads stay, and are void.

use crate::sync::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering, shared, yield_now};
use crate::sys;
use std::ptr;

/// A block's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// No block begins here.
    None = 0,
    /// The program has it.
    Live = 1,
    /// The program has it, and a violation of it has been reported.
    Condemned = 2,
    /// Freed, and kept back for a while.
    Quarantined = 3,
    /// Freed, and never to be handed out again.
    Leaked = 4,
    /// Somebody is changing its state.
    Busy = 5,
    /// Freed, and kept back without access to it. Only what stands in front of it can be read.
    Protected = 6,
    /// The program has it, and nobody has access to it: it is of 0 bytes, and a page behind it.
    ZeroSized = 7,
}

/// Bits of a state; above them stands the generation of whoever pins the block,
/// or 0.
const STATE_BITS: u32 = 3;

/// Where a block's state is kept.
#[repr(transparent)]
pub(crate) struct Entry(AtomicU8);

impl Entry {
    /// Changes the state. Call it having seized the block, or about to hand it out.
    #[inline]
    pub(crate) fn set(&self, state: State) {
        self.0.store(state as u8, Ordering::Release);
    }

    /// Makes a live block the caller's alone. `false`, and nothing has changed,
    /// if it is not live, or not at this moment.
    #[inline]
    pub(crate) fn seize_live(&self) -> bool {
        self.seize(State::Live)
    }

    /// Makes a block the caller's alone that the program has, and says in which of these states
    /// it was. Otherwise it says what it is.
    pub(crate) fn seize_any_live(&self) -> Result<State, State> {
        self.seize_slowly(&[State::Live, State::Condemned, State::ZeroSized])
    }

    /// Makes a block in quarantine the caller's alone, and says in which of both states it was. `None` if it is in
    /// another one by now.
    #[inline]
    pub(crate) fn seize_quarantined(&self) -> Option<State> {
        match self.seize(State::Quarantined) {
            true => Some(State::Quarantined),
            false => self.seize_slowly(&[State::Quarantined, State::Protected]).ok(),
        }
    }

    #[inline]
    fn seize(&self, from: State) -> bool {
        self.0.compare_exchange(from as u8, State::Busy as u8, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Changes the state from outside: waits for those who look at the block.
    /// `false` if it is in another state by then.
    pub(crate) fn change(&self, from: State, to: State) -> bool {
        let is_seized = self.seize_slowly(&[from]).is_ok();
        if is_seized {
            self.set(to);
        }
        is_seized
    }

    #[cold]
    fn seize_slowly(&self, from: &[State]) -> Result<State, State> {
        let mut waited = 0;
        loop {
            let bits = self.0.load(Ordering::Relaxed);
            let state = state(bits);
            if !from.contains(&state) {
                return Err(state);
            }
            let busy = State::Busy as u8;
            if is_pinned(bits) {
                wait(&mut waited);
            } else if self.0.compare_exchange(bits, busy, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Ok(state);
            }
        }
    }

    /// Keeps the block as it is while `look` reads it and says which state it
    /// is in from then on. `None` where there is nothing to look at, or somebody
    /// is changing the state for longer than that takes.
    pub(crate) fn pinned<R>(&self, look: impl FnOnce(State) -> (State, R)) -> Option<R> {
        let mut waited = 0;
        let mut bits = self.0.load(Ordering::Relaxed);
        loop {
            match state(bits) {
                State::None => return None,
                State::Busy if is_too_long(waited) => return None,
                State::Busy => {}
                // Another reader has it, but for a moment.
                _ if is_pinned(bits) => {}
                state => {
                    let pinned = state as u8 | generation() << STATE_BITS;
                    match self.0.compare_exchange_weak(bits, pinned, Ordering::Acquire, Ordering::Relaxed) {
                        Ok(_) => {
                            let (next, seen) = look(state);
                            self.set(next);
                            return Some(seen);
                        }
                        Err(now) => {
                            bits = now;
                            continue;
                        }
                    }
                }
            }
            wait(&mut waited);
            bits = self.0.load(Ordering::Relaxed);
        }
    }

    /// Variant of [`pinned`](Self::pinned) that gives up if the block is pinned for longer than a moment: for
    /// signal handlers, which may have interrupted the very thread that pins it.
    #[cfg_attr(dogtag_loom, allow(dead_code))]
    pub(crate) fn pinned_briefly<R>(&self, look: impl FnOnce(State) -> (State, R)) -> Option<R> {
        const TRIES: usize = 100;

        for _ in 0..TRIES {
            let bits = self.0.load(Ordering::Relaxed);
            let state = state(bits);
            if matches!(state, State::None | State::Busy) {
                return None;
            }
            let pinned = state as u8 | generation() << STATE_BITS;
            if !is_pinned(bits)
                && self.0.compare_exchange(bits, pinned, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                let (next, seen) = look(state);
                self.set(next);
                return Some(seen);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Whether there is a block that begins at one of them.
    #[inline]
    pub(crate) fn is_any_set(entries: &[Self]) -> bool {
        entries.iter().fold(0, |bits, entry| bits | entry.0.load(Ordering::Relaxed)) != 0
    }

    /// The state at this moment.
    #[inline]
    pub(crate) fn get(&self) -> State {
        state(self.0.load(Ordering::Relaxed))
    }
}

fn state(bits: u8) -> State {
    match bits & ((1 << STATE_BITS) - 1) {
        0 => State::None,
        1 => State::Live,
        2 => State::Condemned,
        3 => State::Quarantined,
        4 => State::Leaked,
        6 => State::Protected,
        7 => State::ZeroSized,
        _ => State::Busy,
    }
}

/// Whether somebody looks at the block who is still there.
fn is_pinned(bits: u8) -> bool {
    bits >> STATE_BITS == generation()
}

/// How often the process was forked off: 1 before the first time, up to 31, and then from 2 on
/// again.
fn generation() -> u8 {
    // Nobody forks under loom.
    if !cfg!(dogtag_loom) && !HEEDS_FORKS.load(Ordering::Relaxed) {
        heed_forks();
    }
    GENERATION.load(Ordering::Relaxed)
}

/// How often this process, and those that it is a child of, have forked.
#[cfg_attr(dogtag_loom, allow(dead_code))]
pub(crate) fn forks() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// By a thread that is about to fork the process.
#[cfg_attr(dogtag_loom, allow(dead_code))]
pub(crate) fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// By a thread that has put a magazine into quarantine.
#[cfg_attr(dogtag_loom, allow(dead_code))]
pub(crate) fn count_magazine() {
    MAGAZINES.fetch_add(1, Ordering::Relaxed);
}

/// How many magazines a process has put into quarantine since it was forked off; `None` if it was
/// not.
pub(crate) fn magazines_as_child() -> Option<u64> {
    let at_fork = MAGAZINES_AT_FORK.load(Ordering::Relaxed);
    (at_fork != u64::MAX).then(|| MAGAZINES.load(Ordering::Relaxed) - at_fork)
}

shared! {
    static FORKS: AtomicU64 = AtomicU64::new(0);
    static MAGAZINES: AtomicU64 = AtomicU64::new(0);
    static MAGAZINES_AT_FORK: AtomicU64 = AtomicU64::new(u64::MAX);
    static GENERATION: AtomicU8 = AtomicU8::new(1);
    static HEEDS_FORKS: AtomicBool = AtomicBool::new(false);
    static TABLE: AtomicPtr<EntryTable> = AtomicPtr::new(ptr::null_mut());
}

/// Before the first pin, and at load where the system has a way to.
#[cold]
fn heed_forks() {
    if !HEEDS_FORKS.swap(true, Ordering::Relaxed) {
        #[cfg(not(dogtag_loom))]
        {
            sys::fork::register_fork_hook(&super::FORK_HOOK);
            sys::fork::prepare();
        }
    }
}

#[cfg(not(dogtag_loom))]
sys::fork::at_load!(heed_forks);

/// One generation on.
#[cfg_attr(dogtag_loom, allow(dead_code))]
pub(super) fn in_the_child() {
    let next = match GENERATION.load(Ordering::Relaxed) {
        LAST_GENERATION.. => {
            // From here on old ones would look like those that are to come.
            forget_pins();
            2
        }
        last => last + 1,
    };
    GENERATION.store(next, Ordering::Relaxed);
    MAGAZINES_AT_FORK.store(MAGAZINES.load(Ordering::Relaxed), Ordering::Relaxed);
}

const LAST_GENERATION: u8 = u8::MAX >> STATE_BITS;

/// The table of all entries, which is built on this module.
pub(crate) struct EntryTable {
    /// Calls a function for the entry of each block.
    pub(crate) for_each: fn(fn(&Entry)),
}

/// Makes the table known, before there is an entry.
#[cfg_attr(dogtag_loom, allow(dead_code))]
pub(crate) fn set_table(table: &'static EntryTable) {
    TABLE.store(ptr::from_ref(table).cast_mut(), Ordering::Release);
}

/// Takes the pins away that readers left which this process does not have.
fn forget_pins() {
    // SAFETY: what was stored is a static.
    if let Some(table) = unsafe { TABLE.load(Ordering::Acquire).as_ref() } {
        (table.for_each)(|entry| {
            let bits = entry.0.load(Ordering::Relaxed);
            if bits >> STATE_BITS != 0 {
                entry.set(state(bits));
            }
        });
    }
}

/// Nobody needs that long to change a state, if he is still there: in a forked
/// child he may not be, and there may be one such block for each thread.
fn is_too_long(waited: u32) -> bool {
    waited > if GENERATION.load(Ordering::Relaxed) == 1 { 100_000 } else { 200 }
}

fn wait(waited: &mut u32) {
    *waited = waited.saturating_add(1);
    if *waited < 100 && !cfg!(dogtag_loom) {
        std::hint::spin_loop();
    } else {
        yield_now();
    }
}

/// For a test of the table: pins an entry by a reader that stays behind in another process.
#[cfg(all(test, not(dogtag_loom)))]
pub(crate) fn a_pin_of_another_process_is_void(entry: &'static Entry) {
    for _ in 0..2 {
        let pinned = State::Live as u8 | GENERATION.load(Ordering::Relaxed) << STATE_BITS;
        entry.0.store(pinned, Ordering::Relaxed);
        assert!(is_pinned(pinned) && entry.get() == State::Live);
        for _ in 0..100 {
            in_the_child();
            assert!(!is_pinned(entry.0.load(Ordering::Relaxed)));
            assert_eq!(entry.get(), State::Live);
        }
        assert!(entry.seize_any_live() == Ok(State::Live));
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::whole_model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// A block: its state, and memory that one thread at a time may use, which
    /// loom watches over.
    struct Block {
        entry: Entry,
        memory: UnsafeCell<u32>,
    }

    impl Block {
        fn live() -> Arc<Self> {
            Arc::new(Self { entry: Entry(AtomicU8::new(State::Live as u8)), memory: UnsafeCell::new(0) })
        }

        /// Frees it; `false` if it was freed already.
        fn free(&self) -> bool {
            let is_first = self.entry.seize_live() || self.entry.seize_any_live().is_ok();
            if is_first {
                // SAFETY: the block is this thread's alone, or else the model fails.
                self.memory.with_mut(|memory| unsafe { *memory += 1 });
                self.entry.set(State::Quarantined);
            }
            is_first
        }

        /// As a block that leaves the quarantine is released.
        fn release(&self) -> bool {
            let is_released = self.entry.seize_quarantined().is_some();
            if is_released {
                // SAFETY: the model fails if two threads are here at once.
                self.memory.with_mut(|memory| unsafe { *memory += 10 });
                self.entry.set(State::None);
            }
            is_released
        }

        /// As `verify` looks at a block, and condemns it if it is to.
        fn look(&self, condemns: bool) -> Option<u32> {
            self.entry.pinned(|state| {
                // SAFETY: the model fails if two threads are here at once.
                let seen = self.memory.with(|memory| unsafe { *memory });
                let next = match state {
                    State::Live if condemns => State::Condemned,
                    State::Quarantined if condemns => State::Leaked,
                    state => state,
                };
                (next, seen)
            })
        }
    }

    #[test]
    fn of_two_frees_one_is_the_first() {
        whole_model(|| {
            let block = Block::live();
            let other = thread::spawn({
                let block = block.clone();
                move || block.free()
            });
            let first = block.free();
            assert!(first ^ other.join().unwrap());
        });
    }

    #[test]
    fn who_looks_at_a_block_has_it_as_it_is() {
        whole_model(|| {
            let block = Block::live();
            let other = thread::spawn({
                let block = block.clone();
                move || block.free() && block.release()
            });
            let seen = block.look(false);
            assert!(other.join().unwrap(), "a look changes nothing");
            assert!(matches!(seen, None | Some(0 | 1)), "{seen:?}");
            assert_eq!(block.entry.get(), State::None);
        });
    }

    #[test]
    fn who_is_condemned_is_never_released() {
        whole_model(|| {
            let block = Block::live();
            let other = thread::spawn({
                let block = block.clone();
                move || {
                    let state = block.entry.seize_any_live().expect("the program has it");
                    let keep = if state == State::Live { State::Quarantined } else { State::Leaked };
                    block.entry.set(keep);
                    block.release()
                }
            });
            let seen = block.look(true);
            let is_released = other.join().unwrap();
            assert_ne!(seen.is_some(), is_released, "condemned or released");
        });
    }
}
