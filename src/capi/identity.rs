//! Whom a thread allocates for where it is in no scope, if somebody else knows: the host
//! whose handle is current, or the thread's name.

#[cfg(feature = "skynet")]
use super::skynet;
#[cfg(feature = "interpose")]
use super::tool;

/// Has the thread follow the host to another service. Before every allocation.
#[inline(always)]
pub(super) fn refresh() {
    #[cfg(feature = "skynet")]
    skynet::follow_host();
}

/// Has the thread go to the service with its name. Whenever an allocation leaves the
/// hot path; with memory-check, before every one.
#[inline]
pub(super) fn refresh_name() {
    #[cfg(feature = "interpose")]
    tool::follow_name();
}
