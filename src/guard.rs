//! An end for services that take too much, before the process has to end (feature `guard`).
//!
//! A process that serves many tenants dies as a whole when one of them takes too much. So a service can
//! be [cancelled](crate::Service::cancel), by the program or by a
//! [budget](crate::ServiceBuilder::cancel_at): futures that wait on its behalf return an error and let
//! go of what they hold, and code that does not wait asks now and then. Nothing unwinds out of the
//! allocator, and nobody is ended who happens to allocate when another one is heavy.
//!
//! A [`Guard`] does that for the whole process: below its [`Ceiling`] it does nothing; on the way up it has
//! free pages given back, asks caches to shrink, and cancels the heaviest of the services that
//! [may be cancelled](crate::Service::set_cancellable).
//!
//! ```
//! # #[global_allocator]
//! # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//! use dogtag::{InServiceExt, Service, guard::Cancelled};
//!
//! async fn answer(query: u32) -> Result<String, Cancelled> {
//!     let service = Service::builder(format!("query-{query}")).cancel_at(1 << 30).register().unwrap();
//!     async { "42".to_owned() }.in_service(&service).or_cancelled().await
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! assert_eq!(runtime.block_on(answer(1))?, "42");
//! # Ok(())
//! # }
//! ```

mod builder;
mod ceiling;
mod cgroup;
mod error;
mod escalation;
mod figures;
#[cfg(test)]
mod fixture;
mod kept_file;
mod policy;
mod pressure;
mod running;
mod speed;
mod watch;

pub use crate::service::cancel::{CancelReason, Cancelled, check, fallible};
pub use crate::service::or_cancelled::{OrCancelled, UntilCancelled};
pub use builder::{Guard, GuardBuilder};
pub use ceiling::Ceiling;
pub use error::GuardError;
pub use figures::{Figures, figures};
pub use policy::{Candidate, Policy};
pub use pressure::{OnPressure, Pressure, on_pressure};
