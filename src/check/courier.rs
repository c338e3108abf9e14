//! A thread of its own for what a report needs beyond plain text: the names of
//! functions, and a tracing event. Both take locks and allocate, and the crime
//! may have been met while its thread held one of those locks. So that thread
//! waits for the courier, but not for ever.

use super::violation::Violation;
use crate::announce;
use crate::ledger::thread::Inside;
use crate::sys;
use crate::sys::stderr;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Prints the call stacks and emits the event. `false` if that is not done, or
/// not yet: there is no thread for it, or what it needs is locked.
pub(crate) fn deliver(violation: &Violation) -> bool {
    let is_delivered = Arc::new(AtomicBool::new(false));
    let subscriber = announce::subscriber();
    let work = {
        let (violation, is_delivered) = (*violation, is_delivered.clone());
        move || {
            // A crime that is met on the way is told in a line: else there
            // would be courier after courier.
            let _inside = Inside::enter();
            if violation.has_backtraces() {
                stderr::print(format_args!("{}", Backtraces { violation: &violation, names: true }));
            }
            subscriber.receives(|| emit(&violation));
            drop(subscriber);
            is_delivered.store(true, Ordering::Release);
        }
    };
    if !sys::spawn(Box::new(work)) {
        return false;
    }
    for _ in 0..PATIENCE.as_millis() {
        if is_delivered.load(Ordering::Acquire) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// How long a thread waits, which may be about to abort.
const PATIENCE: Duration = Duration::from_secs(10);

fn emit(violation: &Violation) {
    let owner = violation.allocated();
    let freed = violation.freed();
    tracing::error!(
        target: "dogtag",
        crime = %violation.crime(),
        operation = %violation.operation(),
        address = format_args!("{:#x}", violation.address()),
        size = violation.layout().map(|layout| layout.size()),
        align = violation.layout().map(|layout| layout.align()),
        service = owner.map(|deed| deed.service()),
        handle = owner.map(|deed| deed.handle()),
        freed_by = freed.map(|deed| deed.service()),
        freed_on = freed.map(|deed| deed.thread_name()),
        met_by = violation.met().service(),
        met_on = violation.met().thread_name(),
        first_wrong = violation.first_wrong().map(|offset| offset as i64),
        "memory-check found a crime",
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
