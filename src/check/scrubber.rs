//! Looks at blocks in quarantine now and then, so that a write after free is reported soon, and not when its block
//! leaves or the process ends (setting `look`). A scrubber of memory errors does the same, hence the name.
//!
//! A thread goes through the magazines, a part each time. Any of them may be filled or emptied meanwhile by
//! whoever has it: the addresses that are read there are hints. What counts is the block's state, which the
//! thread [pins](super::block_state) while it reads the block, as [`verify`](super::verify()) does.

use super::block_state::State;
use super::depot::magazines;
use super::handler::react;
use super::inspect::pointer;
use super::quarantine::Magazines;
use super::settings::Settings;
use super::shadow;
use super::threads;
use super::verify::wrong_in_quarantine;
use super::violation_kind::Operation;
use crate::ledger::slots::UNATTRIBUTED;
use crate::ledger::thread;
use crate::sync::{AtomicBool, Ordering};
use crate::sys;
use std::time::Duration;

/// Whether there is a thread, or one is about to begin.
static HAS_THREAD: AtomicBool = AtomicBool::new(false);

/// Begins the thread if there is to be one, for C's `malloc`. Call it when the library is loaded.
pub fn begin() {
    if Settings::get().look != 0 {
        start();
    }
}

/// Begins the thread if there is to be one and it is not there yet. By a thread that has put a magazine into
/// quarantine; not by C's frees, which may come from within the C library, where it has its locks.
#[inline]
pub(super) fn begin_by_free(settings: &Settings) {
    if settings.look != 0 && !HAS_THREAD.load(Ordering::Relaxed) && !threads::has_source() {
        start();
    }
}

#[cold]
fn start() {
    if HAS_THREAD.swap(true, Ordering::Relaxed) {
        return;
    }
    let current = thread::go_to(&UNATTRIBUTED);
    if !sys::spawn(work) {
        HAS_THREAD.store(false, Ordering::Relaxed);
    }
    thread::leave_for(current);
}

/// A forked child has no such thread.
pub(super) fn in_the_child() {
    HAS_THREAD.store(false, Ordering::Relaxed);
}

fn work() {
    let settings = Settings::get();
    let mut next = 0;
    loop {
        std::thread::sleep(Duration::from_millis(settings.look));
        next = look(&magazines(settings), next, settings);
    }
}

/// How many magazines are looked at each time: 2,048 blocks.
const MAGAZINES: usize = 64;

/// Looks at the blocks of some magazines, from that one on, and returns which one is next.
fn look(magazines: &Magazines<'_>, first: usize, settings: &Settings) -> usize {
    let mut looked_at = 0;
    for (index, magazine) in magazines.all.iter().enumerate().skip(first) {
        // They are taken from the front: from here on none was ever used.
        if magazine.identity().is_none() {
            return 0;
        }
        if looked_at == MAGAZINES {
            return index;
        }
        // Its memory may be gone.
        if magazine.has_ended() {
            continue;
        }
        looked_at += usize::from(magazine.holds().1 != 0);
        magazine.each_hint(|address| look_at(address, settings));
    }
    0
}

fn look_at(address: usize, settings: &Settings) {
    let (Some(entry), Some(block)) = (shadow::entry(address), pointer(address)) else { return };
    // A block that is live by now is left to its owner, who would have to wait.
    if !matches!(entry.get(), State::Quarantined | State::Protected) {
        return;
    }
    // SAFETY: the block is pinned.
    let found =
        entry.pinned_briefly(|state| unsafe { wrong_in_quarantine(block, state, Operation::Look, settings) });
    if let Some(Some(violation)) = found {
        react(&violation);
    }
}
