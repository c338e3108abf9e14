//! Whether the process grows.

use std::fmt;

/// By how much the process may grow once it is warm, beside what is live.
const MARGIN: i64 = 24 << 20;

/// What the process has in memory, beside live blocks, quarantine, and pages that the
/// backend is about to give back.
#[derive(Default)]
pub struct Watch {
    resident: i64,
    beside: i64,
    /// When it was warm.
    base: Option<i64>,
}

impl Watch {
    pub fn look(&mut self, is_warm: bool) {
        #[cfg(all(not(feature = "jemalloc"), target_env = "gnu"))]
        // SAFETY: has the C library give back what it does not need.
        unsafe {
            libc::malloc_trim(0);
        }
        let balance = dogtag::balance();
        let live = balance.services + balance.unattributed;
        self.resident = balance.resident.expect("this system tells") as i64;
        self.beside = self.resident + balance.not_in_memory as i64
            - (live + balance.quarantine + balance.dirty_pages) as i64;
        if is_warm {
            let base = *self.base.get_or_insert(self.beside);
            assert!(self.beside < base + MARGIN, "grows from {base} to {} bytes: {balance}", self.beside);
        }
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes| bytes as f64 / (1 << 20) as f64;
        write!(f, "resident {:.1} MiB, {:.1} of it beside blocks", mib(self.resident), mib(self.beside))
    }
}
