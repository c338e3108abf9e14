//! A thread for what a report needs beyond plain text: the names of functions, and a `tracing` event.
//! Both take locks and allocate, and the thread that found the violation may hold one of those locks.
//! So it waits for the report thread, but not for ever.

use super::settings::Settings;
use super::violation::Violation;
use crate::contained::{contain, drop_contained};
use crate::events;
use crate::ledger::thread::Inside;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys;
use crate::sys::stderr;
use std::fmt;
use std::time::Duration;

/// Prints the call stacks and emits the event, on a thread of its own. `false` if that is not done,
/// or not yet: no thread could be started, what it needs is locked, or nobody waits for that.
pub(crate) fn deliver(violation: &Violation) -> bool {
    // How long the thread that found the violation waits; it may be about to abort.
    let patience = Settings::get().patience;
    if patience == 0 {
        return false;
    }
    let receipt = Receipt::new();
    let subscriber = events::subscriber();
    let work = {
        let violation = *violation;
        move || {
            // A violation that this thread finds is reported in a line: else there would be report
            // thread after report thread.
            let _inside = Inside::enter();
            if violation.has_backtraces() {
                stderr::print(format_args!("{}", Backtraces { violation: &violation, names: true }));
            }
            // The receipt is signed even if a subscriber panics.
            contain(|| subscriber.receives(|| emit(&violation)));
            drop_contained(subscriber);
            receipt.sign();
        }
    };
    if !sys::spawn(work) {
        return false;
    }
    for _ in 0..patience.saturating_mul(1000) {
        if receipt.is_signed() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Says whether a report was delivered. It takes no allocation, for which there may be no memory: it
/// is one of 64 bits, which is flipped when the report is delivered. Of more than 64 reports at once
/// some wait too long, or not long enough.
#[derive(Clone, Copy)]
struct Receipt {
    bit: u64,
    unsigned: u64,
}

static RECEIPTS: AtomicU64 = AtomicU64::new(0);

impl Receipt {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        let bit = 1 << (NEXT.fetch_add(1, Ordering::Relaxed) % u64::BITS);
        Self { bit, unsigned: RECEIPTS.load(Ordering::Relaxed) & bit }
    }

    fn sign(self) {
        RECEIPTS.fetch_xor(self.bit, Ordering::Release);
    }

    fn is_signed(self) -> bool {
        RECEIPTS.load(Ordering::Acquire) & self.bit != self.unsigned
    }
}

fn emit(violation: &Violation) {
    let owner = violation.allocated();
    let freed = violation.freed();
    tracing::error!(
        target: "dogtag",
        violation = %violation.kind(),
        operation = %violation.operation(),
        address = format_args!("{:#x}", violation.address()),
        size = violation.layout().map(|layout| layout.size()),
        align = violation.layout().map(|layout| layout.align()),
        service = owner.map(|context| context.service()),
        handle = owner.map(|context| context.handle()),
        freed_by = freed.map(|context| context.service()),
        freed_on = freed.map(|context| context.thread_name()),
        met_by = violation.met().service(),
        met_on = violation.met().thread_name(),
        first_wrong = violation.first_wrong().map(|offset| offset as i64),
        "memory-check found a violation",
    );
}

/// Writes the call stacks of a violation.
pub(crate) struct Backtraces<'a> {
    pub(crate) violation: &'a Violation,
    pub(crate) names: bool,
}

impl fmt::Display for Backtraces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.violation.backtraces(f, self.names)
    }
}
