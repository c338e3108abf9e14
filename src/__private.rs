//! The part of dogtag's inside that its other crates use. It is hidden and exempt from semver: they
//! depend on exactly this version.

// For dogtag-pool: cleanups that panic, and limits that may deny memory.
pub use crate::{
    contained::{Payload, call, discard},
    service::is_limited,
};

// For dogtag-mapped: arenas in snapshots, in the balance and across forks.
pub use crate::{
    arenas::{Arena, Arenas, register_arenas},
    ledger::thread::counts,
    sys::fork::{ForkHook, ForkOrder, prepare as prepare_forks, register_fork_hook},
};

/// For exporters: what they show.
pub mod series {
    pub use crate::series::{
        Kind, Label, LabelError, METRICS, Metric, Names, Reading, Sample, Unit, check_label,
    };
}

/// For dogtag-cli: how names are written.
pub mod format {
    pub use crate::format::frame;
}

/// Reports that a region is dropped whose first address is `start` and in which blocks are live,
/// and returns whether its memory has to stay: with memory-check, if the process goes on.
#[must_use]
pub fn stays_mapped(start: usize) -> bool {
    #[cfg(feature = "memory-check")]
    crate::check::region_in_use(start);
    #[cfg(not(feature = "memory-check"))]
    let _ = start;
    cfg!(feature = "memory-check")
}

/// Call stacks as they are taken inside allocations, for tests and benches.
#[cfg(feature = "profile")]
pub mod unwind {
    use crate::unwind;

    /// Prepares taking call stacks, and finds the libraries that are loaded now.
    pub fn prepare() {
        unwind::prepare();
        unwind::refresh_if_needed();
    }

    /// Takes the calling thread's call stack, innermost frame first, and returns how many frames it has.
    #[inline]
    pub fn capture(frames: &mut [usize]) -> usize {
        unwind::capture(frames)
    }
}

/// How full the tables of the profiler are, for tests.
#[cfg(feature = "profile")]
pub mod profile {
    pub use crate::ledger::samples::{Tables, tables};
}

// For dogtag-c, all that follows.
pub use crate::ledger::slots::Record;

/// The calling thread's part of the ledger.
pub mod thread {
    pub use crate::ledger::account::Account;
    pub use crate::ledger::thread::{
        Word, account, can_settle, cell, current, current_account, current_record, go_to, leave_for,
        lower_threshold, settle,
    };
    pub use crate::ledger::threshold::lower_every_threshold;
}

/// Services by their records, as C holds them.
pub mod service {
    use super::Record;
    use crate::ledger::slots::UNATTRIBUTED;
    pub use crate::ledger::thread::Entered;
    pub use crate::ledger::{usage, usages};
    pub use crate::service::gate;
    use crate::service::{Scope, Service};

    /// Whether a service is cancelled, whatever has the feature for that.
    #[must_use]
    pub fn is_cancelled(service: &Service) -> bool {
        service.record().family().is_cancelled()
    }
    #[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
    pub use crate::sys::fork::register_fork_handlers;

    /// The record of a service.
    #[inline]
    pub fn record(service: &Service) -> &'static Record {
        service.record()
    }

    /// A clone of a service that was counted before and is kept as its record.
    ///
    /// # Safety
    ///
    /// One of the clones that the record counts becomes this one, unless this one is
    /// forgotten.
    #[inline]
    pub unsafe fn from_record(record: &'static Record) -> Service {
        // SAFETY: the caller gives up the clone that this one becomes.
        unsafe { Service::of_clone(record) }
    }

    /// Puts the calling thread into a service that somebody holds, and returns where it was, for
    /// [`leave`].
    #[inline]
    pub fn enter(record: &'static Record) -> Entered {
        Scope::enter(record).into_entered()
    }

    /// Goes back to where the calling thread was before [`enter`].
    #[inline]
    pub fn leave(entered: Entered) {
        drop(Scope::of_entered(entered));
    }

    /// Runs `work` in the unattributed service.
    #[inline]
    pub fn unattributed<R>(work: impl FnOnce() -> R) -> R {
        let _scope = Scope::enter(&UNATTRIBUTED);
        work()
    }

    /// Whether the last clone of the service was dropped.
    #[inline]
    pub fn is_retired(record: &Record) -> bool {
        record.lifecycle().is_retired()
    }

    /// How many services there can be, beside the unattributed one.
    pub const MOST: u32 = crate::ledger::slots::CAPACITY;
}

/// Blocks whose owner is found without their size.
#[cfg(not(feature = "memory-check"))]
pub mod blocks {
    pub use crate::ledger::charge::{Freed, Source, charged};
    pub use crate::ledger::samples::owner as owner_of;
    pub use crate::ledger::thread::charge_ownerless;
    pub use crate::owner::{LARGE, Named, Slot, unsized_free};
    /// Blocks that the sampled guard has, if there is one.
    pub mod guarded {
        pub use crate::sampled_guard::blocks::{
            Found, Place, Returned, Taken, reserve_unsized, size_of_block, take,
        };
    }
}

/// Blocks that memory-check surrounds with guards.
#[cfg(feature = "memory-check")]
pub mod blocks {
    use crate::Dogtag;
    use crate::check::ViolationKind;
    pub use crate::check::access::{Accessor, begin as check_accesses, check as check_access};
    pub use crate::check::block::Family;
    pub use crate::check::claim::Claim;
    pub use crate::check::fill::set_function as set_fill;
    use std::alloc::{GlobalAlloc, Layout};

    /// The number by which C knows a kind of violation: that of `dogtag.h`. Here, since only this crate
    /// knows that these are all.
    #[must_use]
    pub const fn violation_number(kind: ViolationKind) -> i32 {
        match kind {
            ViolationKind::Overrun => 1,
            ViolationKind::Underrun => 2,
            ViolationKind::DoubleFree => 3,
            ViolationKind::WriteAfterFree => 4,
            ViolationKind::LayoutMismatch => 5,
            ViolationKind::InvalidFree => 6,
            ViolationKind::RegionInUse => 7,
            ViolationKind::AllocDeallocMismatch => 8,
            ViolationKind::BadUsableSize => 9,
            ViolationKind::Overread => 10,
            ViolationKind::ReadAfterFree => 11,
            ViolationKind::WildWrite => 12,
            ViolationKind::WildRead => 13,
        }
    }

    /// Allocates a block of one of C++'s families.
    #[inline]
    pub fn allocate_as<B: GlobalAlloc>(heap: &Dogtag<B>, family: Family, layout: Layout) -> *mut u8 {
        heap.alloc_as(family, layout)
    }

    /// Allocates a block of 0 bytes, at a page without access if there is one.
    #[inline]
    pub fn allocate_zero_sized<B: GlobalAlloc>(heap: &Dogtag<B>, family: Family, layout: Layout) -> *mut u8 {
        debug_assert_eq!(layout.size(), 0);
        heap.alloc_zero_sized(family, layout)
    }

    /// Frees a block, which is taken for what the program says, and reported if it is not that.
    ///
    /// # Safety
    ///
    /// `heap` must have allocated the block, and nobody may use it afterwards.
    #[inline]
    pub unsafe fn free<B: GlobalAlloc>(heap: &Dogtag<B>, block: *mut u8, claim: Claim) {
        // SAFETY: the caller's block is live in this heap, or is found not to be.
        unsafe { heap.free(block, claim) };
    }

    /// Moves a block to one of the new layout; null leaves it as it was.
    ///
    /// # Safety
    ///
    /// As for [`free`], unless null is returned.
    #[inline]
    pub unsafe fn resize<B: GlobalAlloc>(
        heap: &Dogtag<B>,
        block: *mut u8,
        claim: Claim,
        new_layout: Option<Layout>,
    ) -> *mut u8 {
        // SAFETY: the caller's block is live in this heap, or is found not to be.
        unsafe { heap.resize(block, claim, new_layout) }
    }

    /// Returns the size that a live block was requested with; reports a pointer to no live block, and
    /// returns `None`.
    #[inline]
    pub fn size<B: GlobalAlloc>(heap: &Dogtag<B>, block: *mut u8) -> Option<usize> {
        heap.size(block)
    }
}

/// What there is of memory-check whether it is on or not.
pub mod memory_check {
    /// Whether this build has it.
    pub const IS_ON: bool = cfg!(feature = "memory-check");

    /// Makes `source`, which makes no system call, the source of threads' names.
    #[inline]
    pub fn learn_names_from(source: fn() -> [u8; 16]) {
        #[cfg(feature = "memory-check")]
        crate::check::learn_names_from(source);
        let _ = source;
    }

    /// Makes reports show the calling thread's new name.
    pub fn thread_was_renamed() {
        #[cfg(feature = "memory-check")]
        crate::check::thread_was_renamed();
    }

    /// Verifies all blocks, reports violations, and returns how many there were.
    pub fn verify() -> u64 {
        #[cfg(feature = "memory-check")]
        return crate::check::verify().violations;
        #[cfg(not(feature = "memory-check"))]
        0
    }

    /// Makes no more system calls than other allocators: the program is about to filter its own.
    pub fn confine() {
        #[cfg(feature = "memory-check")]
        crate::check::protection::confine();
    }

    /// Begins to look at the quarantine now and then, if the settings ask for that. For C's `malloc`, outside of
    /// allocations.
    pub fn scrub() {
        #[cfg(feature = "memory-check")]
        crate::check::scrubber::begin();
    }

    /// [`verify`], unless a forked child has freed too little for that.
    pub fn verify_at_exit() {
        #[cfg(feature = "memory-check")]
        crate::check::verify_at_exit();
    }
}

/// Expands to one of two pieces of code, whether memory-check is on: as it was built, whoever
/// turned the feature on.
#[cfg(feature = "memory-check")]
#[doc(hidden)]
#[macro_export]
macro_rules! __memory_check {
    (on { $($on:tt)* } off { $($off:tt)* }) => { $($on)* };
}

/// Expands to one of two pieces of code, whether memory-check is on: as it was built, whoever
/// turned the feature on.
#[cfg(not(feature = "memory-check"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __memory_check {
    (on { $($on:tt)* } off { $($off:tt)* }) => { $($off)* };
}

/// Reports as the environment asks for them, and what else is done at exits and signals.
#[cfg(feature = "report")]
pub mod report {
    use crate::report::reporter::{self, Task};
    use crate::report::{ReportBuilder, ReportError};
    pub use crate::report::{
        error::{KNOWN_SERVICES, KNOWN_SETTINGS},
        path::{check, numbered},
        settings::{names_threads, parse, variable},
    };

    /// Starts what is asked for, if anything is. A file need not be there yet, nor its folder.
    ///
    /// # Errors
    ///
    /// Those of [`ReportBuilder::start`] but for files.
    pub fn start(builder: ReportBuilder) -> Result<(), ReportError> {
        builder.start_unchecked()
    }

    /// Has `work` done at the process's exit, after the reports that were asked for before, and at a
    /// signal, by the thread that writes reports.
    ///
    /// # Errors
    ///
    /// Those of [`ReportBuilder::start`] for an exit and a signal.
    pub fn at_exit_and_signal(signal: i32, work: fn()) -> Result<(), ReportError> {
        reporter::add(Task::other(signal, work))
    }
}

/// What the system is asked for.
pub mod sys {
    pub use crate::format::FoldedName;
    pub use crate::sys::stderr::print;
    pub use crate::sys::{spawn, try_box};
}
