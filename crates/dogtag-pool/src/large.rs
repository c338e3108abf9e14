//! Large allocations: each is one of the global allocator's, with exactly the layout that was
//! asked for, and can be freed on its own.
//!
//! Their records are in the pool's blocks, as in nginx. A record in front of the memory would
//! push a power of two into the next size class, and 32 KiB past what jemalloc caches for each
//! thread: such allocations took five times as long.

use std::alloc::{self, Layout};
use std::cell::Cell;
use std::ptr::NonNull;

/// The record of a large allocation, in a doubly linked list.
pub(crate) struct Large {
    older: Cell<Option<NonNull<Large>>>,
    younger: Cell<Option<NonNull<Large>>>,
    memory: Cell<NonNull<u8>>,
    layout: Cell<Layout>,
}

/// The large allocations of a pool, between the youngest and the oldest. Records stay valid
/// until the pool is cleared.
#[derive(Default)]
pub(crate) struct Larges {
    youngest: Cell<Option<NonNull<Large>>>,
    oldest: Cell<Option<NonNull<Large>>>,
    /// Records whose allocations were freed, linked by `older`.
    unused: Cell<Option<NonNull<Large>>>,
}

impl Larges {
    /// Removes a record from the list of unused ones.
    pub(crate) fn take_unused(&self) -> Option<NonNull<Large>> {
        let record = self.unused.get()?;
        // SAFETY: records are valid until the pool is cleared, which empties this list.
        self.unused.set(unsafe { record.as_ref() }.older.get());
        Some(record)
    }

    /// Keeps a record for the next large allocation.
    ///
    /// # Safety
    ///
    /// `record` must be valid for writes until the pool is cleared, and in no list.
    pub(crate) unsafe fn keep_unused(&self, record: NonNull<Large>) {
        let layout = Layout::new::<()>();
        let older = self.unused.replace(Some(record));
        // SAFETY: the record's memory is valid for writes.
        unsafe { record.write(Large::new(older, NonNull::dangling(), layout)) };
    }

    /// Adds an allocation.
    ///
    /// # Safety
    ///
    /// `record` must be valid for writes until the pool is cleared, and in no list. `memory` must
    /// have been allocated by the global allocator with this layout, and be the caller's.
    pub(crate) unsafe fn add(&self, record: NonNull<Large>, memory: NonNull<u8>, layout: Layout) {
        let older = self.youngest.replace(Some(record));
        // SAFETY: the record's memory is valid for writes, and records of the list are valid.
        unsafe {
            record.write(Large::new(older, memory, layout));
            match older {
                Some(older) => older.as_ref().younger.set(Some(record)),
                None => self.oldest.set(Some(record)),
            }
        }
    }

    /// Returns the record of an allocation. Searches from both ends at once: collections are
    /// dropped in one order or the other.
    ///
    /// # Safety
    ///
    /// The allocation must be in the list.
    pub(crate) unsafe fn find(&self, memory: NonNull<u8>) -> &Large {
        let (mut young, mut old) = (self.youngest.get(), self.oldest.get());
        loop {
            debug_assert!(young.is_some() && old.is_some(), "no large allocation of this pool");
            // SAFETY: the allocation is found before either walk ends, since each passes all.
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

    /// Frees an allocation, and returns its size.
    ///
    /// # Safety
    ///
    /// The allocation must be in the list, and nobody may use it any more.
    pub(crate) unsafe fn free(&self, memory: NonNull<u8>) -> usize {
        // SAFETY: the allocation is in the list, so it has a record, with the layout that it was
        // allocated with; the record leaves this list before it is in that of the unused.
        unsafe {
            let record = self.find(memory);
            let (older, younger) = (record.older.get(), record.younger.get());
            match younger {
                Some(younger) => younger.as_ref().older.set(older),
                None => self.youngest.set(older),
            }
            match older {
                Some(older) => older.as_ref().younger.set(younger),
                None => self.oldest.set(younger),
            }
            let layout = record.layout.get();
            alloc::dealloc(record.memory.get().as_ptr(), layout);
            self.keep_unused(NonNull::from(record));
            layout.size()
        }
    }

    /// Frees all allocations, forgets all records, and returns the size of all together.
    ///
    /// # Safety
    ///
    /// Nobody may use the allocations any more.
    pub(crate) unsafe fn free_all(&self) -> usize {
        let mut bytes = 0;
        for large in self.iter() {
            bytes += large.layout.get().size();
            // SAFETY: a record has the layout that its memory was allocated with; each is freed
            // once, since the list is emptied below.
            unsafe { alloc::dealloc(large.memory.get().as_ptr(), large.layout.get()) };
        }
        self.youngest.set(None);
        self.oldest.set(None);
        self.unused.set(None);
        bytes
    }

    /// Returns the number of allocations, and the size of all together.
    pub(crate) fn count(&self) -> (usize, usize) {
        self.iter().fold((0, 0), |(count, bytes), large| (count + 1, bytes + large.layout.get().size()))
    }

    fn iter(&self) -> impl Iterator<Item = &Large> {
        // SAFETY: records are valid until the pool is cleared, which empties the list.
        let follow =
            |link: &Cell<Option<NonNull<Large>>>| link.get().map(|record| unsafe { record.as_ref() });
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

    /// Returns the layout that the memory was allocated with.
    pub(crate) fn layout(&self) -> Layout {
        self.layout.get()
    }

    /// Changes the size of the allocation by `reallocate`, which gets its memory, its layout and
    /// the new size. Returns the memory, which may have moved.
    pub(crate) fn resize(
        &self,
        new: Layout,
        reallocate: impl FnOnce(NonNull<u8>, Layout, usize) -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        debug_assert_eq!(new.align(), self.layout.get().align());
        let moved = reallocate(self.memory.get(), self.layout.get(), new.size())?;
        self.memory.set(moved);
        self.layout.set(new);
        Some(moved)
    }
}
