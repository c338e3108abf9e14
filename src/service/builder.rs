//! The builder of services.

use super::error::RegisterError;
use super::handle::Service;
use super::plan::Plan;
use super::register::register;
use crate::contained::drop_contained;
use std::sync::Arc;

impl Service {
    /// Returns the living service of that name, as it is, or registers a new one with an assigned
    /// handle.
    ///
    /// It takes a lock and allocates, so register once and keep the service. The registry's own
    /// memory is charged to the unattributed service. Registering and dropping a service each read a
    /// cell for each thread.
    ///
    /// # Errors
    ///
    /// [`RegisterError::NoName`], [`RegisterError::NameTooLong`] (longer than
    /// [`MAX_NAME_LEN`](Self::MAX_NAME_LEN)), [`RegisterError::Full`] and
    /// [`RegisterError::NoMemory`].
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let auth = Service::register("auth")?;
    /// assert_eq!(Service::register("auth")?, auth);
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn register(name: impl AsRef<str>) -> Result<Self, RegisterError> {
        Self::builder(name).register()
    }

    /// Begins to register a service with a chosen handle, a parent, or limits.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let launcher = Service::builder("launcher").handle(0x0100_0008).register()?;
    /// assert_eq!(launcher.handle(), 0x0100_0008);
    /// assert_eq!(Service::by_handle(0x0100_0008), Some(launcher));
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn builder<N: AsRef<str>>(name: N) -> ServiceBuilder<N> {
        ServiceBuilder::new(name)
    }
}

/// Registers a service with a chosen handle, a parent, or limits: [`Service::builder`].
///
/// ```
/// use dogtag::Service;
///
/// let tenant = Service::register("tenant")?;
/// let query = Service::builder("query-17").parent(&tenant).hard_limit(64 << 20).register()?;
/// assert_eq!((query.parent(), query.hard_limit()), (Some(tenant), Some(64 << 20)));
/// # Ok::<(), dogtag::RegisterError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is registered before `register`"]
pub struct ServiceBuilder<N> {
    name: N,
    plan: Plan,
}

impl<N: AsRef<str>> ServiceBuilder<N> {
    fn new(name: N) -> Self {
        Self { name, plan: Plan::default() }
    }

    /// Chooses the handle: any number that is not in use. 0 is the unattributed
    /// service's. Services without a choice are assigned numbers from 0x80000000 upwards.
    pub fn handle(mut self, handle: u32) -> Self {
        self.plan.handle = Some(handle);
        self
    }

    /// Makes the service a child of another one.
    ///
    /// The child's [`usage`](Service::usage) is its own. The parent's
    /// [`usage_with_children`](Service::usage_with_children) includes it, and the parent's limits hold
    /// for both together. The parent lives as long as its
    /// children, and they as long as their blocks; until then its name is taken, and finds it.
    ///
    /// A family may be of any depth. An allocation under limits checks those of all ancestors on the
    /// slow path.
    pub fn parent(mut self, parent: &Service) -> Self {
        self.plan.parent = Some(parent.clone());
        self
    }

    /// Sets the [hard limit](Service::set_hard_limit), in bytes.
    pub fn hard_limit(mut self, bytes: u64) -> Self {
        self.plan.limits.hard = Some(bytes);
        self
    }

    /// Sets the [soft limit](Service::set_soft_limit), in bytes.
    pub fn soft_limit(mut self, bytes: u64) -> Self {
        self.plan.limits.soft = Some(bytes);
        self
    }

    /// Sets the budget: the bytes beyond which the service and its descendants are
    /// [cancelled](Service::cancel); see [`Service::set_cancel_at`].
    #[cfg(feature = "guard")]
    pub fn cancel_at(mut self, bytes: u64) -> Self {
        self.plan.limits.cancel = Some(bytes);
        self
    }

    /// Lets a [`Guard`](crate::guard::Guard) cancel the service, with that priority; see
    /// [`Service::set_cancellable`].
    #[cfg(feature = "guard")]
    pub fn cancellable(mut self, priority: i32) -> Self {
        self.plan.priority = Some(priority);
        self
    }

    /// Sets the callback for each time that the service and its descendants get past their
    /// [soft limit](Service::set_soft_limit). [`Service::set_on_soft_limit`] says how it is called.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// let (tell, told) = std::sync::mpsc::channel();
    /// let tell = std::sync::Mutex::new(tell);
    /// let cache = dogtag::Service::builder("cache")
    ///     .soft_limit(1 << 20)
    ///     .on_soft_limit(move |service| tell.lock().unwrap().send(service.name().to_owned()).unwrap())
    ///     .register()?;
    /// let entries = cache.run(|| vec![0_u8; 2 << 20]);
    /// assert_eq!(told.recv().unwrap(), "cache");
    /// # drop(entries);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_soft_limit(mut self, callback: impl Fn(&Service) + Send + Sync + 'static) -> Self {
        self.plan.limits.on_soft = Some(Arc::new(callback));
        self
    }

    /// Registers the service, or returns the one that has this name already.
    ///
    /// A living service's handle, parent and limits never change here: what is asked for and differs
    /// from what it has is an error, and what is not asked for may be anything. To change limits, there
    /// are [`set_hard_limit`](Service::set_hard_limit) and [`set_soft_limit`](Service::set_soft_limit). A
    /// callback cannot be compared, and takes the former one's place, as with
    /// [`set_on_soft_limit`](Service::set_on_soft_limit), and so does a priority: so code that registers a service, drops it and
    /// registers it again may do so while somebody else still has it.
    ///
    /// # Errors
    ///
    /// [`RegisterError::NoName`] and [`RegisterError::NameTooLong`] if there can be no such
    /// name, [`RegisterError::NameTaken`] if the name is registered with another
    /// handle than the chosen one, [`RegisterError::HandleTaken`] if the handle
    /// is registered with another name, [`RegisterError::OtherParent`] if the name
    /// is registered with another parent than the chosen one,
    /// [`RegisterError::OtherLimits`] if it is with other limits than the chosen ones,
    /// [`RegisterError::Full`] and [`RegisterError::NoMemory`]. Nothing has
    /// changed then.
    ///
    /// ```
    /// use dogtag::{RegisterError, Service};
    ///
    /// let gate = Service::builder("gate").handle(7).register()?;
    /// let error = Service::builder("watchdog").handle(7).register().unwrap_err();
    /// assert!(matches!(error, RegisterError::HandleTaken { handle: 7, .. }));
    ///
    /// gate.set_hard_limit(Some(1 << 20));
    /// assert_eq!(Service::builder("gate").hard_limit(1 << 20).register()?, gate);
    /// let error = Service::builder("gate").hard_limit(1 << 30).register().unwrap_err();
    /// assert!(matches!(error, RegisterError::OtherLimits { hard_limit: Some(0x10_0000), .. }));
    /// # Ok::<(), RegisterError>(())
    /// ```
    pub fn register(self) -> Result<Service, RegisterError> {
        let registered = register(self.name.as_ref(), &self.plan);
        // Where there is no service, nobody has the callback.
        drop_contained(self.plan.limits.on_soft);
        registered
    }
}
