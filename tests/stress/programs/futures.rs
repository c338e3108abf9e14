//! Futures in services, polled and dropped by whoever comes by.

use super::homes::{Block, Home};
use super::worker::Worker;
use crate::engine::account::Held;
use crate::engine::{Mode, aside, ensure};
use dogtag::InServiceExt;
use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A future, whose service it keeps, and the blocks that it has.
pub struct Task {
    future: Pin<Box<dyn Future<Output = usize> + Send>>,
    pub held: Held,
    _outer: Option<Held>,
    /// What is asked for at each poll.
    pub sizes: [usize; POLLS],
    pub polls: usize,
    pub blocks: Vec<Layout>,
}

pub const POLLS: usize = 3;

/// What a future asks for, and gives back, when it is dropped.
pub const FAREWELL: usize = 40;

thread_local! {
    /// What the last poll on this thread got.
    static GOT: Cell<usize> = const { Cell::new(0) };
    /// Whether the last drop on this thread got what it asked for.
    static FARED_WELL: Cell<bool> = const { Cell::new(false) };
}

impl Task {
    /// Around it another service may be, which has no part in it.
    pub fn new(held: Held, outer: Option<Held>, sizes: [usize; POLLS]) -> Self {
        let inner = Hungry { sizes, polls: 0, blocks: [0; POLLS] }.in_service(&held.service);
        let future: Pin<Box<dyn Future<Output = usize> + Send>> = match &outer {
            Some(outer) => Box::pin(inner.in_service(&outer.service)),
            None => Box::pin(inner),
        };
        Self { future, held, _outer: outer, sizes, polls: 0, blocks: Vec::with_capacity(POLLS) }
    }

    /// The address of what it allocated, which is the caller's if that was all.
    pub fn poll(&mut self) -> (usize, bool) {
        let poll = self.future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        (GOT.get(), poll.is_ready())
    }

    /// Drops the future. Whether it got what it asked for then, and what it kept.
    pub fn drop_future(self) -> (bool, Kept) {
        let Self { future, held, _outer, blocks, .. } = self;
        drop(future);
        (FARED_WELL.get(), (held, _outer, blocks))
    }
}

/// What is left of a task, to be dropped where it counts for nobody.
pub type Kept = (Held, Option<Held>, Vec<Layout>);

/// Allocates at each poll. The last one's block is its output's.
struct Hungry {
    sizes: [usize; POLLS],
    polls: usize,
    blocks: [usize; POLLS],
}

pub fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

impl Future for Hungry {
    type Output = usize;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<usize> {
        let poll = self.polls;
        // SAFETY: sizes begin at 1.
        let block = unsafe { alloc(layout(self.sizes[poll])) }.expose_provenance();
        GOT.set(block);
        self.polls += 1;
        if self.polls == POLLS {
            return Poll::Ready(block);
        }
        self.blocks[poll] = block;
        Poll::Pending
    }
}

impl Drop for Hungry {
    fn drop(&mut self) {
        for (block, size) in self.blocks.into_iter().zip(self.sizes).filter(|(block, _)| *block != 0) {
            // SAFETY: it was allocated with that layout.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(block), layout(size)) };
        }
        // SAFETY: it is not empty; it is freed if it is there.
        unsafe {
            // Or the compiler does without.
            let block = black_box(alloc(layout(FAREWELL)));
            FARED_WELL.set(!block.is_null());
            if !block.is_null() {
                dealloc(block, layout(FAREWELL));
            }
        }
    }
}

impl Worker<'_> {
    pub fn task(&self, future: usize) -> Option<Task> {
        let mut tasks = self.world.tasks.lock().unwrap();
        let index = future.checked_rem(tasks.len())?;
        Some(tasks.swap_remove(index))
    }

    pub fn poll(&mut self, future: usize) {
        let Some(mut task) = aside(|| self.task(future)) else { return };
        let (owner, mode) = (Arc::clone(&task.held.account), self.mode());
        let layout = layout(task.sizes[task.polls]);
        let denies = mode == Mode::Alone && owner.denies(layout.size(), None);
        let (address, is_ready) = task.poll();
        task.polls += 1;
        if address == 0 {
            owner.was_denied(&Home::Heap, layout, mode, denies);
        } else {
            ensure!(!denies, "a future of {} was not denied {layout:?}", owner.name);
            owner.gets(layout.size());
        }
        aside(|| match (is_ready, NonNull::new(std::ptr::with_exposed_provenance_mut(address))) {
            (false, None) => self.world.tasks.lock().unwrap().push(task),
            (false, Some(_)) => {
                task.blocks.push(layout);
                self.world.tasks.lock().unwrap().push(task);
            }
            (true, block) => {
                if let Some(block) = block {
                    // SAFETY: the future has allocated it, and returned it.
                    self.keep(unsafe { Block::of(block, layout, Home::Heap, owner) });
                }
                self.drop_task(task);
            }
        });
    }

    pub fn drop_task(&mut self, task: Task) {
        let (owner, mode) = (Arc::clone(&task.held.account), self.mode());
        task.blocks.iter().for_each(|layout| owner.gives(layout.size(), || {}));
        let denies = mode == Mode::Alone && owner.denies(FAREWELL, None);
        let (fared_well, _kept) = task.drop_future();
        if fared_well {
            ensure!(!denies, "{} was not denied a farewell", owner.name);
            owner.charge(FAREWELL as u64, 1);
            owner.refund(FAREWELL as u64, 1);
        } else {
            owner.was_denied(&Home::Heap, layout(FAREWELL), mode, denies);
        }
    }
}
