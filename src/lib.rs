//! doc

#![deny(missing_docs)]
#![cfg_attr(dogtag_loom, allow(dead_code))]

#[cfg(not(dogtag_loom))]
mod allocator;
mod backend;
mod cookie;
mod ledger;
#[cfg(not(dogtag_loom))]
mod service;
#[cfg(not(dogtag_loom))]
mod snapshot;
mod sync;
mod sys;
mod usage;

#[cfg(feature = "jemalloc")]
pub use backend::Jemalloc;
pub use backend::JemallocStats;
pub use usage::Usage;
#[cfg(not(dogtag_loom))]
pub use {
    allocator::Dogtag,
    service::{InService, InServiceExt, RegisterError, Scope, Service, ServiceBuilder},
    snapshot::{Lost, Row, Snapshot, snapshot, totals},
};
