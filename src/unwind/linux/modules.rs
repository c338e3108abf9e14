//! The program and its libraries: where their code is, and their unwind tables.
//!
//! The list of them is made outside of allocations (by memory-check within one, without waiting for other
//! threads of ours), from what the loader says. A list is not changed
//! but replaced by the next one, and freed when no thread is reading. So taking a stack neither locks nor
//! calls the loader. Tables of what is never unloaded are read where they are; those of other libraries
//! may vanish at any moment, so the list has copies of them.

use super::loader::{Found, Wait, each_module};
use super::needed;
use crate::sync::{AtomicPtr, AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::sys::fork::{ForkHook, ForkOrder, Held, at_load, register_fork_hook};
use std::ptr;
use std::sync::{Arc, PoisonError, TryLockError};

/// How many bytes of tables are copied at most. Libraries beyond that are followed by frame pointers.
const MOST_COPIED: usize = 16 << 20;

/// Code of a module, with its unwind tables.
#[derive(Clone)]
pub(super) struct Module {
    start: usize,
    end: usize,
    /// The table of `.eh_frame_hdr`: where a function begins and where its entry is in `.eh_frame`, both as
    /// distances from that section. May be a copy.
    table: *const [i32; 2],
    functions: usize,
    header_address: usize,
    /// `.eh_frame`, or a copy.
    frames: *const u8,
    frames_length: usize,
    /// Where `.eh_frame` is in the process, to which what is in it is relative.
    pub(super) frames_address: usize,
    copy: Option<Arc<[u8]>>,
}

impl Module {
    /// Its `.eh_frame`.
    ///
    /// # Safety
    ///
    /// Only for as long as the list lives that the module is in.
    pub(super) unsafe fn frames(&self) -> &'static [u8] {
        // SAFETY: in a module that is never unloaded, or in the copy, which the module owns.
        unsafe { std::slice::from_raw_parts(self.frames, self.frames_length) }
    }

    fn entry(&self, index: usize) -> [i32; 2] {
        debug_assert!(index < self.functions);
        // SAFETY: the table has as many entries, in a module that is never unloaded, or in the copy.
        unsafe { self.table.add(index).read_unaligned() }
    }

    /// Where in `.eh_frame` the last function is that begins at or before an address.
    pub(super) fn function_of(&self, place: usize) -> Option<usize> {
        let distance = i32::try_from(place.wrapping_sub(self.header_address) as isize).ok()?;
        let (mut from, mut to) = (0, self.functions);
        while from < to {
            let middle = from + (to - from) / 2;
            if self.entry(middle)[0] <= distance {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        let [_, entry] = self.entry(from.checked_sub(1)?);
        let address = self.header_address.wrapping_add_signed(entry as isize);
        let offset = address.wrapping_sub(self.frames_address);
        (offset < self.frames_length).then_some(offset)
    }
}

// SAFETY: the pointers are to memory that nobody writes.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// All modules of a moment, by address.
pub(super) struct List {
    modules: Vec<Module>,
    /// Grows when libraries were unloaded, since others may be at their addresses.
    pub(super) generation: u16,
    /// How many libraries the loader had loaded and unloaded.
    changes: (u64, u64),
}

impl List {
    const EMPTY: &'static Self = &Self { modules: Vec::new(), generation: 0, changes: (0, 0) };

    pub(super) fn module_of(&self, place: usize) -> Option<&Module> {
        let after = self.modules.partition_point(|module| module.start <= place);
        self.modules.get(after.checked_sub(1)?).filter(|module| place < module.end)
    }
}

/// The list that is valid now; null before there is one.
static LIST: AtomicPtr<List> = AtomicPtr::new(ptr::null_mut());
/// How many threads are reading a list, any list.
static READERS: AtomicUsize = AtomicUsize::new(0);
#[allow(clippy::vec_box, reason = "readers have the addresses of lists, which stay in their boxes")]
type Lists = Vec<Box<List>>;

/// Lists that were replaced while somebody was reading.
static REPLACED: Mutex<Lists> = Mutex::new(Vec::new());

/// Has a forked child find no list half made.
static FORK_HOOK: ForkHook = ForkHook { order: ForkOrder::Modules, before, in_parent: after, in_child };
static HELD: Held<MutexGuard<'static, Lists>> = Held::new();

fn before() {
    // SAFETY: called before a fork.
    unsafe { HELD.keep(lock()) };
}

fn after() {
    // SAFETY: called after a fork. What this drops is the lock that this thread took.
    drop(unsafe { HELD.take() });
}

fn in_child() {
    // Those who were reading are not there.
    READERS.store(0, Ordering::SeqCst);
    after();
}

fn register() {
    register_fork_hook(&FORK_HOOK);
}

at_load!(register);

/// Held by whoever replaces the list.
fn lock() -> MutexGuard<'static, Lists> {
    REPLACED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes that lock unless somebody has it, who may be the calling thread.
fn try_lock() -> Option<MutexGuard<'static, Lists>> {
    match REPLACED.try_lock() {
        Ok(lists) => Some(lists),
        Err(TryLockError::Poisoned(lists)) => Some(lists.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Calls `with` with the list, which stays for as long.
#[inline]
pub(super) fn with<R>(with: impl FnOnce(&List) -> R) -> R {
    // In the one order of all such: whoever has replaced a list and then sees no reader knows that
    // those who come later see the new one.
    READERS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: lists are freed when they are not there any more and there is no reader.
    let list = unsafe { LIST.load(Ordering::SeqCst).as_ref() };
    let result = with(list.unwrap_or(List::EMPTY));
    READERS.fetch_sub(1, Ordering::Release);
    result
}

#[cfg_attr(not(feature = "profile"), allow(dead_code))]
pub(super) fn prepare() {
    register();
    replace(Wait::Yes);
}

#[cfg_attr(not(feature = "profile"), allow(dead_code))]
pub(in super::super) fn refresh_if_needed() {
    if LIST.load(Ordering::Relaxed).is_null() {
        // Nobody has taken a stack yet.
        return;
    }
    if changes(Wait::Yes).is_some_and(|now| now != with(|list| list.changes)) {
        replace(Wait::Yes);
    }
}

/// Replaces the list if there is none or it is old, in the middle of an allocation: `false`, and it is as it was,
/// if it is not, or somebody else is about to.
#[cfg(feature = "memory-check")]
pub(in super::super) fn try_refresh() -> bool {
    let Some(now) = changes(Wait::No) else { return false };
    if LIST.load(Ordering::Relaxed).is_null() {
        super::rules::prepare();
    } else if now == with(|list| list.changes) {
        return false;
    }
    replace(Wait::No)
}

/// How many libraries the loader has loaded and unloaded.
fn changes(wait: Wait) -> Option<(u64, u64)> {
    let mut loaders = None;
    each_module(wait, |_, changes| {
        loaders = Some(changes);
        false
    });
    loaders
}

/// Makes a new list, and frees those that nobody reads any more. Says whether it did.
fn replace(wait: Wait) -> bool {
    // Without the lock: the loader has one of its own, under which others may fork.
    let (old, new) = with(|old| (ptr::from_ref(old), find(old, wait)));
    let Some(new) = new else { return false };
    let new = Box::new(new);
    let replaced = match wait {
        Wait::Yes => Some(lock()),
        Wait::No => try_lock(),
    };
    let Some(mut replaced) = replaced else { return false };
    let known = LIST.load(Ordering::SeqCst);
    if !known.is_null() && !ptr::eq(known, old) {
        // Somebody else was as fast. What was found here may be older; the next look will tell.
        return false;
    }
    LIST.store(Box::into_raw(new), Ordering::SeqCst);
    if !known.is_null() {
        // SAFETY: from `into_raw` above, when it was made, and only who has the lock takes it back, once.
        replaced.push(unsafe { Box::from_raw(known) });
    }
    // Taking a stack is short. Who stays, as in a signal handler that never returns, keeps them.
    let nobody_reads = (0..100).any(|attempt| {
        crate::sync::spin(attempt.min(20));
        READERS.load(Ordering::SeqCst) == 0
    });
    if nobody_reads {
        replaced.clear();
    }
    true
}

/// Finds all modules; what the old list has copied of those that are still there is used again. `None` where that
/// would have to wait and is not to.
fn find(old: &List, wait: Wait) -> Option<List> {
    let needed = needed::find(wait)?;
    let mut list = List { modules: Vec::new(), generation: old.generation, changes: (0, 0) };
    let mut copied = 0;
    let is_read = each_module(wait, |found, changes| {
        list.changes = changes;
        if let Some(sections) = Sections::of(found) {
            let stays = needed.contains(&found.base);
            add(&mut list.modules, &sections, stays, old, &mut copied);
        }
        true
    });
    if !is_read {
        return None;
    }
    list.modules.sort_by_key(|module| module.start);
    if list.changes.1 != old.changes.1 {
        list.generation = list.generation.wrapping_add(1);
    }
    Some(list)
}

fn add(modules: &mut Vec<Module>, sections: &Sections<'_>, stays: bool, old: &List, copied: &mut usize) {
    let mut module = Module {
        start: 0,
        end: 0,
        table: sections.table.as_ptr().cast(),
        functions: sections.table.len() / size_of::<[i32; 2]>(),
        header_address: sections.header_address,
        frames: sections.frames.as_ptr(),
        frames_length: sections.frames.len(),
        frames_address: sections.frames.as_ptr().addr(),
        copy: None,
    };
    if !stays {
        let frames = &sections.frames[..length_of_frames(sections.frames)];
        let known = old.modules.iter().find_map(|known| {
            let copy = known.copy.as_ref().filter(|_| known.header_address == sections.header_address)?;
            let (table, rest) = copy.split_at_checked(sections.table.len())?;
            (table == sections.table && rest == frames).then(|| copy.clone())
        });
        let length = sections.table.len() + frames.len();
        if *copied + length > MOST_COPIED {
            return;
        }
        *copied += length;
        let copy: Arc<[u8]> = known.unwrap_or_else(|| [sections.table, frames].concat().into());
        module.table = copy.as_ptr().cast();
        module.frames = copy[sections.table.len()..].as_ptr();
        module.frames_length = frames.len();
        module.copy = Some(copy);
    }
    for code in &sections.code {
        modules.push(Module { start: code.start, end: code.end, ..module.clone() });
    }
}

/// The length of the entries of an `.eh_frame`, which end with one of length 0.
fn length_of_frames(frames: &[u8]) -> usize {
    let mut at = 0;
    while let Some(length) = frames.get(at..).and_then(|rest| rest.first_chunk()) {
        let length = u32::from_ne_bytes(*length);
        at += 4;
        // The larger format, of which nobody has seen one.
        if length == 0 || length == u32::MAX {
            break;
        }
        at = at.saturating_add(length as usize);
    }
    at.min(frames.len())
}

/// The parts of a module that unwinding is about, where they are in the process.
struct Sections<'a> {
    code: Vec<std::ops::Range<usize>>,
    header_address: usize,
    table: &'a [u8],
    /// From the beginning of `.eh_frame` to the end of the segment that it is in.
    frames: &'a [u8],
}

impl<'a> Sections<'a> {
    fn of(found: &'a Found<'_>) -> Option<Self> {
        // The version; how the address of `.eh_frame` is stored, and the number of functions, and the table: as
        // all linkers do it.
        const FORMAT: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
        let header = found.segment(libc::PT_GNU_EH_FRAME)?;
        let header_address = found.address_of(header);
        let length = header.p_memsz as usize;
        if length < 12 {
            return None;
        }
        // SAFETY: the loader has mapped it, and it stays for as long as the loader is held.
        let header =
            unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(header_address), length) };
        if header[..4] != FORMAT {
            return None;
        }
        let number = |at: usize| header[at..].first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        let functions = number(8) as u32 as usize;
        let table = header.get(12..12 + functions.checked_mul(8)?)?;
        let frames_address = (header_address + 4).wrapping_add_signed(number(4) as isize);
        let load = |segment: &&libc::Elf64_Phdr| segment.p_type == libc::PT_LOAD;
        let range = |segment: &libc::Elf64_Phdr, length: u64| {
            let start = found.address_of(segment);
            start..start.saturating_add(length as usize)
        };
        let loaded = found.segments.iter().filter(load);
        let holds = |segment: &&libc::Elf64_Phdr| range(segment, segment.p_filesz).contains(&frames_address);
        let end = range(loaded.clone().find(holds)?, loaded.clone().find(holds)?.p_filesz).end;
        // SAFETY: as above: a part of a segment.
        let frames = unsafe {
            std::slice::from_raw_parts(
                ptr::with_exposed_provenance::<u8>(frames_address),
                end - frames_address,
            )
        };
        let code = loaded.filter(|segment| segment.p_flags & libc::PF_X != 0);
        let code = code.map(|segment| range(segment, segment.p_memsz)).collect();
        Some(Self { code, header_address, table, frames })
    }
}
