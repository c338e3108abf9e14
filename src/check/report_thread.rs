//! A thread of its own for what a report needs beyond plain text: the names of
//! functions, and a tracing event. Both take locks and allocate, and the crime
//! may have been met while its thread held one of those locks. So that thread
//! waits for the courier, but not for ever.

use super::violation::Violation;
use crate::contained::{contain, drop_contained};
use crate::events;
use crate::ledger::thread::Inside;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys;
use crate::sys::stderr;
use std::fmt;
use std::time::Duration;

/// Prints the call stacks and emits the event. `false` if that is not done, or
/// not yet: there is no thread for it, or what it needs is locked.
pub(crate) fn deliver(violation: &Violation) -> bool {
    let receipt = Receipt::new();
    let subscriber = events::subscriber();
    let work = {
        let violation = *violation;
        move || {
            // A crime that is met on the way is told in a line: else there
            // would be courier after courier.
            let _inside = Inside::enter();
            if violation.has_backtraces() {
                stderr::print(format_args!("{}", Backtraces { violation: &violation, names: true }));
            }
            // Whoever waits is told though a subscriber panics.
            contain(|| subscriber.receives(|| emit(&violation)));
            drop_contained(subscriber);
            receipt.sign();
        }
    };
    if !sys::spawn(work) {
        return false;
    }
    for _ in 0..PATIENCE.as_millis() {
        if receipt.is_signed() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// How long a thread waits, which may be about to abort.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells whether something was delivered. Without an allocation, for which there may be no
/// memory: it is a bit of all the last ones', and turned when it is signed. Of more than 64 at
/// once some wait too long, or not long enough.
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

/// The call stacks of a violation, as text.
pub(crate) struct Backtraces<'a> {
    pub(crate) violation: &'a Violation,
    pub(crate) names: bool,
}

impl fmt::Display for Backtraces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.violation.backtraces(f, self.names)
    }
}
