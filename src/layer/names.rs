//! The services that spans name in a field.

use crate::events;
use crate::format::beginning;
use crate::service::{Service, check_name, gate, name_too_long};
use dashmap::DashMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tracing::field::{Field, Visit};

/// The field that names a service, and the services that were named.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) field: &'static str,
    pub(super) keeps_services: bool,
    /// Those that are kept, by their names.
    kept: DashMap<Box<str>, Service>,
    /// How many a rule has added to those that are kept: [`MOST_CHOSEN`](Self::MOST_CHOSEN) at most, but
    /// for threads that add one at the same time.
    chosen: AtomicUsize,
    /// Whether it was told that there are more.
    is_told: AtomicBool,
}

impl Names {
    /// So many services are kept that a rule has named, since nobody has written those names for it.
    const MOST_CHOSEN: usize = 4096;

    pub(super) fn new() -> Self {
        Self {
            field: "service",
            keeps_services: true,
            kept: DashMap::new(),
            chosen: AtomicUsize::new(0),
            is_told: AtomicBool::new(false),
        }
    }

    /// Returns the service of a name that a rule has chosen. There is none if it would be one too many to
    /// be kept.
    pub(super) fn chosen(&self, name: &str) -> Option<Service> {
        if !self.keeps_services {
            return self.service(name);
        }
        if let Some(known) = self.kept(name) {
            return Some(known);
        }
        if self.chosen.load(Ordering::Relaxed) >= Self::MOST_CHOSEN {
            if !self.is_told.swap(true, Ordering::Relaxed) {
                events::rule_names_too_many(name, Self::MOST_CHOSEN, Service::MAX_NAME_LEN);
            }
            return None;
        }
        let service = self.service(name)?;
        self.chosen.fetch_add(1, Ordering::Relaxed);
        Some(service)
    }

    /// Returns the service that a span's fields name.
    pub(super) fn named(&self, record: impl FnOnce(&mut Named<'_>)) -> Option<Service> {
        let mut named = Named { names: self, service: None };
        record(&mut named);
        named.service
    }

    /// Returns the service of that name, registered if there is none.
    pub(super) fn service(&self, name: &str) -> Option<Service> {
        if let Err(error) = check_name(name) {
            events::span_without_service(name, Service::MAX_NAME_LEN, &error);
            return None;
        }
        if let Some(known) = self.kept(name) {
            return Some(known);
        }
        let service = match Service::register(name) {
            Ok(service) => service,
            Err(error) => {
                events::span_without_service(name, Service::MAX_NAME_LEN, &error);
                return None;
            }
        };
        if self.keeps_services {
            let clone = service.clone();
            let former = {
                let _gate = gate();
                self.kept.insert(name.into(), clone)
            };
            // Dropped without the gate: it may be the last of a cancelled one.
            drop(former);
        }
        Some(service)
    }

    /// Of a name that may be too long.
    fn service_of(&self, name: &Formatted) -> Option<Service> {
        if name.len > name.text.len() {
            events::span_without_service(
                &name.text,
                Service::MAX_NAME_LEN,
                &name_too_long(&name.text, name.len),
            );
            return None;
        }
        self.service(&name.text)
    }

    fn kept(&self, name: &str) -> Option<Service> {
        if !self.keeps_services {
            return None;
        }
        let _gate = gate();
        let known = self.kept.get(name)?;
        // Another one has the name of a cancelled one, or gets it now.
        (!known.record().family().is_cancelled()).then(|| known.clone())
    }
}

/// A value as text: the beginning, as far as it may be a name, and how long all of it is.
#[derive(Default)]
struct Formatted {
    text: String,
    len: usize,
}

impl fmt::Write for Formatted {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        // What comes behind something that was cut is left out, too.
        if self.len == self.text.len() {
            self.text.push_str(beginning(more, Service::MAX_NAME_LEN - self.text.len()));
        }
        self.len = self.len.saturating_add(more.len());
        Ok(())
    }
}

/// Looks for the field that names a service.
pub(super) struct Named<'a> {
    names: &'a Names,
    service: Option<Service>,
}

impl Visit for Named<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.names.field {
            self.service = self.names.service(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.names.field {
            let mut name = Formatted::default();
            // Fails where the value's own formatting does.
            if write!(name, "{value:?}").is_ok() {
                self.service = self.names.service_of(&name);
            }
        }
    }
}
