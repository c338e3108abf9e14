//! Starting, changing and stopping the profiler.

use super::buckets;
use super::error::ProfileError;
use super::own;
use super::stacks::{self, MOST_FRAMES};
use crate::events;
use crate::format;
use crate::ledger;
use crate::ledger::interval::{self, Changing};
use crate::ledger::sampling::{self, Hooks};
use crate::ledger::threshold::lower_every_threshold;
use crate::service;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::sys::fork::{self, ForkHook, ForkOrder, Held, at_load};
use crate::unwind;
use crate::usage::Usage;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

/// The heap profiler of this process, which samples allocations while it runs.
///
/// [`builder`](Self::builder) starts it. It goes on until [`stop`](Self::stop), whether this value is
/// kept or not; [`running`](Self::running) returns it again. There is one in a process: a copy that was kept
/// changes and stops whichever run there is.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::profile::ProfileError> {
/// use dogtag::profile::{self, Profiler};
///
/// // Every 64 KiB on average: finer than the default, for a program that allocates little.
/// let profiler = Profiler::builder().interval(64 << 10).start()?;
/// let index: Vec<Vec<u8>> = (0..1000).map(|i| vec![0; 1000 + i]).collect();
/// println!("{}", profile::live());
/// profiler.stop();
/// # drop(index);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profiler(());

/// The settings of a profiler that is about to start: [`Profiler::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sampled before `start`"]
pub struct ProfilerBuilder {
    interval: u64,
    depth: usize,
}

impl Profiler {
    /// The mean distance of sampled bytes where none is set: 512 KiB.
    pub const DEFAULT_INTERVAL: u64 = 512 << 10;
    /// The frames that are kept of a call stack where no depth is set.
    pub const DEFAULT_DEPTH: usize = 64;
    /// The most frames that can be kept of a call stack.
    pub const MOST_FRAMES: usize = MOST_FRAMES;

    /// Returns the settings of a profiler, all defaults, to be changed and started.
    pub const fn builder() -> ProfilerBuilder {
        ProfilerBuilder { interval: Self::DEFAULT_INTERVAL, depth: Self::DEFAULT_DEPTH }
    }

    /// Starts a profiler if the environment variable `DOGTAG_PROFILE` says so: `1` for the defaults, or
    /// settings separated by commas, `interval=64K,depth=100`. Returns `None` if it is not set, empty
    /// or `0`.
    ///
    /// # Errors
    ///
    /// Returns [`ProfileError`] if a setting is not understood, and starts nothing; or if the profiler
    /// is running.
    ///
    /// ```
    /// use dogtag::profile::Profiler;
    ///
    /// if let Err(error) = Profiler::from_env() {
    ///     eprintln!("no heap profile: {error}");
    /// }
    /// ```
    pub fn from_env() -> Result<Option<Self>, ProfileError> {
        std::env::var_os("DOGTAG_PROFILE")
            .map_or(Ok(None), |settings| Self::from_settings(&settings.to_string_lossy()))
    }

    /// Starts a profiler if settings, in the form of [`DOGTAG_PROFILE`](Self::from_env), say so: for
    /// programs that have them from elsewhere, such as the command line. Returns `None` if they are
    /// empty or `0`.
    ///
    /// # Errors
    ///
    /// Returns [`ProfileError`] if a setting is not understood, and starts nothing; or if the profiler
    /// is running.
    ///
    /// ```
    /// use dogtag::profile::Profiler;
    ///
    /// assert!(Profiler::from_settings("interval=lots").is_err());
    /// assert_eq!(Profiler::from_settings("0"), Ok(None));
    /// ```
    pub fn from_settings(settings: &str) -> Result<Option<Self>, ProfileError> {
        ProfilerBuilder::parse(settings)?.map(ProfilerBuilder::start).transpose()
    }

    /// Returns the profiler if it is running.
    #[must_use]
    pub fn running() -> Option<Self> {
        (interval::wanted() != 0).then_some(Self(()))
    }

    /// Returns the mean distance of sampled bytes; 0 if the profiler has been stopped.
    #[must_use]
    pub fn interval(self) -> u64 {
        interval::wanted()
    }

    /// Changes the mean distance of sampled bytes from now on. What was sampled before keeps its weight.
    ///
    /// # Errors
    ///
    /// Returns [`ProfileError::NoInterval`] for 0. If the profiler has been stopped, nothing happens.
    pub fn set_interval(self, bytes: u64) -> Result<(), ProfileError> {
        if bytes == 0 {
            return Err(ProfileError::NoInterval);
        }
        let mut changing = interval::change();
        if interval::wanted() != 0 {
            changing.set(bytes, lower_every_threshold);
        }
        Ok(())
    }

    /// Stops sampling. Profiles still show what was sampled before. What was allocated since is
    /// [not sampled](super::Origin::NotSampled).
    pub fn stop(self) {
        interval::change().set(0, lower_every_threshold);
    }
}

impl ProfilerBuilder {
    /// Sets the mean distance of sampled bytes: each byte is sampled with the same probability, so that
    /// of `bytes` allocated ones one is, on average. 1 samples every allocation.
    pub const fn interval(mut self, bytes: u64) -> Self {
        self.interval = bytes;
        self
    }

    /// Sets how many frames are kept of a call stack, from the innermost on.
    pub const fn depth(mut self, frames: usize) -> Self {
        self.depth = frames;
        self
    }

    /// Starts the profiler.
    ///
    /// Each thread's next allocation in each service takes the slow path, once. What was allocated
    /// before is in no sample: profiles have it as a row of its own. [`allocated`](super::allocated) begins
    /// anew. Libraries that are opened later are known from the next profile on; until then call stacks end
    /// in them.
    ///
    /// # Errors
    ///
    /// Returns [`ProfileError`] if the interval is 0, if there cannot be so many frames, or if the
    /// profiler is running.
    pub fn start(self) -> Result<Profiler, ProfileError> {
        if self.interval == 0 {
            return Err(ProfileError::NoInterval);
        }
        if self.depth == 0 || self.depth > MOST_FRAMES {
            return Err(ProfileError::Depth { depth: self.depth });
        }
        own::register();
        let _scope = own::enter();
        fork::prepare();
        unwind::prepare();
        let mut changing = interval::change();
        if interval::wanted() != 0 {
            return Err(ProfileError::Running);
        }
        DEPTH.store(self.depth, Ordering::Relaxed);
        sampling::set_hooks(&HOOKS);
        changing.set(self.interval, lower_every_threshold);
        // From here on everything is sampled; so at most what there is now was allocated before.
        let baseline = Arc::new(Baseline::now());
        *lock() = Some(baseline);
        buckets::reset();
        Ok(Profiler(()))
    }

    /// Reads settings; `None` if they ask for no profiler.
    fn parse(text: &str) -> Result<Option<Self>, ProfileError> {
        let mut builder = Profiler::builder();
        let mut is_on = false;
        for setting in text.split(',').map(str::trim).filter(|setting| !setting.is_empty()) {
            let unknown = || ProfileError::Setting { setting: setting.to_owned() };
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            match (name.trim(), value.trim()) {
                ("0", "") if text.trim() == "0" => return Ok(None),
                ("1", "") => {}
                ("interval", value) => builder.interval = format::parse_bytes(value).ok_or_else(unknown)?,
                ("depth", value) => builder.depth = value.parse().map_err(|_| unknown())?,
                _ => return Err(unknown()),
            }
            is_on = true;
        }
        Ok(is_on.then_some(builder))
    }
}

/// What there was when sampling began.
#[derive(Debug)]
pub(super) struct Baseline {
    pub(super) began: SystemTime,
    /// By slot and generation.
    pub(super) services: HashMap<(u32, u64), Usage>,
    pub(super) all: Usage,
}

impl Baseline {
    fn now() -> Self {
        let mut services = HashMap::new();
        let all = ledger::usages(|record, usage| _ = services.insert(record.identity(), usage));
        Self { began: SystemTime::now(), services, all }
    }

    /// Of a process in which nothing was ever sampled.
    fn none() -> Self {
        Self { began: SystemTime::now(), ..Self::now() }
    }
}

/// Calls `with` with what there was when sampling began last; if it never did, with what is now.
pub(super) fn with_baseline<R>(with: impl FnOnce(&Baseline) -> R) -> R {
    events::deliver();
    service::end_retired();
    let _scope = own::enter();
    let known = lock().clone();
    with(&known.unwrap_or_else(|| Arc::new(Baseline::none())))
}

static STATE: Mutex<Option<Arc<Baseline>>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Arc<Baseline>>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

static DEPTH: AtomicUsize = AtomicUsize::new(Profiler::DEFAULT_DEPTH);

static HOOKS: Hooks = Hooks { take_stack, count: buckets::count };

/// Takes the calling thread's call stack, inside an allocation.
fn take_stack() -> u32 {
    let mut frames = [0; MOST_FRAMES];
    let depth = DEPTH.load(Ordering::Relaxed).min(MOST_FRAMES);
    let taken = unwind::capture(&mut frames[..depth]);
    stacks::number(&frames[..taken])
}

fn register() {
    fork::register_fork_hook(&HOOK);
}

at_load!(register);

static HOOK: ForkHook = ForkHook { order: ForkOrder::Profiler, before, in_parent: after, in_child: after };
static HELD: Held<(Changing, MutexGuard<'static, Option<Arc<Baseline>>>)> = Held::new();

fn before() {
    let changing = interval::change();
    // SAFETY: this is the hook's `before`.
    unsafe { HELD.keep((changing, lock())) };
}

fn after() {
    // SAFETY: this is the hook's `in_parent` and `in_child`.
    drop(unsafe { HELD.take() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_or_refused() {
        let parse = |text| ProfilerBuilder::parse(text).map(|it| it.map(|it| (it.interval, it.depth)));
        for off in ["", " ", "0", ","] {
            assert_eq!(parse(off), Ok(None), "{off:?}");
        }
        assert_eq!(parse("1"), Ok(Some((512 << 10, 64))));
        assert_eq!(parse("interval=64K"), Ok(Some((64 << 10, 64))));
        assert_eq!(parse(" depth = 100 , interval = 1 "), Ok(Some((1, 100))));
        for bad in
            ["2", "on", "interval", "interval=", "interval=-1", "depth=x", "color=red", "0,depth=3", "1=1"]
        {
            assert!(matches!(parse(bad), Err(ProfileError::Setting { .. })), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let builder = Profiler::builder;
        assert_eq!(builder().interval(0).start(), Err(ProfileError::NoInterval));
        for depth in [0, MOST_FRAMES + 1] {
            assert_eq!(builder().depth(depth).start(), Err(ProfileError::Depth { depth }));
        }
        assert_eq!(Profiler(()).set_interval(0), Err(ProfileError::NoInterval));
    }
}
