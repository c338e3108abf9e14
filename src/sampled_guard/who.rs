//! Who did something to a block: the service, the thread, the call stack. Kept whole, since a report may come when
//! the service and the thread are gone.

use crate::format::beginning;
use crate::ledger::slots::Record;
use crate::ledger::thread::Word;
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::{sys, unwind};
use std::fmt;

/// Frames that are kept of a call stack.
pub(super) const FRAMES: usize = 32;
/// Bytes that are kept of a service's name, and of a thread's.
const NAME: usize = 32;
const THREAD_NAME: usize = 16;

pub(super) struct Who {
    thread: AtomicU32,
    thread_name: [AtomicU64; THREAD_NAME / 8],
    service: [AtomicU64; NAME / 8],
    handle: AtomicU32,
    length: AtomicU32,
    frames: [AtomicUsize; FRAMES],
}

impl Who {
    pub(super) const fn new() -> Self {
        Self {
            thread: AtomicU32::new(0),
            thread_name: [const { AtomicU64::new(0) }; THREAD_NAME / 8],
            service: [const { AtomicU64::new(0) }; NAME / 8],
            handle: AtomicU32::new(0),
            length: AtomicU32::new(0),
            frames: [const { AtomicUsize::new(0) }; FRAMES],
        }
    }

    /// Notes the calling thread, for a service that does not end meanwhile; no call stack.
    pub(super) fn set(&self, service: &Record) {
        let (thread, name) = thread();
        self.thread.store(thread, Ordering::Relaxed);
        put(&self.thread_name, &name);
        put(&self.service, beginning(service.name(), NAME).as_bytes());
        self.handle.store(service.handle(), Ordering::Relaxed);
        self.length.store(0, Ordering::Relaxed);
    }

    /// Notes the calling thread's call stack. Not from a signal handler.
    #[inline(always)]
    pub(super) fn set_stack(&self) {
        // On some systems taking one allocates.
        if Word::IsTakingStack.replace(1) != 0 {
            return;
        }
        let mut frames = [0; FRAMES];
        let taken = unwind::capture(&mut frames);
        Word::IsTakingStack.set(0);
        self.set_frames(&frames[..taken]);
    }

    pub(super) fn set_frames(&self, frames: &[usize]) {
        for (kept, &frame) in self.frames.iter().zip(frames) {
            kept.store(frame, Ordering::Relaxed);
        }
        self.length.store(frames.len().min(FRAMES) as u32, Ordering::Relaxed);
    }

    pub(super) fn thread(&self) -> u32 {
        self.thread.load(Ordering::Relaxed)
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = usize> {
        let length = self.length.load(Ordering::Relaxed) as usize;
        self.frames.iter().take(length).map(|frame| frame.load(Ordering::Relaxed))
    }

    pub(super) fn handle(&self) -> u32 {
        self.handle.load(Ordering::Relaxed)
    }

    /// Writes the service's name.
    pub(super) fn service(&self) -> impl fmt::Display {
        Kept::<NAME>(get(&self.service))
    }

    /// Writes the thread's name.
    pub(super) fn thread_name(&self) -> impl fmt::Display {
        Kept::<THREAD_NAME>(get(&self.thread_name))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#010x}), on thread {}", self.service(), self.handle(), self.thread())?;
        if self.thread_name[0].load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        write!(f, " \"{}\"", self.thread_name())
    }
}

/// The beginning of a name, up to a zero.
struct Kept<const LENGTH: usize>([u8; LENGTH]);

impl<const LENGTH: usize> fmt::Display for Kept<LENGTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(LENGTH);
        for chunk in self.0[..end].utf8_chunks() {
            write!(f, "{}", chunk.valid().escape_debug())?;
        }
        Ok(())
    }
}

/// The calling thread's number and name, as the system has them.
fn thread() -> (u32, [u8; THREAD_NAME]) {
    (sys::own_thread_number(), sys::own_thread_name().unwrap_or_default())
}

fn put(words: &[AtomicU64], bytes: &[u8]) {
    let mut rest = bytes;
    for word in words {
        let mut chunk = [0; 8];
        let length = rest.len().min(8);
        chunk[..length].copy_from_slice(&rest[..length]);
        rest = &rest[length..];
        word.store(u64::from_ne_bytes(chunk), Ordering::Relaxed);
    }
}

fn get<const LENGTH: usize>(words: &[AtomicU64]) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    for (word, chunk) in words.iter().zip(bytes.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::slots::UNATTRIBUTED;

    #[test]
    fn who_it_was_is_kept_and_written() {
        let who = Who::new();
        who.set(&UNATTRIBUTED);
        who.set_stack();
        let text = who.to_string();
        assert!(text.starts_with("unattributed (0x00000000), on thread "), "{text}");
        assert!(who.thread() != 0);
        put(&who.service, beginning(&"ä".repeat(40), NAME).as_bytes());
        assert_eq!(who.service().to_string(), "ä".repeat(NAME / 2));
        who.set_frames(&[1; FRAMES + 5]);
        assert_eq!(who.frames().count(), FRAMES);
    }
}
