//! Starting, changing and stopping the sampled guard.

use super::error::SampledGuardError;
use super::reaction::Reaction;
#[cfg(not(feature = "memory-check"))]
use super::{fault, pool, reaction, region, report};
use crate::ledger::interval;
#[cfg(not(feature = "memory-check"))]
use crate::ledger::slots::UNATTRIBUTED;
use crate::ledger::threshold::lower_every_threshold;
#[cfg(not(feature = "memory-check"))]
use crate::service::Scope;
use std::time::Duration;

/// The sampled guard of this process: it takes one allocation in some thousands.
///
/// [`builder`](Self::builder) starts it. It goes on until [`stop`](Self::stop), whether this value is kept or not.
/// There is one in a process.
///
/// ```
/// # #[cfg(not(feature = "memory-check"))]
/// # fn main() -> Result<(), dogtag::sampled_guard::SampledGuardError> {
/// use dogtag::sampled_guard::SampledGuard;
///
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// let guard = SampledGuard::builder().rate(1000).start()?;
/// assert_eq!(guard.rate(), 1000);
/// # Ok(())
/// # }
/// # #[cfg(feature = "memory-check")]
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledGuard(());

/// The settings of a sampled guard that is about to start: [`SampledGuard::builder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "nothing is guarded before `start`"]
pub struct SampledGuardBuilder {
    rate: u64,
    per_second: u64,
    slots: usize,
    reaction: Reaction,
    patience: Duration,
}

impl SampledGuard {
    /// The share of allocations that are guarded where none is set: one in 5,000.
    pub const DEFAULT_RATE: u64 = 5000;
    /// How many blocks are guarded in a second at most where nothing else is set.
    pub const DEFAULT_PER_SECOND: u64 = 100;
    /// The number of blocks that can be guarded at once where none is set.
    pub const DEFAULT_SLOTS: usize = 256;
    /// The most blocks that can be guarded at once.
    pub const MOST_SLOTS: usize = 4096;
    /// How long a report with functions' names may take where nothing else is set.
    pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

    /// Returns the settings of a sampled guard, all defaults, to be changed and started.
    pub const fn builder() -> SampledGuardBuilder {
        SampledGuardBuilder {
            rate: Self::DEFAULT_RATE,
            per_second: Self::DEFAULT_PER_SECOND,
            slots: Self::DEFAULT_SLOTS,
            reaction: Reaction::Abort,
            patience: Self::DEFAULT_PATIENCE,
        }
    }

    /// Starts a sampled guard if the environment variable `DOGTAG_SAMPLED_GUARD` says so: `1` for the defaults,
    /// or settings separated by commas, `rate=5000,per-second=100,slots=256,reaction=continue,patience=10`
    /// (in seconds). Returns `None` if it is not set, empty or `0`. Only programs that call this read the
    /// variable, and those that `dogtag-c` is preloaded into.
    ///
    /// # Errors
    ///
    /// Returns [`SampledGuardError`] if a setting is not understood, and starts nothing; and as
    /// [`start`](SampledGuardBuilder::start) does.
    ///
    /// ```
    /// use dogtag::sampled_guard::SampledGuard;
    ///
    /// if let Err(error) = SampledGuard::from_env() {
    ///     eprintln!("no sampled guard: {error}");
    /// }
    /// ```
    pub fn from_env() -> Result<Option<Self>, SampledGuardError> {
        std::env::var_os("DOGTAG_SAMPLED_GUARD")
            .map_or(Ok(None), |settings| Self::from_settings(&settings.to_string_lossy()))
    }

    /// Starts a sampled guard if settings, in the form of [`DOGTAG_SAMPLED_GUARD`](Self::from_env), say so: for
    /// programs that have them from elsewhere, such as the command line. Returns `None` if they are
    /// empty or `0`.
    ///
    /// # Errors
    ///
    /// As [`from_env`](Self::from_env).
    ///
    /// ```
    /// use dogtag::sampled_guard::SampledGuard;
    ///
    /// assert!(SampledGuard::from_settings("rate=often").is_err());
    /// assert_eq!(SampledGuard::from_settings("0"), Ok(None));
    /// ```
    pub fn from_settings(settings: &str) -> Result<Option<Self>, SampledGuardError> {
        SampledGuardBuilder::parse(settings)?.map(SampledGuardBuilder::start).transpose()
    }

    /// Returns the sampled guard if it is running.
    #[must_use]
    pub fn running() -> Option<Self> {
        (interval::rate() != 0).then_some(Self(()))
    }

    /// Returns the share of allocations that are guarded, as one in so many; 0 if it has been stopped.
    #[must_use]
    pub fn rate(self) -> u64 {
        interval::rate()
    }

    /// Returns how many blocks can be guarded at once.
    #[must_use]
    pub fn slots(self) -> usize {
        #[cfg(feature = "memory-check")]
        return 0;
        #[cfg(not(feature = "memory-check"))]
        pool::slots_in_use()
    }

    /// Stops it: no further block is guarded. Those that are stay guarded, until they are freed and after.
    pub fn stop(self) {
        interval::change().set_rate(0, lower_every_threshold);
    }
}

impl SampledGuardBuilder {
    /// Sets the share of allocations that are guarded: one in `allocations`, whatever their sizes. 1 takes every
    /// allocation that there is a slot for, and [time](Self::per_second). Of blocks of less than 8 bytes proportionally
    /// fewer are guarded.
    pub const fn rate(mut self, allocations: u64) -> Self {
        self.rate = allocations;
        self
    }

    /// Sets how many blocks are guarded in a second at most, in all threads of the process together; 0 for no bound.
    /// Up to 32 may come at once, when fewer came before. Those for which there is no time go the usual way,
    /// and are [counted](super::Figures::throttled).
    ///
    /// The [rate](Self::rate) bounds what guarded blocks cost for each allocation, this what they cost in a second: one
    /// costs 25 to 80 µs in real programs, so at the default all take less than one hundredth of one processor's
    /// time, however much the program allocates. (The Linux kernel's KFENCE bounds its cost by time for that reason.) Where the bound is
    /// reached, it depends on the time, and not on the blocks, which of them are guarded, and of a mistake's occurrences a
    /// smaller share is found than the rate says.
    ///
    /// ```
    /// # #[cfg(not(feature = "memory-check"))]
    /// # fn main() -> Result<(), dogtag::sampled_guard::SampledGuardError> {
    /// use dogtag::sampled_guard::{self, SampledGuard};
    /// # use std::hint::black_box;
    ///
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// // In a canary: one block in 1,000, but in no more than a hundredth of the time.
    /// SampledGuard::builder().rate(1000).per_second(100).start()?;
    /// # SampledGuard::running().unwrap().stop();
    /// # SampledGuard::builder().rate(1).per_second(1).start()?;
    /// # (0..1000).for_each(|i| drop(black_box(Box::new(i))));
    /// println!("{} blocks went without", sampled_guard::figures().throttled);
    /// # assert!(sampled_guard::figures().throttled > 0);
    /// # Ok(())
    /// # }
    /// # #[cfg(feature = "memory-check")]
    /// # fn main() {}
    /// ```
    pub const fn per_second(mut self, blocks: u64) -> Self {
        self.per_second = blocks;
        self
    }

    /// Sets how many blocks can be guarded at once, live ones and freed ones whose pages have no access. A live
    /// one takes a page of memory (4 KiB), and so does a freed one of the first 512 KiB's; each takes less than a KiB,
    /// and every third one a page, beside.
    pub const fn slots(mut self, blocks: usize) -> Self {
        self.slots = blocks;
        self
    }

    /// Sets what is done when a violation was reported.
    pub const fn reaction(mut self, reaction: Reaction) -> Self {
        self.reaction = reaction;
        self
    }

    /// Sets how long the thread that has found a violation waits for its report with functions' names. Then, or if
    /// the thread that writes reports has not begun after a fifth of that, the report has addresses, as it has at
    /// once with no patience at all. It lacks then where the access was made, and no event is sent. Reading the debug information of a very large program may take longer than
    /// the default of ten seconds.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts the sampled guard.
    ///
    /// The first start maps the pool, sets handlers of `SIGSEGV` and `SIGBUS`, and begins a thread, which writes
    /// reports. Handlers that were set before are called for all that is not in the pool. So start the guard
    /// after a crash reporter.
    ///
    /// # Errors
    ///
    /// Returns [`SampledGuardError`] if there cannot be such settings, if the guard is running, if the system
    /// refuses the pool, and with the feature `memory-check`, which looks at every block.
    pub fn start(self) -> Result<SampledGuard, SampledGuardError> {
        if self.rate == 0 {
            return Err(SampledGuardError::NoRate);
        }
        if self.slots == 0 || self.slots > SampledGuard::MOST_SLOTS {
            return Err(SampledGuardError::Slots { slots: self.slots, most: SampledGuard::MOST_SLOTS });
        }
        self.begin()
    }

    #[cfg(feature = "memory-check")]
    fn begin(self) -> Result<SampledGuard, SampledGuardError> {
        Err(SampledGuardError::MemoryCheck)
    }

    #[cfg(not(feature = "memory-check"))]
    fn begin(self) -> Result<SampledGuard, SampledGuardError> {
        // What is allocated for it is nobody's who happens to start it.
        let _scope = Scope::enter(&UNATTRIBUTED);
        crate::sys::fork::prepare();
        crate::unwind::prepare();
        let mut changing = interval::change();
        if interval::rate() != 0 {
            return Err(SampledGuardError::Running);
        }
        let is_first = pool::slots() == 0;
        if !pool::map(self.slots) {
            return Err(SampledGuardError::NoMemory { slots: self.slots });
        }
        if self.slots > pool::slots() {
            return Err(SampledGuardError::Slots { slots: self.slots, most: pool::slots() });
        }
        if is_first {
            region::register();
            crate::sys::fault::register_fault_hook(&fault::FAULT_HOOK);
        }
        report::start_thread();
        pool::use_slots(self.slots);
        pool::BUDGET.set(self.per_second);
        report::set_patience(self.patience);
        reaction::set(self.reaction);
        changing.set_rate(self.rate, lower_every_threshold);
        Ok(SampledGuard(()))
    }

    /// Reads settings; `None` if they ask for no guard.
    fn parse(text: &str) -> Result<Option<Self>, SampledGuardError> {
        let mut builder = SampledGuard::builder();
        let mut is_on = false;
        for setting in text.split(',').map(str::trim).filter(|setting| !setting.is_empty()) {
            let unknown = || SampledGuardError::Setting { setting: setting.to_owned() };
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            match (name.trim(), value.trim()) {
                ("0", "") if text.trim() == "0" => return Ok(None),
                ("1", "") => {}
                ("rate", value) => builder.rate = value.parse().map_err(|_| unknown())?,
                ("per-second", value) => builder.per_second = value.parse().map_err(|_| unknown())?,
                ("slots", value) => builder.slots = value.parse().map_err(|_| unknown())?,
                ("patience", value) => {
                    builder.patience =
                        Duration::from_secs(value.parse::<u32>().map_err(|_| unknown())?.into());
                }
                ("reaction", "abort") => builder.reaction = Reaction::Abort,
                ("reaction", "continue") => builder.reaction = Reaction::Continue,
                _ => return Err(unknown()),
            }
            is_on = true;
        }
        Ok(is_on.then_some(builder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_or_refused() {
        let parse = SampledGuardBuilder::parse;
        for off in ["", " ", "0", ","] {
            assert_eq!(parse(off), Ok(None), "{off:?}");
        }
        assert_eq!(parse("1"), Ok(Some(SampledGuard::builder())));
        let all = SampledGuard::builder().rate(7).per_second(8).slots(9).reaction(Reaction::Continue);
        let all = all.patience(Duration::from_secs(60));
        assert_eq!(parse(" rate=7,per-second=8, slots = 9 ,reaction=continue,patience=60,"), Ok(Some(all)));
        let no_seconds = "patience=1.5";
        for bad in [
            "2",
            "on",
            "rate",
            "rate=",
            "rate=-1",
            "per-second=1/s",
            "slots=x",
            "reaction=leak",
            no_seconds,
            "0,rate=3",
            "1=1",
        ] {
            assert!(matches!(parse(bad), Err(SampledGuardError::Setting { .. })), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let builder = SampledGuard::builder;
        assert_eq!(builder().rate(0).start(), Err(SampledGuardError::NoRate));
        let most = SampledGuard::MOST_SLOTS;
        for slots in [0, most + 1] {
            assert_eq!(builder().slots(slots).start(), Err(SampledGuardError::Slots { slots, most }));
        }
        #[cfg(feature = "memory-check")]
        assert_eq!(builder().start(), Err(SampledGuardError::MemoryCheck));
    }
}
