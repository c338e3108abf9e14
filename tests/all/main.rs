//! What each part of the crate promises, under the default global allocator; a module for each part.
//! Tests run side by side in one process, and look at nobody's figures but their own services';
//! those that need more begin with `alone!()`.

#[macro_use]
#[path = "../child/mod.rs"]
mod child;
#[path = "../common/mod.rs"]
mod common;

mod allocator;
mod balance;
#[cfg(feature = "guard")]
mod cancel_races;
#[cfg(feature = "guard")]
mod cancelled_figures;
#[cfg(feature = "guard")]
mod cancelling;
#[cfg(feature = "memory-check")]
mod check;
mod events;
mod example;
mod families;
mod formats;
mod futures;
mod handing_on;
mod handles;
#[cfg(feature = "tracing-layer")]
mod layer;
mod lifecycle;
mod limits;
#[cfg(feature = "guard")]
mod or_cancelled;
mod panics;
mod real_programs;
#[cfg(all(feature = "sampled-guard", not(feature = "memory-check"), target_os = "linux"))]
mod sampled_guard;
mod services;
mod shrinking;
mod thread_life;
mod thread_pools;
#[cfg(not(feature = "memory-check"))]
mod tripwire;
#[cfg(feature = "profile")]
mod unwind;
mod zeroed;

use child::watch::{self, random};
use dogtag::Dogtag;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();
