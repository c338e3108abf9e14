//! How a guard is begun.

use super::ceiling::{Ceiling, Meter};
use super::error::GuardError;
use super::figures::{self, Figures, figures};
use super::policy::Policy;
use super::pressure::{self, Callback, OnPressure, Pressure};
use super::running;
use super::watch::{Shared, Watch};
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::Scope;
use crate::sys;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Cancels the heaviest services when the process gets to a ceiling, until it is dropped: they end before the
/// kernel ends all of them. Memory falls as fast as they let go of it.
///
/// A thread of dogtag's own watches what is used: ten times a second where there is much left, up to a thousand
/// times where there is little, and when threads have allocated a quarter of what was left. On the way
/// up it does what costs least first, and each of these is an event and a [figure](figures):
///
/// 1. From 15/16 of the ceiling on, or earlier where the use grows fast, it has the allocator give its free
///    pages back,
/// 2. and asks those who [registered](super::on_pressure) to let go of what they can do without.
/// 3. From the ceiling on it [cancels](crate::Service::cancel) a service: of those that
///    [may be cancelled](crate::Service::set_cancellable) the one that the [`Policy`] chooses.
///
/// Then it waits for that one to let go, for as long as the [grace](GuardBuilder::grace) is. Nobody else is
/// cancelled while what the first one has still to give back is enough. One that has not let go of half of its
/// bytes by then is reported, and the next one is taken. Services that are not marked are never
/// cancelled, but for those below one that is.
///
/// A process has one guard at a time. A forked child has none, and may begin one.
///
/// ```no_run
/// use dogtag::guard::{Ceiling, Guard, Policy};
/// use dogtag::{InServiceExt, Service};
///
/// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
/// let guard = match Guard::builder().ceiling(Ceiling::cgroup(0.9)).policy(Policy::most_bytes()).start() {
///     Ok(guard) => Some(guard),
///     // The program runs on without it.
///     Err(error) => {
///         eprintln!("{error}");
///         None
///     }
/// };
/// let query = Service::builder("query-17").cancellable(0).register()?;
/// let rows = async { vec![0_u8; 1 << 30] }.in_service(&query).or_cancelled().await?;
/// # drop((guard, rows));
/// # Ok(())
/// # }
/// ```
#[must_use = "the guard ends when it is dropped"]
pub struct Guard {
    shared: Arc<Shared>,
    /// The process that has the thread.
    process: u32,
    _callbacks: Vec<OnPressure>,
}

impl Guard {
    /// Begins to build a guard, whose ceiling is nine tenths of the cgroup's limit.
    pub fn builder() -> GuardBuilder {
        GuardBuilder {
            ceiling: Ceiling::cgroup(0.9),
            policy: Policy::most_bytes(),
            callbacks: Vec::new(),
            grace: Duration::from_millis(500),
            least: None,
        }
    }

    /// Returns what has been done so far, and what the last look has found: [`figures`].
    #[must_use]
    pub fn figures(&self) -> Figures {
        figures()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("figures", &self.figures()).finish_non_exhaustive()
    }
}

impl Drop for Guard {
    /// Ends the guard's thread, and waits until it has ended. A callback of [`on_pressure`](super::on_pressure)
    /// may go on.
    fn drop(&mut self) {
        // A forked child has the guard, but not its thread.
        if self.process == std::process::id() {
            self.shared.stop();
        }
    }
}

/// Begins a guard: [`Guard::builder`].
#[derive(Clone)]
#[must_use = "nothing is watched before `start`"]
pub struct GuardBuilder {
    ceiling: Ceiling,
    policy: Policy,
    callbacks: Vec<Callback>,
    grace: Duration,
    least: Option<u64>,
}

impl fmt::Debug for GuardBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ceiling, policy, callbacks, grace, least } = self;
        f.debug_struct("GuardBuilder")
            .field("ceiling", ceiling)
            .field("policy", policy)
            .field("callbacks", &callbacks.len())
            .field("grace", grace)
            .field("least", least)
            .finish()
    }
}

impl GuardBuilder {
    /// Sets how much may be used. Without it, that is nine tenths of the cgroup's limit.
    pub fn ceiling(mut self, ceiling: Ceiling) -> Self {
        self.ceiling = ceiling;
        self
    }

    /// Sets who is cancelled first. Without it, the service that holds most.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Adds a callback for when memory is short: [`on_pressure`](super::on_pressure), for as long as there is the
    /// guard.
    pub fn on_pressure(mut self, callback: impl Fn(&Pressure) + Send + Sync + 'static) -> Self {
        self.callbacks.push(Arc::new(callback));
        self
    }

    /// Sets for how long a service that was cancelled may hold its memory before it is reported, and the next
    /// one is cancelled. One that goes on freeing has so long for each 64th of its bytes, and eight times
    /// as long in all. The default is half a second.
    ///
    /// What it has freed counts as still to come for a quarter of the grace, and a second for each 4 GiB, since a
    /// thread that frees may have to wait for a core before the pages go back; or until less is used than the
    /// ceiling. If others allocate as much meanwhile, the ceiling is passed by that, and for so long.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets how many bytes a service must hold at least to be cancelled: the end of those that hold little helps
    /// nobody. Without it, that is 1/1024 of the ceiling.
    pub fn least(mut self, bytes: u64) -> Self {
        self.least = Some(bytes);
        self
    }

    /// Begins the guard, with a thread.
    ///
    /// # Errors
    ///
    /// Returns what keeps it from watching, and says what to do: [`GuardError::Fraction`],
    /// [`GuardError::NoCgroup`], [`GuardError::NoLimit`], [`GuardError::Unreadable`], [`GuardError::TooLow`] if
    /// as much is used already, [`GuardError::Running`] and [`GuardError::NoThread`].
    ///
    /// ```
    /// use dogtag::guard::{Ceiling, Guard, GuardError};
    ///
    /// let error = Guard::builder().ceiling(Ceiling::bytes(1 << 10)).start().unwrap_err();
    /// assert!(matches!(error, GuardError::TooLow { ceiling: 1024, .. }));
    ///
    /// let guard = Guard::builder().ceiling(Ceiling::physical(1.0)).start()?;
    /// assert!(guard.figures().running && guard.figures().ceiling > 0);
    /// # Ok::<(), GuardError>(())
    /// ```
    pub fn start(self) -> Result<Guard, GuardError> {
        let Self { ceiling, policy, callbacks, grace, least } = self;
        let _scope = Scope::enter(&UNATTRIBUTED);
        let root = Path::new("/");
        let mut meter = Meter::open(ceiling, root)?;
        let reading = meter
            .read(Duration::ZERO)
            .map_err(|error| GuardError::Unreadable { path: root.join("proc/self"), error })?;
        if reading.used >= reading.ceiling {
            return Err(GuardError::TooLow { ceiling: reading.ceiling, used: reading.used });
        }
        if !running::begin() {
            return Err(GuardError::Running);
        }
        // Whoever asks before the thread has looked knows the ceiling.
        figures::note(reading);
        let shared = Arc::new(Shared::new());
        let watch = Watch::new(meter, policy, least, grace);
        let work = {
            let shared = Arc::clone(&shared);
            move || watch.run(&shared)
        };
        if !sys::spawn(work) {
            running::end();
            return Err(GuardError::NoThread);
        }
        let callbacks = callbacks.into_iter().map(pressure::register).collect();
        Ok(Guard { shared, process: std::process::id(), _callbacks: callbacks })
    }
}
