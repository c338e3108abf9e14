//! Memory is refused, by the backend and by the system: what cannot be had is null or an error,
//! the program goes on, and the books are right.
//!
//! `DOGTAG_SEED` chooses the random programs; each run prints its own.
#![cfg(target_os = "linux")]

#[macro_use]
#[path = "../child/mod.rs"]
mod child;
#[path = "../engine/mod.rs"]
mod engine;

mod backend;
mod dropping;
mod events;
mod pools;
mod programs;
mod system;
mod tight;

use child::watch::random;
use dogtag::Dogtag;

#[global_allocator]
static ALLOC: Dogtag<backend::Faulty<'static>> = Dogtag::with_backend(backend::Faulty::UNBOOKED);
