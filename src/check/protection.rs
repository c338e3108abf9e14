//! Takes the access to large freed blocks away, so that who reads or writes one is found at once.
//!
//! A large block begins with a page and shares its pages with nobody ([`block`]). When it is freed they lose
//! access, before they are in quarantine, and have it back before the memory goes back to the backend. The
//! header stands in the page before, and can be read all the time.
//!
//! Nobody can write to such a block, so it is not filled, nor looked at, and its memory is given back to the system. Once
//! a violation has given the access back, the block is filled, and like any other in quarantine.

use super::block::{self, BlockHeader, PAGE, Tag};
use super::block_state::{Entry, State};
use super::claim::Claim;
use super::fill::fill;
use super::handler::react;
use super::inspect::{pointer, violation};
use super::settings::Settings;
use super::shadow;
use super::stack_depot;
use super::uncommitted;
use super::violation::Violation;
use super::violation_kind::{Operation, ViolationKind};
use super::wild_access;
use super::zero_sized;
use crate::sync::{AtomicBool, AtomicUsize, Ordering, spin};
use crate::sys;
use crate::sys::fault::{self, Access, Fault, FaultHook, Outcome};
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicIsize;

/// Whether the program lets itself make few kinds of system calls from now on.
static IS_CONFINED: AtomicBool = AtomicBool::new(false);

/// Leaves further blocks their access, and gives pages without blocks theirs: to take it away, or to give it back, takes
/// system calls that may end the process from now on.
pub(crate) fn confine() {
    IS_CONFINED.store(true, Ordering::Relaxed);
    uncommitted::open_all();
}

/// Whether the program has [confined](confine) itself.
pub(super) fn is_confined() -> bool {
    IS_CONFINED.load(Ordering::Relaxed)
}

/// How many blocks have no access.
static CLOSED: AtomicIsize = AtomicIsize::new(0);

/// How many may have none. Each makes two mappings more, of which Linux lets a process have some 65,000.
const MOST: isize = 8192;

/// Where blocks have ever had none: the first address, and the end.
static FROM: AtomicUsize = AtomicUsize::new(usize::MAX);
static TO: AtomicUsize = AtomicUsize::new(0);

static FAULT_HOOK: FaultHook = FaultHook { handle };

/// How many times pages have lost their access so far.
static TURNS: AtomicUsize = AtomicUsize::new(0);

/// Whether a thread may try an access again: see [`fault::may_try_again`].
fn may_try_again(address: usize) -> bool {
    fault::may_try_again(address, TURNS.load(Ordering::Relaxed))
}

/// Says that pages are about to lose their access.
pub(super) fn begin_turn() {
    TURNS.fetch_add(1, Ordering::Relaxed);
}

/// Whether faults come to this module: it sets the signal's handler if that was never done. `false` if somebody has
/// set another one since.
pub(super) fn hears_of_faults() -> bool {
    hear();
    fault::install_again();
    fault::is_installed()
}

/// Sets the signal's handler if that was never done, for [wild accesses](super::wild_access) alone. If the program sets
/// another one before a block loses its access, [that is done once more](hears_of_faults).
pub(super) fn hear() {
    fault::register_fault_hook(&FAULT_HOOK);
}

/// What [`close`] did.
pub(super) enum Closed {
    /// Nothing.
    No,
    /// The block has no access.
    Kept,
    /// It has no access, and no memory for so many bytes of addresses.
    Emptied(usize),
}

/// Takes the access to a block away that is being freed, if it is large enough and the system lets it. If not, nothing has
/// changed. Gives its memory back if `may_empty` says so, and the system lets it: not of pages that are locked.
///
/// # Safety
///
/// The block must be the caller's alone, and its header say that it is freed. With `may_empty` its memory must be the
/// process's own.
#[cold]
#[inline(never)]
pub(super) unsafe fn close(block: NonNull<u8>, settings: &Settings, may_empty: bool) -> Closed {
    // SAFETY: the block is the caller's alone. (A header that was passed would have to be in memory, for small
    // blocks as well.)
    let Some(header) = (unsafe { BlockHeader::read(block, Tag::Freed) }) else { return Closed::No };
    let is_wanted = settings.protect != 0
        && header.layout().size() as u64 >= settings.protect
        && !is_confined()
        && !cfg!(miri);
    // Who faults farther from the block's beginning would not be told whose it is.
    let Some(length) = header.own_pages().filter(|length| is_wanted && *length <= shadow::REACH) else {
        return Closed::No;
    };
    // Else whoever has set a handler of his own would have to tell of it.
    if !hears_of_faults() {
        return Closed::No;
    }
    // (A fork amid a count may have the child count down twice.)
    if CLOSED.fetch_add(1, Ordering::Relaxed) >= MOST {
        CLOSED.fetch_sub(1, Ordering::Relaxed);
        return Closed::No;
    }
    begin_turn();
    FROM.fetch_min(block.addr().get(), Ordering::Relaxed);
    TO.fetch_max(block.addr().get() + length, Ordering::Relaxed);
    // SAFETY: pages that are the block's alone.
    unsafe {
        let Err(error) = protect(block, length, libc::PROT_NONE) else {
            return if may_empty { empty(block, &header, length) } else { Closed::Kept };
        };
        if open(block, length) {
            return Closed::No;
        }
        // Where there was no memory, a part may have been done. All else is refused as a whole.
        if error == libc::ENOMEM {
            return Closed::Kept;
        }
        CLOSED.fetch_sub(1, Ordering::Relaxed);
        Closed::No
    }
}

/// Gives the memory of a closed block back to the system, but for the page with its header.
///
/// # Safety
///
/// The block must be the caller's alone, with that header and that many pages of its own, and its memory be the process's.
unsafe fn empty(block: NonNull<u8>, header: &BlockHeader, length: usize) -> Closed {
    // What is in front for the sake of its alignment has no more use.
    let front = header.offset() - PAGE;
    // SAFETY: where the block's memory begins, from which on so many pages are its alone; nobody reads what is in them.
    let is_done = unsafe {
        sys::discard_pages(block, length)
            && (front == 0 || sys::discard_pages(block.sub(header.offset()), front))
    };
    if is_done { Closed::Emptied(front + length) } else { Closed::Kept }
}

/// Whether a block begins there that has no access.
pub(crate) fn has_no_access(address: usize) -> bool {
    shadow::entry(address).is_some_and(|entry| entry.get() == State::Protected)
}

/// Gives the access to a block back; `false` if the system refuses. Call it with the block pinned or seized.
///
/// # Safety
///
/// The block must have been [closed](close), and have that header.
pub(super) unsafe fn reopen(block: NonNull<u8>, header: &BlockHeader) -> bool {
    // SAFETY: pages that are the block's alone.
    header.own_pages().is_none_or(|length| unsafe { open(block, length) })
}

/// Gives the access to a block back and fills it, for it to be in quarantine like others. Writes the guard behind it,
/// too, whose memory may be gone.
///
/// # Safety
///
/// As for [`reopen`].
pub(super) unsafe fn reopen_filled(block: NonNull<u8>, header: &BlockHeader) -> bool {
    // SAFETY: the block is the caller's, as for `reopen`, and can be written then.
    unsafe {
        let is_open = reopen(block, header);
        if is_open && let Some(freed) = Settings::get().fill.freed() {
            fill(block.as_ptr(), freed, header.layout().size());
        }
        if is_open && header.own_pages().is_some() {
            block::write_tail(block, header);
        }
        is_open
    }
}

/// Reads the header of a block without access; `None` if it, or the guard before the block, has been overwritten.
///
/// # Safety
///
/// The block must be pinned or seized.
pub(super) unsafe fn whole(block: NonNull<u8>) -> Option<BlockHeader> {
    // SAFETY: the page before the block can be read.
    unsafe {
        let header = BlockHeader::read(block, Tag::Freed)?;
        block::wrong_head(block).is_none().then_some(header)
    }
}

/// Describes the violation of a block without access whose [header or guard](whole) was overwritten, and gives the
/// access to it back as far as the report shows it. The block is never used again.
///
/// # Safety
///
/// As for [`whole`].
#[cold]
pub(super) unsafe fn wrong(block: NonNull<u8>, operation: Operation) -> Violation {
    // SAFETY: the page before the block can be read. The first page is the block's, however large that is.
    unsafe {
        let header = BlockHeader::read(block, Tag::Freed);
        let is_open = match &header {
            Some(header) => reopen_filled(block, header),
            // There is nothing to be shown.
            None if zero_sized::has(block.addr().get()) => true,
            None => {
                LOST.add(block.addr().get());
                protect(block, PAGE, libc::PROT_READ | libc::PROT_WRITE).is_ok()
            }
        };
        let wrong = block::wrong_head(block).filter(|_| is_open);
        let violation = violation(ViolationKind::WriteAfterFree, operation, block.as_ptr(), Claim::default());
        violation.about(block, header.as_ref(), Tag::Freed, wrong)
    }
}

/// # Safety
///
/// The pages must be a closed block's.
unsafe fn open(block: NonNull<u8>, length: usize) -> bool {
    // SAFETY: as the caller says.
    let is_open = unsafe { protect(block, length, libc::PROT_READ | libc::PROT_WRITE) }.is_ok();
    if is_open {
        CLOSED.fetch_sub(1, Ordering::Relaxed);
    }
    is_open
}

/// Changes the access to pages. If the system refuses, returns its error number.
///
/// # Safety
///
/// The pages must be a block's, which nobody may use.
pub(super) unsafe fn protect(pages: NonNull<u8>, length: usize, access: c_int) -> Result<(), c_int> {
    // `errno` stays as it is: C's `free` does not change it.
    fault::keep_errno(|| {
        // SAFETY: as the caller says.
        match unsafe { libc::mprotect(pages.as_ptr().cast(), length, access) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    })
}

/// Blocks whose header was overwritten, so that nobody knows how many pages are theirs: only the first one has its
/// access back at once, the others when they are accessed. The oldest are forgotten.
struct Lost {
    blocks: [AtomicUsize; 64],
    count: AtomicUsize,
}

static LOST: Lost = Lost { blocks: [const { AtomicUsize::new(0) }; 64], count: AtomicUsize::new(0) };

impl Lost {
    fn add(&self, block: usize) {
        let place = self.count.fetch_add(1, Ordering::Relaxed) % self.blocks.len();
        self.blocks[place].store(block, Ordering::Relaxed);
    }

    fn has(&self, block: usize) -> bool {
        self.blocks.iter().any(|known| known.load(Ordering::Relaxed) == block)
    }
}

/// How often a thread looks at a block that another one is looking at, or releases: for seconds.
pub(super) const TRIES: u32 = 10_000;

/// Tells of a fault in a block without access, or in a page that holds none. May be on a small stack.
fn handle(fault: &Fault) -> Outcome {
    let address = fault.address;
    if zero_sized::has(address) {
        return zero_sized::handle(fault);
    }
    if uncommitted::has(address) {
        return wild_access::handle(fault);
    }
    if !(FROM.load(Ordering::Relaxed)..TO.load(Ordering::Relaxed)).contains(&address) {
        // Another thread's access may have been let through meanwhile.
        let is_near = uncommitted::are_around(address) && may_try_again(address);
        return if is_near { Outcome::TryAgain } else { Outcome::Nothing };
    }
    let Some((start, entry)) = shadow::covering(address) else {
        // The block may have left the quarantine meanwhile.
        return if may_try_again(address) { Outcome::TryAgain } else { Outcome::Nothing };
    };
    for attempt in 0..TRIES {
        match entry.get() {
            State::Protected => {
                if let Some(outcome) = as_interrupted(fault, || tell(fault, start, entry)) {
                    return outcome;
                }
            }
            // Somebody is about to give the access back.
            State::Busy => {}
            // It was given back as far as was known.
            State::Leaked if LOST.has(start) && may_try_again(address) => {
                let page = pointer(address & !(PAGE - 1));
                // SAFETY: memory that is never used again.
                let is_open = page.is_some_and(|page| unsafe {
                    protect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE).is_ok()
                });
                return if is_open { Outcome::TryAgain } else { Outcome::Nothing };
            }
            // It was given back meanwhile, or taken away by the program.
            _ if may_try_again(address) => return Outcome::TryAgain,
            _ => return Outcome::Nothing,
        }
        spin(attempt);
    }
    Outcome::Nothing
}

/// Has `tell` called on the stack that the fault has interrupted.
pub(super) fn as_interrupted(fault: &Fault, tell: impl FnOnce() -> Option<Outcome>) -> Option<Outcome> {
    let mut outcome = None;
    // A coroutine may have freed the stack that it is on.
    let is_usable = |stack: usize| {
        let below = shadow::covering(stack - 1);
        let is_freed = below.is_some_and(|(_, entry)| matches!(entry.get(), State::Protected | State::Busy));
        !is_freed && !uncommitted::has(stack - 1)
    };
    // SAFETY: the context that the handler of this fault was given.
    unsafe { fault::work_as_interrupted(fault.context, is_usable, || outcome = tell()) };
    outcome
}

/// Reports an access to a block without access, which it then has; `None` if somebody has the block at this moment,
/// or it has become another one's.
fn tell(fault: &Fault, start: usize, entry: &'static Entry) -> Option<Outcome> {
    let block = pointer(start)?;
    let seen = entry.pinned_briefly(|state| match state {
        // SAFETY: the block is pinned, and without access.
        State::Protected => unsafe { look(fault, block) },
        _ => (state, (None, None)),
    });
    let (violation, outcome) = seen?;
    if let Some(violation) = violation {
        react(&violation.met_at(trace(fault.context)));
    }
    outcome
}

/// Says what is wrong with an access, gives it back, and says in which state the block is from then on.
///
/// # Safety
///
/// The block must be pinned, and without access.
unsafe fn look(fault: &Fault, block: NonNull<u8>) -> (State, (Option<Violation>, Option<Outcome>)) {
    // SAFETY: the page before the block can be read.
    let Some(header) = (unsafe { BlockHeader::read(block, Tag::Freed) }) else {
        // Whatever the access is: what is known of the block was written to before.
        // SAFETY: the caller's block.
        let violation = unsafe { wrong(block, Operation::Access) };
        return (State::Leaked, (Some(violation), Some(Outcome::TryAgain)));
    };
    let offset = fault.address - block.addr().get();
    if header.own_pages().is_none_or(|length| offset >= length) {
        return (State::Protected, (None, Some(Outcome::Nothing)));
    }
    let is_write = fault.access == Access::Write;
    let kind = if is_write { ViolationKind::WriteAfterFree } else { ViolationKind::ReadAfterFree };
    let address = ptr::with_exposed_provenance_mut(fault.address);
    // SAFETY: the caller's block, of which that is the header.
    let (is_open, violation) = unsafe {
        let is_open = reopen_filled(block, &header);
        let wrong = Some(offset as isize).filter(|_| is_open);
        let violation = violation(kind, Operation::Access, address, Claim::default());
        (is_open, violation.about(block, Some(&header), Tag::Freed, wrong))
    };
    let (state, outcome) = match is_open {
        // What is written to it is not reported again.
        true if is_write => (State::Leaked, Outcome::TryAgain),
        true => (State::Quarantined, Outcome::TryAgain),
        false => (State::Protected, Outcome::Told),
    };
    (state, (Some(violation), Some(outcome)))
}

/// The call stack of the interrupted thread, if call stacks are kept.
pub(super) fn trace(context: *mut c_void) -> u32 {
    // SAFETY: the context that the handler of this fault was given.
    if Settings::get().backtrace { unsafe { stack_depot::take_interrupted(context) } } else { 0 }
}
