//! All counters of the process.
//!
//! Each thread counts in its own shard, so counting is plain loads and stores;
//! a reader adds the shards up. The allocator calls this module on every
//! allocation ([`thread`]) and everybody who asks for figures by the functions
//! below. What must hold: every block charged is refunded once, to the same
//! slot, by whichever thread frees it; and no sum is ever negative.

pub(crate) mod account;
#[cfg(not(dogtag_loom))]
pub(crate) mod anomalies;
pub(crate) mod budget;
pub(crate) mod cell;
#[cfg(not(any(feature = "memory-check", dogtag_loom)))]
pub(crate) mod charge;
mod event_flags;
pub(crate) mod family;
#[cfg_attr(
    not(all(feature = "profile", feature = "sampled-guard")),
    allow(dead_code, reason = "the profiler and the sampled guard are what samples")
)]
pub(crate) mod interval;
pub(crate) mod lifecycle;
#[cfg(not(dogtag_loom))]
pub(crate) mod named;
#[cfg(feature = "guard")]
pub(crate) mod nudge;
pub(crate) mod pending_events;
#[cfg(any(feature = "tracing-layer", all(test, dogtag_loom)))]
pub(crate) mod recall;
#[cfg_attr(
    not(all(feature = "profile", feature = "sampled-guard")),
    allow(dead_code, reason = "the profiler and the sampled guard are what samples")
)]
pub(crate) mod samples;
#[cfg(not(dogtag_loom))]
#[cfg_attr(
    not(all(feature = "profile", feature = "sampled-guard")),
    allow(dead_code, reason = "the profiler and the sampled guard are what samples")
)]
pub(crate) mod sampling;
pub(crate) mod shard;
pub(crate) mod slots;
#[cfg(not(dogtag_loom))]
pub(crate) mod thread;
pub(crate) mod threshold;
pub(crate) mod tree;

mod aggregate;
pub(crate) use aggregate::stacks;
pub use aggregate::{usage, usages};
#[cfg(all(feature = "report", target_os = "linux", not(dogtag_loom)))]
pub(crate) use aggregate::{usage_in, usages_between};
