//! The list of the process's regions: for snapshots, for the balance, and for forks.

use crate::entry::Name;
use crate::error::MapError;
use crate::window::Window;
use dogtag::__private::{
    Arena, Arenas, ForkHook, ForkOrder, prepare_forks, register_arenas, register_fork_hook,
};
use dogtag::Region;
use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A singly linked list, the youngest region first.
struct Registry {
    first: Cell<Option<NonNull<Window>>>,
    len: usize,
}

// SAFETY: windows outlive their place in the list, and belong to no thread; their links are read
// and written only by the holder of the lock around this.
unsafe impl Send for Registry {}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { first: Cell::new(None), len: 0 });

fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a window.
///
/// # Safety
///
/// The window must not be in the list yet, and not end before it is [removed](remove).
pub(crate) unsafe fn add(window: NonNull<Window>) {
    prepare();
    // SAFETY: the window is new to the list and outlives its place in it, as for `add`.
    unsafe { lock().add(window) };
}

/// Puts a window into `place` and adds it, unless there is one already. No fork comes between,
/// after which a child would wait for a thread that it does not have.
pub(crate) fn add_first(
    place: &AtomicPtr<Window>,
    map: impl FnOnce() -> Result<NonNull<Window>, MapError>,
) -> Result<(), MapError> {
    prepare();
    let mut registry = lock();
    if place.load(Ordering::Relaxed).is_null() {
        let window = map()?;
        // SAFETY: the window has just been mapped, and whoever takes it out of its place removes
        // it from the list first.
        unsafe { registry.add(window) };
        place.store(window.as_ptr(), Ordering::Release);
    }
    Ok(())
}

/// Removes a window.
///
/// # Safety
///
/// The window must be in the list.
pub(crate) unsafe fn remove(window: NonNull<Window>) {
    let mut registry = lock();
    registry.len -= 1;
    let mut link = &registry.first;
    while let Some(other) = link.get() {
        // SAFETY: windows outlive their place in the list.
        let next = unsafe { &other.as_ref().entry.next };
        if other == window {
            return link.set(next.get());
        }
        link = next;
    }
}

static ARENAS: Arenas = Arenas { list };

/// Lists all regions, the youngest first.
fn list() -> Vec<Arena> {
    // Nothing may be allocated under the lock: it might be one of these that is asked.
    let mut found = Vec::new();
    loop {
        let len = lock().len;
        found.reserve(len);
        let registry = lock();
        if registry.len <= found.capacity() {
            found.extend(
                registry
                    .windows()
                    .map(|window| (window.entry.name, window.stats(), window.addresses(), window.counted())),
            );
            break;
        }
    }
    let arena = |(name, stats, addresses, counted): (Name, _, _, _)| {
        let mut region = Region::default();
        region.name = name.to_text();
        region.stats = stats;
        Arena { region, addresses, counted }
    };
    found.into_iter().map(arena).collect()
}

/// Registers the regions with dogtag: before `main`, or when the library is opened that this is a
/// part of, since a fork that is under way does not heed a hook that comes later.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        register();
    }
    at_load
};

fn register() {
    register_arenas(&ARENAS);
    register_fork_hook(&FORK_HOOK);
}

fn prepare() {
    register();
    prepare_forks();
}

/// Keeps all regions as they are while the process is forked, so that the child finds them whole.
static FORK_HOOK: ForkHook =
    ForkHook { order: ForkOrder::Inner, before: hold, in_parent: release, in_child: release };

/// The registry's lock, while the process is forked.
struct Held(UnsafeCell<Option<MutexGuard<'static, Registry>>>);

// SAFETY: only fork hooks read and write it, and only one thread at a time calls these.
unsafe impl Sync for Held {}

static HELD: Held = Held(UnsafeCell::new(None));

fn hold() {
    let registry = lock();
    // SAFETY: windows stay in the list while it is locked, so they are there until `release`; the
    // one thread that forks holds each of them once.
    registry.windows().for_each(|window| unsafe { window.hold() });
    // SAFETY: called as a fork hook, by one thread at a time.
    unsafe { *HELD.0.get() = Some(registry) };
}

fn release() {
    // SAFETY: called as a fork hook, by one thread at a time.
    if let Some(registry) = unsafe { (*HELD.0.get()).take() } {
        // SAFETY: `hold` held all windows, and the list has been locked since.
        registry.windows().for_each(|window| unsafe { window.release() });
    }
}

impl Registry {
    /// # Safety
    ///
    /// The window must not be in the list yet, and not end before it is removed.
    unsafe fn add(&mut self, window: NonNull<Window>) {
        // SAFETY: the window is there, as for `add`.
        unsafe { window.as_ref() }.entry.next.set(self.first.replace(Some(window)));
        self.len += 1;
    }

    fn windows(&self) -> impl Iterator<Item = &Window> {
        // SAFETY: windows outlive their place in the list, which is locked.
        let follow =
            |link: &Cell<Option<NonNull<Window>>>| link.get().map(|window| unsafe { window.as_ref() });
        std::iter::successors(follow(&self.first), move |window| follow(&window.entry.next))
    }
}
