//! What dogtag's other crates use of its inside. Hidden, and exempt from semver: they depend on
//! exactly this version.

// For dogtag-pool: cleanups that panic, and limits that may deny memory.
#[cfg(not(dogtag_loom))]
pub use crate::{
    contained::{Payload, call, discard},
    service::is_limited,
};
