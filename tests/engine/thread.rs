//! A thread of a program: its blocks, the services that it is in, and its steps.

use super::account::{Held, Owner};
use super::block::Block;
use super::memory::Memory;
use super::{Mode, aside, ensure};
use crate::random::Random;
use dogtag::{Scope, Service};
use std::alloc::Layout;

pub struct Thread<M, O> {
    pub mode: Mode,
    pub blocks: Vec<Block<M, O>>,
    /// The service that the thread is in.
    pub current: O,
    scopes: Vec<Entered<O>>,
}

struct Entered<O> {
    scope: Scope<'static>,
    /// The service that the scope goes back to.
    previous: O,
    held: Option<Held>,
}

/// A step of a program, wherever it is drawn from. Numbers choose among what there is then.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    Allocate {
        layout: Layout,
        is_zeroed: bool,
    },
    Resize {
        block: usize,
        size: usize,
    },
    Free {
        block: usize,
    },
    /// By a thread of its own.
    FreeElsewhere {
        block: usize,
    },
    Enter {
        service: usize,
    },
    /// The inmost scope is 0.
    Leave {
        scope: usize,
    },
}

impl Operation {
    /// One of those that weigh so much, in their order.
    pub fn draw(random: &mut Random, weights: [usize; 6], size: fn(&mut Random) -> usize) -> Self {
        let any = random.next() as usize >> 1;
        match random.weighed(&weights) {
            0 => {
                let shift = if random.once_in(50) { random.below(13) } else { random.below(5) };
                let layout = Layout::from_size_align(size(random), 1 << shift).unwrap();
                Self::Allocate { layout, is_zeroed: random.once_in(4) }
            }
            1 => Self::Resize { block: any, size: size(random) },
            2 => Self::Free { block: any },
            3 => Self::FreeElsewhere { block: any },
            4 => Self::Enter { service: any },
            _ => Self::Leave { scope: 0 },
        }
    }
}

impl<M: Memory, O: Owner> Thread<M, O> {
    /// A thread that is in that service.
    pub fn new(mode: Mode, current: O) -> Self {
        Self { mode, blocks: Vec::new(), current, scopes: Vec::new() }
    }

    /// Does a step with that memory, among those services.
    pub fn step(&mut self, operation: Operation, memory: M, services: &[(Service, O)])
    where
        M: Send,
        O: Send,
    {
        match operation {
            Operation::Allocate { layout, is_zeroed } => _ = self.allocate(memory, layout, is_zeroed),
            Operation::Resize { block, size } => {
                if let Some(block) = block.checked_rem(self.blocks.len()) {
                    self.resize(block, size);
                }
            }
            Operation::Free { block } => {
                let block = self.take(block);
                block.into_iter().for_each(|block| block.free(self.mode));
            }
            Operation::FreeElsewhere { block } => {
                let (block, mode) = (self.take(block), self.mode);
                let free = || block.into_iter().for_each(|block| block.free(mode));
                aside(|| std::thread::scope(|threads| threads.spawn(free).join())).unwrap();
            }
            Operation::Enter { service } => {
                let (service, owner) = &services[service % services.len()];
                self.enter(service, owner.clone());
            }
            Operation::Leave { scope } => {
                if let Some(scope) = scope.checked_rem(self.scopes.len()) {
                    self.leave(self.scopes.len() - 1 - scope);
                }
            }
        }
    }

    /// Allocates a block of the current service's, and keeps it; `false` if it was not had.
    pub fn allocate(&mut self, memory: M, layout: Layout, is_zeroed: bool) -> bool {
        let block = Block::allocate(memory, self.current.clone(), layout, is_zeroed, self.mode);
        let is_had = block.is_some();
        block.into_iter().for_each(|block| self.keep(block));
        is_had
    }

    /// Resizes the block of that number, for the current service.
    pub fn resize(&mut self, block: usize, size: usize) -> bool {
        let block = &mut self.blocks[block];
        if !block.is_clear_whose(&self.current, size, self.mode) {
            return false;
        }
        let layout = Layout::from_size_align(size, block.piece.layout.align()).unwrap();
        block.resize(&self.current, layout, false, self.mode)
    }

    pub fn keep(&mut self, block: Block<M, O>) {
        if self.blocks.len() == self.blocks.capacity() {
            aside(|| self.blocks.reserve(1));
        }
        self.blocks.push(block);
    }

    /// One of the blocks.
    pub fn take(&mut self, block: usize) -> Option<Block<M, O>> {
        Some(self.blocks.swap_remove(block.checked_rem(self.blocks.len())?))
    }

    pub fn free_all(&mut self) {
        while let Some(block) = self.blocks.pop() {
            block.free(self.mode);
        }
    }

    /// Enters a service.
    pub fn enter(&mut self, service: &Service, owner: O) {
        if self.scopes.len() == self.scopes.capacity() {
            aside(|| self.scopes.reserve(1));
        }
        owner.enters();
        // SAFETY: a scope keeps its service by itself; that the borrow lasts as long is for the
        // convenience of who reads the code.
        let scope = unsafe { std::mem::transmute::<Scope<'_>, Scope<'static>>(service.enter()) };
        let previous = std::mem::replace(&mut self.current, owner);
        self.scopes.push(Entered { scope, previous, held: None });
    }

    /// What is held goes with the inmost scope.
    pub fn hold(&mut self, held: Held) {
        self.scopes.last_mut().unwrap().held = Some(held);
    }

    pub fn depth(&self) -> usize {
        self.scopes.len()
    }

    /// Leaves the scope of that number, the outermost of which is 0. The last one that is left decides
    /// where the thread is.
    pub fn leave(&mut self, scope: usize) {
        let Entered { scope, previous, held: _held } = self.scopes.remove(scope);
        drop(scope);
        self.current.leaves();
        self.current = previous;
    }

    /// Leaves all, the inmost first.
    pub fn leave_all(&mut self) {
        while let Some(inmost) = self.scopes.len().checked_sub(1) {
            self.leave(inmost);
        }
    }

    /// Does something for a service, in a closure and out of it.
    pub fn run_in<R>(&mut self, service: &Service, owner: O, work: impl FnOnce(&mut Self) -> R) -> R {
        owner.enters();
        let before = std::mem::replace(&mut self.current, owner);
        let result = service.run(|| work(self));
        std::mem::replace(&mut self.current, before).leaves();
        result
    }

    /// The thread is where the model has it.
    pub fn check_current(&self) {
        let current = Service::current();
        let is_right = (current.name(), current.handle()) == (&*self.current.name, self.current.handle);
        ensure!(is_right, "in {current:?}, not {:?}", self.current.name);
        drop(current);
    }
}
