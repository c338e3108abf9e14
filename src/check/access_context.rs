//! The service, thread and call stack of an access to a block.

use super::block::Stamp;
use super::stack_depot::{self, Backtrace};
use super::text::Text;
use super::threads;
use crate::ledger::{slots, thread};
use crate::owner::Slot;
use std::fmt;

/// Describes who accessed a block, and where: the service, the thread, the call stack.
#[derive(Clone, Copy, Debug)]
pub struct AccessContext {
    name: Text,
    handle: u32,
    thread: u32,
    thread_name: Text,
    backtrace: Option<Backtrace>,
}

impl AccessContext {
    /// Returns the name of the service that was current, or its first 64
    /// bytes. It is `(ended)` if that service has ended, and a thousand others
    /// since.
    #[must_use]
    pub fn service(&self) -> &str {
        self.name.as_str()
    }

    /// Returns the handle of the service that was current; 0 if it is `(ended)`.
    #[must_use]
    pub const fn handle(&self) -> u32 {
        self.handle
    }

    /// Returns the number of the thread: 1 for the first that allocated, and so on.
    #[must_use]
    pub const fn thread(&self) -> u32 {
        self.thread
    }

    /// Returns the name of the thread, as the operating system keeps it; empty if it
    /// has none.
    #[must_use]
    pub fn thread_name(&self) -> &str {
        self.thread_name.as_str()
    }

    /// Returns the call stack, if call stacks are kept (`DOGTAG_CHECK=backtrace=1`).
    #[must_use]
    pub const fn backtrace(&self) -> Option<Backtrace> {
        self.backtrace
    }

    pub(crate) fn of(stamp: Stamp) -> Self {
        // `None` if another service has the slot by now.
        let service = Slot::new(stamp.slot()).and_then(slots::any_record).and_then(|record| {
            let is_it = || record.generation() as u16 == stamp.generation();
            record.lifecycle().pinned(|| is_it().then(|| (record.name().into(), record.handle())))?
        });
        let (name, handle) = service.unwrap_or_else(|| ("(ended)".into(), 0));
        Self {
            name,
            handle,
            thread: stamp.thread(),
            thread_name: threads::name(stamp.thread()),
            backtrace: Backtrace::from_number(stamp.trace),
        }
    }

    pub(super) fn now(backtrace: bool) -> Self {
        threads::refresh_name();
        Self::of(stamp(backtrace)).on(threads::number())
    }

    /// The calling thread, with that call stack.
    pub(super) fn at(trace: u32) -> Self {
        let mut stamp = stamp(false);
        stamp.trace = trace;
        Self::of(stamp).on(threads::number())
    }

    /// By a thread whose number is known as a whole.
    fn on(self, thread: u32) -> Self {
        Self { thread, thread_name: threads::name(thread), ..self }
    }
}

/// Describes the access that the calling thread is making.
#[inline(always)]
pub(crate) fn stamp(backtrace: bool) -> Stamp {
    let (service, place) = thread::current_noted(|service| Stamp::place(service.index(), threads::number()));
    let trace = if backtrace { stack_depot::take() } else { 0 };
    Stamp::of(place, service.generation() as u16, trace)
}

impl fmt::Display for AccessContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, thread, .. } = self;
        write!(f, "{} ({handle:#010x}), on thread {thread}", self.service().escape_debug())?;
        match self.thread_name() {
            "" => Ok(()),
            name => write!(f, " {name:?}"),
        }
    }
}
