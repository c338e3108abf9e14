//! What is asked for when a service is registered.

use super::handle::Service;
use super::limits::Limits;

/// What a service is to be, beside its name.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) handle: Option<u32>,
    pub(super) parent: Option<Service>,
    pub(super) limits: Limits,
    /// With what priority a guard may cancel it.
    #[cfg(feature = "guard")]
    pub(super) priority: Option<i32>,
}
