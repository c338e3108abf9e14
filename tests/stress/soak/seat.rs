//! Seats, at which one thread after the other works: each takes over what the one before has
//! left. All can be stopped.

use super::SEATS;
use super::books::{Block, Books, Source};
use super::work::Worker;
use crate::engine::account::Held;
use crate::random::Random;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};

pub struct Seats {
    seed: u64,
    /// What others have for a seat.
    pub mailboxes: [Mutex<Vec<Block>>; SEATS],
    /// Services that everybody may use.
    pub owners: Mutex<Vec<Held>>,
    /// Where blocks may be had, beside the global allocator.
    pub sources: Mutex<Vec<Source>>,
    is_to_stop: AtomicBool,
    is_over: AtomicBool,
    barrier: Barrier,
}

impl Seats {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            mailboxes: Default::default(),
            owners: Mutex::default(),
            sources: Mutex::default(),
            is_to_stop: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            barrier: Barrier::new(SEATS + 1),
        }
    }

    /// Has threads work at a seat until the end.
    pub fn sit(&self, seat: usize, books: &Books) {
        let mut worker = Worker::new(Random::new(self.seed.wrapping_add(seat as u64)), seat);
        loop {
            books.threads.fetch_add(1, SeqCst);
            std::thread::scope(|threads| threads.spawn(|| worker.shift(self, books)).join().unwrap());
            if self.is_to_stop.load(SeqCst) {
                worker.report();
                self.barrier.wait();
                self.barrier.wait();
            }
            if self.is_over.load(SeqCst) {
                break;
            }
        }
        worker.end();
        // Others may still send something.
        self.barrier.wait();
        self.mailboxes[seat].lock().unwrap().clear();
    }

    /// Does something while nobody works.
    pub fn stopped(&self, work: impl FnOnce()) {
        self.is_to_stop.store(true, SeqCst);
        self.barrier.wait();
        self.is_to_stop.store(false, SeqCst);
        work();
        self.barrier.wait();
    }

    pub fn end(&self) {
        self.is_over.store(true, SeqCst);
        self.barrier.wait();
        self.owners.lock().unwrap().clear();
        self.sources.lock().unwrap().clear();
    }
}
