//! A pool as it stands in the tree: its blocks, and how memory is taken from them.
//!
//! A node lives at the beginning of its pool's first block, as in APR and nginx, so that a pool
//! of a few small allocations is one block. Pools hold pointers to it, and to a node belong:
//!
//! - the *active* block, of which the node itself has the position and the end, so that the
//!   common allocation reads nothing else;
//! - *open* blocks, in which something did not fit, but smaller things may: they are tried
//!   before there is a new one, and passed over for good after five failures (nginx does so,
//!   after six);
//! - *full* ones, which wait to be cleared.

use crate::PoolError;
use crate::block::{Block, GRAIN, List, Queue, Visit};
use crate::cleanup::{Records, catch};
use crate::data::Data;
use crate::large::{Large, Larges};
use crate::store::{self, Store};
use crate::tree::Branch;
use dogtag::__private::Payload;
use std::alloc::Layout;
use std::borrow::Cow;
use std::cell::Cell;
use std::num::NonZero;
use std::ptr::NonNull;

pub(crate) struct Node {
    /// Of the active block.
    position: Cell<NonNull<u8>>,
    end: Cell<NonNull<u8>>,
    active: Cell<NonNull<Block>>,
    open: List,
    /// But for the first one.
    full: Queue,
    is_first_full: Cell<bool>,
    first: NonNull<Block>,
    /// Of this node: as a [`Pool`](crate::Pool), which is such a pointer, it is lent to whoever
    /// uses a child that lasts.
    pub(crate) this: NonNull<Node>,
    /// How large the next block is to be.
    next_size: Cell<usize>,
    pub(crate) block_size: usize,
    /// What is larger is allocated on its own.
    pub(crate) max_small: usize,
    larges: Larges,
    source: Source,
    pub(crate) cleanups: Records,
    pub(crate) pre_cleanups: Records,
    pub(crate) data: Data,
    pub(crate) branch: Branch,
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) on_failure: Option<Handler>,
}

/// Where a pool's memory comes from.
pub(crate) enum Source {
    Own(Store),
    /// That of a pool above it.
    Shared(NonNull<Store>),
}

pub(crate) type Handler = Box<dyn Fn(&PoolError) + Send>;

/// Why there is no memory.
#[derive(Clone, Copy)]
pub(crate) enum Refusal {
    NoMemory,
    /// Because of this node's limit.
    Limit(NonNull<Node>),
}

/// What is to be known before there is a node.
pub(crate) struct Plan {
    pub(crate) block_size: usize,
    pub(crate) max_small: usize,
    pub(crate) limit: Option<usize>,
    pub(crate) source: Source,
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) on_failure: Option<Handler>,
    pub(crate) is_lasting: bool,
}

/// Smaller blocks would be little but what stands at their beginning.
pub(crate) const LEAST_BLOCK: usize = 1024;
/// Blocks grow up to this, twice as large each time.
const MOST_BLOCK: usize = 128 << 10;
/// Up to this, nothing is large.
pub(crate) const ALWAYS_SMALL: usize = 256;
/// A block is passed over when so many things did not fit in.
const MOST_FAILURES: u32 = 5;
/// A block with less room is not tried again.
const LEAST_ROOM: usize = 64;

/// Where what is handed out begins in the first block.
const START: usize = (Block::HEADER + size_of::<Node>()).next_multiple_of(GRAIN);

impl Node {
    /// A node without parent, or below one, in a block of its own.
    pub(crate) fn new(plan: Plan, parent: Option<&Self>) -> Result<NonNull<Self>, (Plan, Refusal)> {
        const { assert!(align_of::<Self>() <= GRAIN && START + ALWAYS_SMALL <= LEAST_BLOCK) };
        let own = (plan.limit.unwrap_or(usize::MAX), None);
        let (most, limiting) = match parent.map(Self::headroom) {
            Some(above) if above.0 < own.0 => above,
            _ => own,
        };
        let most = most & !(GRAIN - 1);
        let block = match limiting {
            Some(limiting) if most < LEAST_BLOCK => Err(Refusal::Limit(limiting)),
            // Its own limit is too low.
            None if most < LEAST_BLOCK => Err(Refusal::NoMemory),
            _ => plan.source.store().take(LEAST_BLOCK, plan.block_size, most).ok_or(Refusal::NoMemory),
        };
        let block = match block {
            Ok(block) => block,
            Err(refusal) => return Err((plan, refusal)),
        };
        // SAFETY: the block is larger than its header and the node, which stays where it is.
        unsafe {
            let size = Block::size(block);
            let memory = block.cast::<u8>();
            let this = memory.add(Block::HEADER).cast::<Self>();
            this.write(Self {
                position: Cell::new(memory.add(START)),
                end: Cell::new(block.as_ref().end),
                active: Cell::new(block),
                open: List::default(),
                full: Queue::default(),
                is_first_full: Cell::new(false),
                first: block,
                this,
                next_size: Cell::new(grown(plan.block_size, plan.block_size)),
                block_size: plan.block_size,
                max_small: plan.max_small,
                larges: Larges::default(),
                source: plan.source,
                cleanups: Records::default(),
                pre_cleanups: Records::default(),
                data: Data::default(),
                branch: Branch::new(this, parent, plan.is_lasting, plan.limit),
                name: plan.name,
                on_failure: plan.on_failure,
            });
            this.as_ref().grow_held(size);
            Ok(this)
        }
    }

    pub(crate) fn store(&self) -> &Store {
        self.source.store()
    }

    /// Memory of a layout, which lasts until the pool is cleared.
    pub(crate) fn reserve(&self, layout: Layout) -> Result<NonNull<u8>, Refusal> {
        self.reserve_or(layout, || self.reserve_slowly(layout))
    }

    /// Memory of a layout out of the active block, or what something else has for it: the
    /// caller's own, so that nothing has to be looked at where the two ways meet.
    #[inline(always)]
    pub(crate) fn reserve_or<E>(
        &self,
        layout: Layout,
        slowly: impl FnOnce() -> Result<NonNull<u8>, E>,
    ) -> Result<NonNull<u8>, E> {
        if layout.align() <= GRAIN && self.is_small(layout.size()) {
            let mask = layout.align() - 1;
            let position = self.position.get().as_ptr();
            // Enough however it is aligned; where it would just do, the slow way finds out. The
            // position is not aligned before: a load that is folded into the comparison
            // waits for the store of the last allocation.
            if layout.size() + mask <= self.end.get().addr().get() - position.addr() {
                // SAFETY: there is so much room.
                unsafe {
                    let start = position.map_addr(|address| (address + mask) & !mask);
                    self.position.set(NonNull::new_unchecked(start.add(layout.size())));
                    return Ok(NonNull::new_unchecked(start));
                }
            }
        }
        slowly()
    }

    /// Whether so much is not large, without a jump for the smallest.
    #[inline(always)]
    fn is_small(&self, size: usize) -> bool {
        if size <= ALWAYS_SMALL {
            return true;
        }
        unlikely();
        size <= self.max_small
    }

    /// Zeroed memory of a layout, which lasts as long.
    pub(crate) fn reserve_zeroed(&self, layout: Layout) -> Result<NonNull<u8>, Refusal> {
        if self.is_large(layout) {
            return self.reserve_large(layout, true);
        }
        let memory = self.reserve(layout)?;
        // SAFETY: it is as large.
        unsafe { memory.write_bytes(0, layout.size()) };
        Ok(memory)
    }

    /// Whether such an allocation is one of its own.
    #[inline(always)]
    pub(crate) fn is_large(&self, layout: Layout) -> bool {
        layout.size() > 0 && layout.size().saturating_add(padding(layout)) > self.max_small
    }

    /// Memory of a layout that there may be no room for in the active block.
    #[cold]
    #[inline(never)]
    pub(crate) fn reserve_slowly(&self, layout: Layout) -> Result<NonNull<u8>, Refusal> {
        if self.is_large(layout) {
            return self.reserve_large(layout, false);
        }
        if let (0, Some(align)) = (layout.size(), NonZero::new(layout.align())) {
            return Ok(NonNull::without_provenance(align));
        }
        if let Some(start) = self.reserve_in_active(layout).or_else(|| self.reserve_in_open(layout)) {
            return Ok(start);
        }
        let needed =
            (Block::HEADER + layout.size() + padding(layout)).next_multiple_of(GRAIN).max(LEAST_BLOCK);
        let most = self.allowance(needed)? & !(GRAIN - 1);
        let wanted = self.next_size.get().max(needed).min(most);
        let block = self.store().take(needed, wanted, most).ok_or(Refusal::NoMemory)?;
        // SAFETY: the block is there, and ours.
        unsafe {
            self.grow_held(Block::size(block));
            self.next_size.set(grown(self.next_size.get(), self.block_size));
            self.put_aside();
            self.activate(block);
        }
        self.reserve_in_active(layout).ok_or(Refusal::NoMemory)
    }

    /// Memory of a layout in the blocks that there are.
    fn reserve_here(&self, layout: Layout) -> Option<NonNull<u8>> {
        if self.is_large(layout) {
            return None;
        }
        if layout.size() == 0 {
            return self.reserve(layout).ok();
        }
        self.reserve_in_active(layout).or_else(|| self.reserve_in_open(layout))
    }

    fn reserve_in_active(&self, layout: Layout) -> Option<NonNull<u8>> {
        let start = Block::room(self.position.get(), self.end.get(), layout)?;
        // SAFETY: there is so much room.
        self.position.set(unsafe { start.add(layout.size()) });
        Some(start)
    }

    /// Memory in a block that did not have the room for something else.
    fn reserve_in_open(&self, layout: Layout) -> Option<NonNull<u8>> {
        let room_of_active = self.end.get().addr().get() - self.position.get().addr().get();
        let (mut found, mut roomier) = (None, None);
        // SAFETY: the pool's blocks are there.
        unsafe {
            self.open.sift(usize::MAX, |block| {
                let Block { position, end, failures, .. } = block.as_ref();
                if let Some(start) = Block::room(position.get(), *end, layout) {
                    found = Some(start);
                    position.set(start.add(layout.size()));
                    if end.addr().get() - position.get().addr().get() <= room_of_active {
                        return Visit::Stop;
                    }
                    roomier = Some(block);
                    return Visit::TakeOutAndStop;
                }
                failures.set(failures.get() + 1);
                if failures.get() < MOST_FAILURES {
                    return Visit::GoOn;
                }
                self.pass_over(block);
                Visit::TakeOut
            });
            if let Some(block) = roomier {
                self.put_aside();
                self.activate(block);
            }
        }
        found
    }

    /// # Safety
    ///
    /// The block must be there, and in no list.
    unsafe fn activate(&self, block: NonNull<Block>) {
        // SAFETY: the caller's promise.
        let block_ref = unsafe { block.as_ref() };
        self.position.set(block_ref.position.get());
        self.end.set(block_ref.end);
        self.active.set(block);
    }

    /// Puts the active block, in which something did not fit, into a list. There must be
    /// another one next.
    fn put_aside(&self) {
        let (block, position) = (self.active.get(), self.position.get());
        // SAFETY: the block is there, and in no list.
        unsafe {
            block.as_ref().position.set(position);
            let failures = block.as_ref().failures.get() + 1;
            block.as_ref().failures.set(failures);
            let room = self.end.get().addr().get() - position.addr().get();
            let is_open = room >= LEAST_ROOM && failures < MOST_FAILURES;
            if is_open { self.open.push(block) } else { self.pass_over(block) }
        }
    }

    /// Tries a block no more, before the pool is cleared.
    ///
    /// # Safety
    ///
    /// The block must be there, and in no list.
    unsafe fn pass_over(&self, block: NonNull<Block>) {
        if block == self.first {
            self.is_first_full.set(true);
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.full.push(block) };
        }
    }

    #[cold]
    #[inline(never)]
    fn reserve_large(&self, layout: Layout, is_zeroed: bool) -> Result<NonNull<u8>, Refusal> {
        let note = match self.larges.take_unused() {
            Some(note) => note,
            None => self.reserve(Layout::new::<Large>())?.cast(),
        };
        let memory = self
            .allowance(layout.size())
            .and_then(|_| self.store().allocate(layout, is_zeroed).ok_or(Refusal::NoMemory));
        // SAFETY: there is room for the note; the memory is ours, and of that layout.
        unsafe {
            match memory {
                Ok(memory) => self.larges.add(note, memory, layout),
                Err(_) => self.larges.keep_unused(note),
            }
        }
        let memory = memory?;
        self.grow_held(layout.size());
        Ok(memory)
    }

    /// Gives memory back before the pool is cleared: a large allocation is freed, and the last
    /// small one is handed out again. Returns whether it was large.
    ///
    /// # Safety
    ///
    /// The memory must be this pool's, of that layout, and nobody use it.
    pub(crate) unsafe fn give_back(&self, memory: NonNull<u8>, layout: Layout) -> bool {
        if self.is_large(layout) {
            // SAFETY: the caller's promise.
            self.shrink_held(unsafe { self.larges.free(memory) });
            return true;
        }
        // SAFETY: it is as large. No other block ends where there is a position: what
        // stands at a block's beginning is between them.
        if unsafe { memory.add(layout.size()) } == self.position.get() {
            self.position.set(self.last(layout));
        }
        false
    }

    /// The last allocation, which has that layout: what is around it may be reached from there,
    /// as it may not be from where the user has it.
    fn last(&self, layout: Layout) -> NonNull<u8> {
        // SAFETY: it ends where the position is.
        unsafe { self.position.get().sub(layout.size()) }
    }

    /// Makes an allocation larger or smaller, where it is or elsewhere.
    ///
    /// # Safety
    ///
    /// The memory must be this pool's and of the old layout; on success the old place must not
    /// be used any more.
    pub(crate) unsafe fn resize(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<u8>, Refusal> {
        let is_aligned = memory.addr().get().is_multiple_of(new.align());
        match (self.is_large(old), self.is_large(new)) {
            (true, true) => {
                // SAFETY: the caller's promise.
                let large = unsafe { self.larges.find(memory) };
                // Not the old layout's: one that stayed where it is has the one that it had.
                if large.layout().align() == new.align() {
                    // SAFETY: as above.
                    return unsafe { self.resize_large(large, new) };
                }
            }
            (false, false) if is_aligned => {
                // SAFETY: it is as large.
                let is_last = unsafe { memory.add(old.size()) } == self.position.get();
                let room = self.end.get().addr().get().wrapping_sub(memory.addr().get());
                if is_last && new.size() <= room {
                    let start = self.last(old);
                    // SAFETY: there is so much room.
                    self.position.set(unsafe { start.add(new.size()) });
                    return Ok(start);
                }
                if new.size() <= old.size() {
                    return Ok(memory);
                }
            }
            _ => {}
        }
        // It may stay where it is until the pool is cleared, even if it is among the large; but
        // not as one of them that is not.
        let can_stay = is_aligned && new.size() <= old.size() && self.is_large(old) >= self.is_large(new);
        let elsewhere = match self.reserve_here(new) {
            Some(elsewhere) => elsewhere,
            // Nor is more asked for that a limit may deny.
            // SAFETY: the caller's promise. It is large, or it would have stayed above.
            None if can_stay && self.store().is_limited() => return unsafe { self.stay(memory, new) },
            None => match self.reserve(new) {
                // SAFETY: as above.
                Err(_) if can_stay => return unsafe { self.stay(memory, new) },
                elsewhere => elsewhere?,
            },
        };
        // SAFETY: both are as large, and the new one is another.
        unsafe {
            elsewhere.copy_from_nonoverlapping(memory, old.size().min(new.size()));
            self.give_back(memory, old);
        }
        Ok(elsewhere)
    }

    /// Leaves a large allocation among the large, though it is to have a layout that may not be.
    ///
    /// # Safety
    ///
    /// As for [`resize`](Self::resize); it must not grow, and be aligned.
    #[cold]
    unsafe fn stay(&self, memory: NonNull<u8>, new: Layout) -> Result<NonNull<u8>, Refusal> {
        // SAFETY: the caller's promise.
        let large = unsafe { self.larges.find(memory) };
        match Layout::from_size_align(new.size(), large.layout().align()) {
            // SAFETY: as above.
            Ok(own) if own.align() >= new.align() => unsafe { self.resize_large(large, own) },
            _ => Ok(memory),
        }
    }

    /// # Safety
    ///
    /// As for [`resize`](Self::resize), of a large allocation with that alignment.
    unsafe fn resize_large(&self, large: &Large, new: Layout) -> Result<NonNull<u8>, Refusal> {
        let old = large.layout().size();
        let more = new.size().saturating_sub(old);
        if more > 0 {
            self.allowance(more)?;
        }
        // SAFETY: the caller's promise.
        let reallocate = |memory, layout, size| unsafe { self.store().reallocate(memory, layout, size) };
        let Some(moved) = large.resize(new, reallocate) else {
            // What does not grow may as well stay as it is.
            return if more > 0 { Err(Refusal::NoMemory) } else { Ok(large.memory()) };
        };
        self.grow_held(more);
        self.shrink_held(old.saturating_sub(new.size()));
        Ok(moved)
    }

    /// Makes everything free again, and keeps at most so many spare bytes in the store.
    ///
    /// # Safety
    ///
    /// Nobody must use what was handed out, and nothing be left to run.
    pub(crate) unsafe fn release_blocks(&self, max_free: usize) {
        // SAFETY: the caller's promise; each block is in one list, and the first one is there.
        unsafe {
            let large = self.larges.free_all();
            let blocks = self.branch.held() - large - Block::size(self.first);
            if blocks > 0 {
                self.open.drain().for_each(|block| self.pass_over(block));
                self.pass_over(self.active.get());
                self.store().give_all(&self.full, blocks, max_free);
            }
            self.shrink_held(large + blocks);
            self.is_first_full.set(false);
            self.first.as_ref().failures.set(0);
            self.first.as_ref().position.set(self.first.cast::<u8>().add(START));
            self.activate(self.first);
        }
        self.store().trim(max_free);
        self.next_size.set(grown(self.block_size, self.block_size));
    }

    /// Gives back all memory, the node's own included.
    ///
    /// # Safety
    ///
    /// As for [`release_blocks`](Self::release_blocks); there must be no children, and nobody
    /// use the node.
    pub(crate) unsafe fn end(this: NonNull<Self>, first_panic: &mut Option<Payload>) {
        // SAFETY: the caller's promise; what is moved out of the node is not used there again.
        unsafe {
            let node = this.as_ref();
            node.release_blocks(node.store().max_free());
            let first = node.first;
            node.shrink_held(Block::size(first));
            let Self { source, name, on_failure, .. } = this.read();
            match source {
                Source::Own(store) => {
                    store.trim(0);
                    store::free_block(first);
                }
                Source::Shared(store) => store.as_ref().give(first, store.as_ref().max_free()),
            }
            drop(name);
            catch(first_panic, || drop(on_failure));
        }
    }

    /// Bytes that are handed out, with what alignment and notes take; those of large ones among
    /// them.
    pub(crate) fn used(&self) -> usize {
        let of = |block: NonNull<Block>, position: NonNull<u8>| {
            let header = if block == self.first { START } else { Block::HEADER };
            position.addr().get() - block.addr().get() - header
        };
        // SAFETY: the pool's blocks are there.
        let aside = |block: NonNull<Block>| of(block, unsafe { block.as_ref() }.position.get());
        let first = if self.is_first_full.get() { aside(self.first) } else { 0 };
        // SAFETY: as above.
        let in_lists: usize = unsafe { self.open.iter().chain(self.full.iter()).map(aside).sum() };
        of(self.active.get(), self.position.get()) + first + in_lists + self.larges.count().1
    }

    /// How many blocks and large allocations it has.
    pub(crate) fn count(&self) -> (usize, usize) {
        // SAFETY: the pool's blocks are there.
        let in_lists = unsafe { self.open.iter().chain(self.full.iter()).count() };
        let blocks = 1 + usize::from(self.is_first_full.get()) + in_lists;
        (blocks, self.larges.count().0)
    }
}

impl Source {
    fn store(&self) -> &Store {
        match self {
            Self::Own(store) => store,
            // SAFETY: a pool's store is there as long as the pools below it.
            Self::Shared(store) => unsafe { store.as_ref() },
        }
    }
}

/// What alignment takes at most.
#[inline(always)]
fn padding(layout: Layout) -> usize {
    if layout.align() <= GRAIN { 0 } else { layout.align() - GRAIN }
}

/// How large the block after one of that size is to be.
fn grown(size: usize, block_size: usize) -> usize {
    size.saturating_mul(2).min(MOST_BLOCK.max(block_size))
}

/// Tells the compiler that this is not the way that is mostly taken.
#[cold]
#[inline(always)]
fn unlikely() {}
