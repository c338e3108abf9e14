//! Allocators that are not the global one, which is the system's here: so that nothing is counted,
//! or measured, but what the tests allocate by them.

#[macro_use]
#[path = "../child/mod.rs"]
mod child;
#[path = "../common/mod.rs"]
mod common;
#[path = "../engine/mod.rs"]
mod engine;

mod backends;
#[cfg(target_os = "linux")]
mod corruption;
mod footprint;
mod model;

use child::watch::random;
