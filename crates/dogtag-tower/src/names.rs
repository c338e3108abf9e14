//! The services that requests have named.

use dogtag::__private::service::is_cancelled;
use dogtag::{RegisterError, Service};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

/// Bounds how many names of requests become services of their own.
///
/// Whoever may send a request may choose a path. The first 1000 names become services, or
/// [as many as you choose](Self::most), and stay as long as the layer. All that come later, and
/// names that are longer than [`Service::MAX_NAME_LEN`], share one service, `(other requests)` or
/// [as you name it](Self::rest). A `tracing` event (target `dogtag`, level warn) reports the first of them.
///
/// ```
/// use dogtag_tower::{AttributionLayer, Names};
///
/// let layer = AttributionLayer::by_path_segment(0).names(Names::new().most(50).rest("other pages"));
/// # drop(layer);
/// ```
#[derive(Clone, Debug)]
pub struct Names {
    most: usize,
    rest: Cow<'static, str>,
}

impl Names {
    /// Makes the default: 1000 names, and `(other requests)` for the rest.
    #[must_use]
    pub fn new() -> Self {
        Self { most: 1000, rest: "(other requests)".into() }
    }

    /// Sets how many names become services of their own. With 0 all requests share one.
    #[must_use]
    pub fn most(mut self, number: usize) -> Self {
        self.most = number;
        self
    }

    /// Sets the name of the service that runs the rest. Without a name the rest runs where its callers are.
    #[must_use]
    pub fn rest(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.rest = name.into();
        self
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
pub(crate) struct Known {
    names: Names,
    services: RwLock<HashMap<Box<str>, Service>>,
    rest: OnceLock<Option<Service>>,
    has_told: AtomicBool,
}

/// Why a name has no service of its own.
enum Refused {
    TooMany,
    Unregistered(RegisterError),
}

impl Known {
    pub(crate) fn new(names: Names) -> Self {
        Self { names, services: RwLock::default(), rest: OnceLock::new(), has_told: AtomicBool::new(false) }
    }

    /// Returns the service of that name, or that of the rest. An empty name has none.
    pub(crate) fn service(&self, name: &str) -> Option<Service> {
        if name.is_empty() {
            return None;
        }
        // Another one has the name of a cancelled one, or gets it now.
        if let Some(known) = self.services.read().unwrap_or_else(PoisonError::into_inner).get(name)
            && !is_cancelled(known)
        {
            return Some(known.clone());
        }
        match self.register(name) {
            Ok(service) => Some(service),
            Err(refused) => {
                let rest = self.rest.get_or_init(|| Service::register(&self.names.rest).ok());
                self.tell(&refused);
                rest.clone()
            }
        }
    }

    fn register(&self, name: &str) -> Result<Service, Refused> {
        // Neither takes a lock that all requests want.
        if name.len() > Service::MAX_NAME_LEN {
            return Service::register(name).map_err(Refused::Unregistered);
        }
        let is_full =
            |services: &HashMap<_, _>| services.len() >= self.names.most && !services.contains_key(name);
        if is_full(&self.services.read().unwrap_or_else(PoisonError::into_inner)) {
            return Err(Refused::TooMany);
        }
        let service = Service::register(name).map_err(Refused::Unregistered)?;
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        if is_full(&services) {
            return Err(Refused::TooMany);
        }
        let former = services.insert(name.into(), service.clone());
        drop(services);
        // It may be the last of a cancelled one.
        drop(former);
        Ok(service)
    }

    /// Reports, once, that there are names without a service. Not the name: it is a stranger's.
    fn tell(&self, refused: &Refused) {
        if self.has_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let (most, rest) = (self.names.most, &*self.names.rest);
        match refused {
            Refused::TooMany => tracing::warn!(
                target: "dogtag",
                most,
                service = rest,
                "requests have more names than may become services: the rest shares one",
            ),
            Refused::Unregistered(error) => tracing::warn!(
                target: "dogtag",
                error = error as &(dyn std::error::Error + 'static),
                service = rest,
                "requests have names that cannot be registered as services: they share one",
            ),
        }
    }
}
