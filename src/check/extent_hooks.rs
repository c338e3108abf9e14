//! jemalloc's hooks for its extents: what holds no block has [no access](super::uncommitted).
//!
//! jemalloc grows by ranges of some MiB, hands out extents of them, and retains what it does not use. A system that
//! overcommits gives all of such a range its access at once; by these hooks an extent has it from its commit to its
//! decommit, as on systems that do not overcommit. On both sides of a range 2 MiB of addresses are reserved, so that
//! what is beside the range is not beside its blocks. Everything else is as jemalloc has it by itself.
//!
//! The hooks are set for each arena that is a thread's, before the thread's first block comes from it. The first arena
//! has things of jemalloc's own by then, and [leaves](leave_first_range) the range in which they are. The arena that
//! jemalloc has for blocks of 8 MiB and more has no hooks, nor has one that the program has made.

use super::block::PAGE;
use super::settings::Settings;
use super::uncommitted;
use super::wild_access;
use crate::backend;
use crate::ledger::thread::Word;
use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::sys;
use std::ffi::{CStr, c_uint, c_void};
use std::ptr::{self, NonNull};
use tikv_jemalloc_sys as ffi;

/// jemalloc's own hooks.
static OWN: AtomicPtr<ffi::extent_hooks_t> = AtomicPtr::new(ptr::null_mut());

static HOOKS: ffi::extent_hooks_t = hooks(None);

/// The hooks of the first arena while [its first range](leave_first_range) is left.
static FIRST_HOOKS: ffi::extent_hooks_t = hooks(Some(dalloc));

type Dalloc = unsafe extern "C" fn(Hooks, *mut c_void, usize, bool, c_uint) -> bool;

/// Without `dalloc` all addresses are retained.
const fn hooks(dalloc: Option<Dalloc>) -> ffi::extent_hooks_t {
    ffi::extent_hooks_t {
        alloc: Some(alloc),
        dalloc,
        destroy: None,
        commit: Some(commit),
        decommit: Some(decommit),
        purge_lazy: Some(purge_lazy),
        purge_forced: Some(purge_forced),
        split: Some(split),
        merge: Some(merge),
    }
}

/// The thread that leaves it, or 0.
static LEAVER: AtomicUsize = AtomicUsize::new(0);

/// Addresses without access on each side of a range.
const GUARD: usize = 2 << 20;

/// Sets the hooks for the calling thread's arena, unless this was done. To be called before the thread's first block
/// is requested from a backend `B`.
#[inline]
pub(super) fn begin<B>() {
    // If it is another of that name, hooks are set for nothing, no more.
    if backend::is_jemalloc::<B>() && Word::CheckArena.replace(1) == 0 && !cfg!(miri) && uncommitted::is_on()
    {
        begin_thread();
    }
}

#[cold]
#[inline(never)]
fn begin_thread() {
    // What is not known yet is left until the library is loaded.
    if sys::has_environment() && Settings::get().protect == 0 {
        return;
    }
    if let Some(arena) = get::<c_uint>(c"thread.arena")
        && is_wanted(arena)
    {
        set(arena);
    }
    wild_access::begin_by_thread();
}

/// Whether an arena is to have the hooks: one of jemalloc's own choice, where the program has set nothing that other
/// hooks than jemalloc's would change.
fn is_wanted(arena: c_uint) -> bool {
    let is_off = |option| get::<bool>(option) != Some(true);
    get::<c_uint>(c"opt.narenas").is_some_and(|count| arena < count)
        && get::<bool>(c"opt.retain") == Some(true)
        && is_off(c"opt.hpa")
        && is_off(c"config.debug")
        && is_off(c"opt.xmalloc")
        && get::<usize>(c"opt.san_guard_small").unwrap_or(0) == 0
        && get::<usize>(c"opt.san_guard_large").unwrap_or(0) == 0
        && get::<usize>(c"arenas.page").is_some_and(|page| page.is_multiple_of(PAGE))
}

/// Sets the hooks of an arena, if it has jemalloc's own.
fn set(arena: c_uint) {
    const WORDS: usize = 64;
    static DONE: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

    let (word, bit) = (arena as usize / 64, 1_u64 << (arena % 64));
    if DONE.get(word).is_none_or(|word| word.fetch_or(bit, Ordering::AcqRel) & bit != 0) {
        return;
    }
    let Some(former) = exchange(arena, None).filter(|former| !former.is_null()) else { return };
    // The first arena's are jemalloc's: nobody has had the time to set others.
    let first = OWN.compare_exchange(ptr::null_mut(), former, Ordering::AcqRel, Ordering::Acquire);
    if first.is_err_and(|own| own != former) {
        return;
    }
    if arena == 0 && exchange(arena, Some(&FIRST_HOOKS)).is_some() {
        leave_first_range();
    }
    exchange(arena, Some(&HOOKS));
}

/// Sets the hooks of an arena, and returns the former ones; without new ones only the latter.
fn exchange(arena: c_uint, hooks: Option<&'static ffi::extent_hooks_t>) -> Option<Hooks> {
    let (mut numbers, mut length) = ([0_usize; 3], 3);
    let (mut former, mut size) = (ptr::null_mut(), size_of::<Hooks>());
    let mut hooks = hooks.map(|hooks| ptr::from_ref(hooks).cast_mut());
    let (new, new_size) = match &mut hooks {
        Some(hooks) => (ptr::from_mut(hooks).cast(), size_of::<Hooks>()),
        None => (ptr::null_mut(), 0),
    };
    // SAFETY: places for three numbers and a pointer, and a pointer to hooks that keep jemalloc's rules and are never
    // written to.
    unsafe {
        let name = c"arena.0.extent_hooks".as_ptr();
        let error = ffi::mallctlnametomib(name, numbers.as_mut_ptr(), &mut length);
        if error != 0 || length != numbers.len() {
            return None;
        }
        numbers[1] = arena as usize;
        let old = ptr::from_mut::<Hooks>(&mut former).cast();
        (ffi::mallctlbymib(numbers.as_ptr(), length, old, &mut size, new, new_size) == 0).then_some(former)
    }
}

/// Has the first arena leave what it has not used of its first range, which it got before it had the hooks: jemalloc
/// keeps things of its own there. What the program allocates comes from later ranges.
fn leave_first_range() {
    const FLAGS: i32 = ffi::MALLOCX_ARENA(0) | ffi::MALLOCX_TCACHE_NONE;

    // SAFETY: asks for a number, and has no preconditions.
    LEAVER.store(unsafe { libc::pthread_self() } as usize, Ordering::Relaxed);
    let (mut blocks, mut count) = ([ptr::null_mut(); 128], 0);
    // All there is, by halves: no more is mapped meanwhile.
    let mut size = 2 << 20;
    while size >= PAGE.min(4096) && count < blocks.len() {
        // SAFETY: the size is not 0.
        blocks[count] = unsafe { ffi::mallocx(size, FLAGS) };
        match blocks[count].is_null() {
            true => size /= 2,
            false => count += 1,
        }
    }
    // SAFETY: blocks of that arena, which nobody has seen. The last option takes nothing and says nothing.
    unsafe {
        blocks[..count].iter().for_each(|block| ffi::dallocx(*block, FLAGS));
        let none = ptr::null_mut();
        ffi::mallctl(c"arena.0.purge".as_ptr(), none, ptr::null_mut(), none, 0);
    }
    LEAVER.store(0, Ordering::Relaxed);
}

/// Only the thread that has forked is there, and others may get the number of one that is not.
pub(super) fn in_the_child() {
    LEAVER.store(0, Ordering::Relaxed);
}

/// Whether the calling thread [leaves the first range](leave_first_range).
fn is_leaving() -> bool {
    let leaver = LEAVER.load(Ordering::Relaxed);
    // SAFETY: asks for a number, and has no preconditions.
    leaver != 0 && leaver == unsafe { libc::pthread_self() } as usize
}

/// What an option says, which must be of that type.
fn get<T: Default>(name: &CStr) -> Option<T> {
    let (mut value, mut size) = (T::default(), size_of::<T>());
    // SAFETY: jemalloc checks that `size` is what the option needs; any number, and any bool of C's, is a `T`.
    let error =
        unsafe { ffi::mallctl(name.as_ptr(), (&raw mut value).cast(), &mut size, ptr::null_mut(), 0) };
    (error == 0).then_some(value)
}

type Hooks = *mut ffi::extent_hooks_t;

/// jemalloc's own hooks, and the pointer by which they are called.
///
/// # Safety
///
/// To be called by a hook.
unsafe fn own() -> (Hooks, &'static ffi::extent_hooks_t) {
    let own = OWN.load(Ordering::Acquire);
    // SAFETY: a hook is only called once it is set, and jemalloc's own are noted before; they are a static of its.
    (own, unsafe { &*own })
}

/// Maps a range: without access, if it is to be committed later.
unsafe extern "C" fn alloc(
    _: Hooks,
    address: *mut c_void,
    size: usize,
    alignment: usize,
    zero: *mut bool,
    commit: *mut bool,
    arena: c_uint,
) -> *mut c_void {
    // SAFETY: jemalloc's arguments, for its own hook, which it has; with other sizes only where the addresses are its
    // choice, and those that it is not told of are not its.
    unsafe {
        let (hooks, own) = own();
        let Some(allocate) = own.alloc.filter(|_| !is_leaving()) else { return ptr::null_mut() };
        let is_reserved = address.is_null() && !*commit && uncommitted::is_on();
        if !is_reserved {
            return allocate(hooks, address, size, alignment, zero, commit, arena);
        }
        let guarded = size.checked_add(2 * GUARD).filter(|_| alignment <= GUARD && may_reserve());
        if let Some(guarded) = guarded {
            let start = allocate(hooks, address, guarded, alignment, zero, commit, arena).cast::<u8>();
            if !start.is_null() {
                let _ = (reserve(start, GUARD), reserve(start.add(GUARD + size), GUARD));
                return without_access(start.add(GUARD), size, zero, commit);
            }
        }
        let start = allocate(hooks, address, size, alignment, zero, commit, arena).cast::<u8>();
        without_access(start, size, zero, commit)
    }
}

/// Whether addresses may be taken that nobody uses.
fn may_reserve() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a place for the result.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) == 0 && limit.rlim_cur == libc::RLIM_INFINITY }
}

/// Makes pages addresses that are only reserved. They are no part of jemalloc's mapping then. `false` if the system
/// refuses.
///
/// # Safety
///
/// They must be mapped, and nobody's.
unsafe fn reserve(start: *mut u8, length: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the caller's pages.
    let mapped = unsafe { libc::mmap(start.cast(), length, libc::PROT_NONE, flags, -1, 0) };
    let is_reserved = mapped != libc::MAP_FAILED;
    if is_reserved {
        let start = start.expose_provenance();
        uncommitted::reserve(start..start + length);
    }
    is_reserved
}

/// Takes an extent that jemalloc leaves. `true` if it is not taken.
unsafe extern "C" fn dalloc(_: Hooks, extent: *mut c_void, size: usize, _: bool, _: c_uint) -> bool {
    // SAFETY: jemalloc's extent, which holds nothing, and is nobody's from then on.
    !is_leaving() || unsafe { !reserve(extent.cast(), size) }
}

/// Takes the access to a new range away, and says so to jemalloc.
///
/// # Safety
///
/// It must be null, or jemalloc's, and the flags be of its hook.
unsafe fn without_access(start: *mut u8, size: usize, zero: *mut bool, commit: *mut bool) -> *mut c_void {
    // SAFETY: the caller's.
    unsafe {
        if let Some(pages) = NonNull::new(start) {
            if *commit {
                uncommitted::close(pages, size);
                *commit = false;
                *zero = true;
            } else {
                uncommitted::leave_to_backend();
                let start = pages.as_ptr().expose_provenance();
                uncommitted::mark(start..start + size);
            }
        }
    }
    start.cast()
}

/// Gives part of an extent its access, before it holds blocks. `true` if the system refuses.
unsafe extern "C" fn commit(
    _: Hooks,
    extent: *mut c_void,
    size: usize,
    offset: usize,
    length: usize,
    arena: c_uint,
) -> bool {
    // SAFETY: jemalloc's arguments, for its own hook; the pages are in its extent, and hold nothing.
    unsafe {
        let Some(pages) = NonNull::new(extent.cast::<u8>().add(offset)) else { return true };
        if !uncommitted::are_left_to_backend() {
            return !uncommitted::open(pages, length);
        }
        let (hooks, own) = own();
        let is_refused = own.commit.is_none_or(|commit| commit(hooks, extent, size, offset, length, arena));
        if !is_refused {
            uncommitted::unmark(pages.addr().get()..pages.addr().get() + length);
        }
        is_refused
    }
}

/// Gives the memory of a part of an extent back, and takes the access to it away. `true` if neither was done.
unsafe extern "C" fn decommit(
    _: Hooks,
    extent: *mut c_void,
    size: usize,
    offset: usize,
    length: usize,
    arena: c_uint,
) -> bool {
    // SAFETY: jemalloc's arguments, for its own hooks; the pages are in its extent, and hold nothing any more.
    unsafe {
        let Some(pages) = NonNull::new(extent.cast::<u8>().add(offset)) else { return true };
        let (hooks, own) = own();
        if uncommitted::are_left_to_backend() {
            let is_refused =
                own.decommit.is_none_or(|decommit| decommit(hooks, extent, size, offset, length, arena));
            if !is_refused {
                uncommitted::mark(pages.addr().get()..pages.addr().get() + length);
            }
            return is_refused;
        }
        // What is decommitted has to be zeros when it is committed again.
        let is_kept = !uncommitted::is_on()
            || own.purge_forced.is_none_or(|purge| purge(hooks, extent, size, offset, length, arena));
        if !is_kept {
            uncommitted::close(pages, length);
        }
        is_kept
    }
}

unsafe extern "C" fn purge_lazy(
    _: Hooks,
    extent: *mut c_void,
    size: usize,
    offset: usize,
    length: usize,
    arena: c_uint,
) -> bool {
    // SAFETY: jemalloc's arguments, for its own hook.
    unsafe {
        let (hooks, own) = own();
        own.purge_lazy.is_none_or(|purge| purge(hooks, extent, size, offset, length, arena))
    }
}

unsafe extern "C" fn purge_forced(
    _: Hooks,
    extent: *mut c_void,
    size: usize,
    offset: usize,
    length: usize,
    arena: c_uint,
) -> bool {
    // SAFETY: jemalloc's arguments, for its own hook.
    unsafe {
        let (hooks, own) = own();
        own.purge_forced.is_none_or(|purge| purge(hooks, extent, size, offset, length, arena))
    }
}

/// Lets an extent be parted.
unsafe extern "C" fn split(
    _: Hooks,
    _: *mut c_void,
    _: usize,
    _: usize,
    _: usize,
    _: bool,
    _: c_uint,
) -> bool {
    false
}

/// Lets extents be joined. jemalloc's own hook must not be asked: it looks for the thread's data, and makes them for a
/// thread that has only freed so far, for which it waits for the lock that it has here. (It would say the same:
/// addresses are never unmapped, wherever they are from.)
unsafe extern "C" fn merge(
    _: Hooks,
    _: *mut c_void,
    _: usize,
    _: *mut c_void,
    _: usize,
    _: bool,
    _: c_uint,
) -> bool {
    false
}
