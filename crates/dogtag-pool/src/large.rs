//! Allocations that are too large for blocks: each is one of the allocator's, of exactly
//! what was asked for, and can be freed on its own.
//!
//! They are noted in the pool's blocks, as nginx does. In front of the memory a note would push
//! a power of two into the next size class, and 32 KiB past what jemalloc keeps for each
//! thread, which made them five times as slow.

use std::alloc::{self, Layout};
use std::cell::Cell;
use std::ptr::NonNull;

/// What is known of one.
pub(crate) struct Large {
    older: Cell<Option<NonNull<Large>>>,
    younger: Cell<Option<NonNull<Large>>>,
    memory: Cell<NonNull<u8>>,
    layout: Cell<Layout>,
}

/// The large allocations of a pool, between the youngest and the oldest.
#[derive(Default)]
pub(crate) struct Larges {
    youngest: Cell<Option<NonNull<Large>>>,
    oldest: Cell<Option<NonNull<Large>>>,
    /// Notes that are about nothing.
    unused: Cell<Option<NonNull<Large>>>,
}

impl Larges {
    /// A note that is about nothing any more.
    pub(crate) fn take_unused(&self) -> Option<NonNull<Large>> {
        let note = self.unused.get()?;
        // SAFETY: notes are there until the pool is cleared.
        self.unused.set(unsafe { note.as_ref() }.older.get());
        Some(note)
    }

    /// Keeps a note for the next one.
    ///
    /// # Safety
    ///
    /// There must be room for it until the pool is cleared.
    pub(crate) unsafe fn keep_unused(&self, note: NonNull<Large>) {
        let layout = Layout::new::<()>();
        let older = self.unused.replace(Some(note));
        // SAFETY: the caller's promise.
        unsafe { note.write(Large::new(older, NonNull::dangling(), layout)) };
    }

    /// # Safety
    ///
    /// There must be room for the note until the pool is cleared, and the memory be of that
    /// layout, and nobody else's.
    pub(crate) unsafe fn add(&self, note: NonNull<Large>, memory: NonNull<u8>, layout: Layout) {
        let older = self.youngest.replace(Some(note));
        // SAFETY: the caller's promise; its neighbour is there.
        unsafe {
            note.write(Large::new(older, memory, layout));
            match older {
                Some(older) => older.as_ref().younger.set(Some(note)),
                None => self.oldest.set(Some(note)),
            }
        }
    }

    /// The note of an allocation, which is looked for from both ends: collections are dropped
    /// in one order or the other.
    ///
    /// # Safety
    ///
    /// There must be one.
    pub(crate) unsafe fn find(&self, memory: NonNull<u8>) -> &Large {
        let (mut young, mut old) = (self.youngest.get(), self.oldest.get());
        loop {
            // SAFETY: notes are there, and one of them is about it.
            let (one, other) =
                unsafe { (young.unwrap_unchecked().as_ref(), old.unwrap_unchecked().as_ref()) };
            if one.memory.get() == memory {
                return one;
            }
            if other.memory.get() == memory {
                return other;
            }
            (young, old) = (one.older.get(), other.younger.get());
        }
    }

    /// Frees one. Returns how many bytes it was.
    ///
    /// # Safety
    ///
    /// It must be one of these, and nobody use it.
    pub(crate) unsafe fn free(&self, memory: NonNull<u8>) -> usize {
        // SAFETY: the caller's promise; the neighbours are there.
        unsafe {
            let note = self.find(memory);
            let (older, younger) = (note.older.get(), note.younger.get());
            match younger {
                Some(younger) => younger.as_ref().older.set(older),
                None => self.youngest.set(older),
            }
            match older {
                Some(older) => older.as_ref().younger.set(younger),
                None => self.oldest.set(younger),
            }
            let layout = note.layout.get();
            alloc::dealloc(note.memory.get().as_ptr(), layout);
            self.keep_unused(NonNull::from(note));
            layout.size()
        }
    }

    /// Frees all, and forgets the notes. Returns how many bytes it were.
    ///
    /// # Safety
    ///
    /// Nobody must use them.
    pub(crate) unsafe fn free_all(&self) -> usize {
        let mut bytes = 0;
        for large in self.iter() {
            bytes += large.layout.get().size();
            // SAFETY: the caller's promise.
            unsafe { alloc::dealloc(large.memory.get().as_ptr(), large.layout.get()) };
        }
        self.youngest.set(None);
        self.oldest.set(None);
        self.unused.set(None);
        bytes
    }

    /// How many there are, and what was asked for.
    pub(crate) fn count(&self) -> (usize, usize) {
        self.iter().fold((0, 0), |(count, bytes), large| (count + 1, bytes + large.layout.get().size()))
    }

    fn iter(&self) -> impl Iterator<Item = &Large> {
        // SAFETY: notes are there until the pool is cleared.
        let follow = |note: &Cell<Option<NonNull<Large>>>| note.get().map(|note| unsafe { note.as_ref() });
        std::iter::successors(follow(&self.youngest), move |large| follow(&large.older))
    }
}

impl Large {
    fn new(older: Option<NonNull<Self>>, memory: NonNull<u8>, layout: Layout) -> Self {
        Self {
            older: Cell::new(older),
            younger: Cell::new(None),
            memory: Cell::new(memory),
            layout: Cell::new(layout),
        }
    }

    pub(crate) fn memory(&self) -> NonNull<u8> {
        self.memory.get()
    }

    /// What it was allocated with.
    pub(crate) fn layout(&self) -> Layout {
        self.layout.get()
    }

    /// Changes its size by what is given its memory, its layout and the new size. It may move.
    pub(crate) fn resize(
        &self,
        new: Layout,
        reallocate: impl FnOnce(NonNull<u8>, Layout, usize) -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        let moved = reallocate(self.memory.get(), self.layout.get(), new.size())?;
        self.memory.set(moved);
        self.layout.set(new);
        Some(moved)
    }
}
