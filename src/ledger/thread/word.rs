//! Words in a thread's record that other modules have for their own use.

use super::with;

/// A word in each thread's record that a module above the ledger, or a crate beside this one,
/// has for its own use: 0 in a new thread, and of no meaning to the ledger.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// Whether the thread is in an `Inside`.
    CheckInside,
    /// The number that memory-check gave the thread.
    CheckNumber,
    /// Whether memory-check has looked at the thread's arena.
    #[cfg(feature = "memory-check")]
    CheckArena,
    /// dogtag-c: what the thread's service outside of scopes was chosen by.
    OwnerKey,
    /// dogtag-c: the first half of the thread's name.
    NameLow,
    /// dogtag-c: the second half of the thread's name.
    NameHigh,
    /// dogtag-c: how many names other threads had given when this one looked last.
    NamesSeen,
    /// How the thread's service outside of scopes is chosen, by its name for instance.
    Follows,
    /// Whether the thread can do without what it asks for, if its service is cancelled.
    Fallible,
    /// Sampling: the state of the thread's random numbers.
    Random,
    /// Sampling: bytes to the next sample in cells whose threshold is never raised.
    NextSample,
    /// Sampling: for which interval that is.
    SamplingChanges,
    /// Sampling: whether the thread is taking its call stack.
    IsTakingStack,
    /// Call stacks: where the part of the thread's own stack begins that is known to be readable.
    StackFrom,
    /// Call stacks: where it ends; 0 while it is not known.
    StackTo,
    /// Call stacks: how often it was looked for in vain.
    StackFailures,
}

impl Word {
    pub(super) const COUNT: usize = Self::StackFailures as usize + 1;

    /// Returns the calling thread's word.
    #[inline(always)]
    pub fn get(self) -> u64 {
        with(|thread| thread.words[self as usize].get())
    }

    /// Sets the calling thread's word. Signal handlers may call this, whatever they have interrupted.
    #[inline]
    pub fn set(self, value: u64) {
        self.replace(value);
    }

    /// Sets the calling thread's word, and returns its former value.
    #[inline]
    pub fn replace(self, value: u64) -> u64 {
        with(|thread| thread.words[self as usize].replace(value))
    }
}
