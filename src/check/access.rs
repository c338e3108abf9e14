//! Checks of what C's functions read and write, such as `memcpy`, at the call.
//!
//! An access is looked up in the [shadow](super::shadow). It is right if it stays within a live block,
//! or touches no block and nothing around one. Memory that is no block's (stacks, statics, mappings)
//! takes a few loads. Nothing is said before the block is pinned and its header is believed.
//!
//! Signal handlers copy, too, and so may a thread that is inside the allocator: nothing here waits, or
//! allocates. What cannot be known at once passes.

use super::block::{self, BlockHeader, HEAD, Tag};
use super::block_state::{Entry, State};
use super::claim::Claim;
use super::handler::react;
use super::inspect::{may_be_gone, pointer, violation};
use super::protection;
use super::settings::Settings;
use super::shadow;
use super::violation::Violation;
use super::violation_kind::{Operation, ViolationKind};
use super::wild_access;
use crate::sync::{AtomicBool, Ordering};
use std::ptr::{self, NonNull};

/// Who makes an access, and of which kind.
#[derive(Debug)]
pub struct Accessor {
    /// The function's name.
    pub function: &'static str,
    /// Whether it writes.
    pub is_write: bool,
}

/// What a function reads or writes, or has written.
#[derive(Clone, Copy)]
struct Access {
    /// The first byte.
    address: usize,
    /// The number of bytes.
    length: usize,
    by: &'static Accessor,
}

/// Set once the settings are read and say so. Before that nothing is looked at: a copy may be made
/// while they are read.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// Begins to check accesses, and to hear of wild ones, unless `DOGTAG_CHECK` says not to. Call it
/// when the library is loaded.
pub fn begin() {
    wild_access::begin();
    IS_ON.store(Settings::get().copies, Ordering::Relaxed);
}

/// Checks an access to `length` bytes at `address`, and calls the handler if it is wrong. Returns if the
/// process goes on.
#[inline(always)]
pub fn check(address: usize, length: usize, by: &'static Accessor) {
    if IS_ON.load(Ordering::Relaxed) {
        check_bytes(address, length, by);
    }
}

#[inline(never)]
fn check_bytes(address: usize, length: usize, by: &'static Accessor) {
    let Some((start, entry)) = shadow::covering(address) else {
        return look_ahead(Access { address, length, by });
    };
    if entry.get() == State::Live
        && let Some(block) = pointer(start)
    {
        // SAFETY: a live block's header is mapped.
        let size = unsafe { block::size_hint(block) };
        if (address - start).checked_add(length).is_some_and(|end| end <= size) {
            return;
        }
    }
    if length != 0 {
        look(Access { address, length, by }, start, entry);
    }
}

/// Looks for a block that begins behind the first byte, and that the access runs into.
#[inline]
fn look_ahead(access: Access) {
    if access.length == 0 {
        return;
    }
    let end = access.address.saturating_add(access.length);
    if let Some((start, entry)) = shadow::first_in(access.address + 1..end.saturating_add(HEAD)) {
        ran_into(access, start, entry);
    }
}

/// What a look at a block has found.
#[allow(clippy::large_enum_variant, reason = "a box would be an allocation")]
enum Found {
    /// The access has nothing to do with it.
    Elsewhere,
    /// Nothing is wrong, or nothing is known.
    Fine,
    Wrong(Violation),
}

/// Looks closely at the block in which, or behind which, the access begins.
#[cold]
#[inline(never)]
fn look(access: Access, start: usize, entry: &'static Entry) {
    let Some(block) = pointer(start) else { return };
    let offset = access.address - start;
    let seen = entry.pinned_briefly(|state| {
        let Some(tag) = tag(state) else { return (state, Found::Fine) };
        // SAFETY: the block is pinned, and live or in quarantine.
        let Some(header) = (unsafe { BlockHeader::read(block, tag) }) else { return (state, Found::Fine) };
        let size = header.layout().size();
        if offset >= header.extent() {
            return (state, Found::Elsewhere);
        }
        // SAFETY: as above.
        let Some(state) = (unsafe { reopened(state, block, &header) }) else { return (state, Found::Fine) };
        let is_over = offset.checked_add(access.length).is_none_or(|end| end > size);
        let (kind, wrong) = match (tag, access.by.is_write) {
            (Tag::Live, _) if !is_over => return (state, Found::Fine),
            (Tag::Live, true) => (ViolationKind::Overrun, offset.max(size)),
            (Tag::Live, false) => (ViolationKind::Overread, offset.max(size)),
            (Tag::Freed, true) => (ViolationKind::WriteAfterFree, offset),
            (Tag::Freed, false) => (ViolationKind::ReadAfterFree, offset),
        };
        // SAFETY: the block is pinned, and the header is its own.
        (
            after(access, state),
            Found::Wrong(unsafe { told(access, kind, start, &header, tag, wrong as isize) }),
        )
    });
    match seen {
        Some(Found::Wrong(violation)) => tell(&violation),
        Some(Found::Elsewhere) => look_ahead(access),
        Some(Found::Fine) | None => {}
    }
}

/// Reports an access that runs into the block, or what stands in front of it, from below.
#[cold]
#[inline(never)]
fn ran_into(access: Access, start: usize, entry: &'static Entry) {
    let Some(block) = pointer(start) else { return };
    let last = access.address.saturating_add(access.length) - 1;
    let wrong = last.min(start - 1);
    let seen = entry.pinned_briefly(|state| {
        let Some(tag) = tag(state) else { return (state, None) };
        if may_be_gone(state) || wrong < start - HEAD {
            return (state, None);
        }
        // SAFETY: the block is pinned, and live or in quarantine.
        let Some(header) = (unsafe { BlockHeader::read(block, tag) }) else { return (state, None) };
        // SAFETY: as above.
        let Some(state) = (unsafe { reopened(state, block, &header) }) else { return (state, None) };
        let kind = if access.by.is_write { ViolationKind::Underrun } else { ViolationKind::Overread };
        let offset = wrong as isize - start as isize;
        // SAFETY: the block is pinned, and the header is its own.
        (after(access, state), Some(unsafe { told(access, kind, start, &header, tag, offset) }))
    });
    if let Some(Some(violation)) = seen {
        tell(&violation);
    }
}

#[cfg(not(target_os = "linux"))]
use react as tell;

/// Reports a violation. C's functions that copy leave `errno` as it is, whatever a report does.
#[cfg(target_os = "linux")]
#[cold]
fn tell(violation: &Violation) {
    // SAFETY: the function returns the place of the calling thread's own.
    let kept = unsafe { *libc::__errno_location() };
    react(violation);
    // SAFETY: the same.
    unsafe { *libc::__errno_location() = kept };
}

/// The dogtag of a block in that state. `None` if what was done to it has been reported; its header may say anything.
fn tag(state: State) -> Option<Tag> {
    match state {
        State::Live | State::ZeroSized => Some(Tag::Live),
        State::Quarantined | State::Protected => Some(Tag::Freed),
        _ => None,
    }
}

/// Gives the access to a block back if it has none, since a report shows its contents, and returns its state then.
/// `None` if the system refuses. A block of 0 bytes has no contents.
///
/// # Safety
///
/// The block must be pinned, and have that header.
unsafe fn reopened(state: State, block: NonNull<u8>, header: &BlockHeader) -> Option<State> {
    if state != State::Protected || header.is_zero_sized() {
        return Some(state);
    }
    // SAFETY: the caller's block, which has no access.
    unsafe { protection::reopen_filled(block, header) }.then_some(State::Quarantined)
}

/// The block's state once it is reported: what was written to is not reported again, nor is a block of 0 bytes,
/// which is about to have its access.
fn after(access: Access, state: State) -> State {
    match state {
        State::ZeroSized => State::Condemned,
        State::Protected => State::Leaked,
        State::Live if access.by.is_write => State::Condemned,
        State::Quarantined if access.by.is_write => State::Leaked,
        state => state,
    }
}

/// # Safety
///
/// The block must be pinned, and that be its header.
unsafe fn told(
    access: Access,
    kind: ViolationKind,
    start: usize,
    header: &BlockHeader,
    tag: Tag,
    wrong: isize,
) -> Violation {
    let address = ptr::with_exposed_provenance_mut(access.address);
    let violation = violation(kind, Operation::Call(access.by.function), address, Claim::default());
    let offset = access.address as isize - start as isize;
    match pointer(start) {
        // SAFETY: the caller has pinned the block, of which this is the header.
        Some(block) => unsafe {
            violation.about(block, Some(header), tag, Some(wrong)).with_access(offset, access.length)
        },
        None => violation,
    }
}
