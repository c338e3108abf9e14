//! Services: whoever memory is accounted to, and how code runs on their behalf.
//!
//! Users call these; the allocator never does. Registering may lock and
//! allocate (the registry has hash tables). Entering a service does neither.
//!
//! From the ground up: `error`, `scope`, `spare_slots`, `slot_table`, `chosen_or_assigned`,
//! `assigned_handles`, `registry` (names and handles), `fork`, `retirement`, `thread_names`,
//! `handle` ([`Service`]), `family`, `future`, `wrap`,
//! `cancellations`, `waiters`, `cancel`, `or_cancelled`, `cancellable`, `limits`, `plan`, `register`,
//! `builder`.

mod assigned_handles;
mod builder;
#[cfg(feature = "guard")]
pub(crate) mod cancel;
#[cfg(feature = "guard")]
pub(crate) mod cancellable;
#[cfg(feature = "guard")]
pub(crate) mod cancellations;
mod chosen_or_assigned;
mod error;
mod family;
mod fork;
mod future;
mod handle;
mod limits;
#[cfg(feature = "guard")]
pub(crate) mod or_cancelled;
mod plan;
mod register;
mod registry;
mod retirement;
mod scope;
mod slot_table;
mod spare_slots;
#[cfg(all(test, not(dogtag_loom)))]
mod tests;
mod thread_names;
#[cfg(feature = "guard")]
mod waiters;
mod wrap;

pub use builder::ServiceBuilder;
pub use error::RegisterError;
pub use future::{InService, InServiceExt};
pub use handle::Service;
pub use scope::Scope;
pub use thread_names::services_by_name;

#[cfg(feature = "tracing-layer")]
pub(crate) use error::{check_name, name_too_long};
pub use fork::gate;
pub use limits::is_limited;
pub(crate) use limits::limits;
pub(crate) use retirement::end_retired;
pub(crate) use thread_names::publish;
