//! Everything at once: random programs, threads, signals and forks, under a backend that keeps books
//! of its own, against which the ledger is held. Each is alone in its process.
//!
//! `DOGTAG_EFFORT` sets for how long, `DOGTAG_SEED` what happens.

#[macro_use]
#[path = "../child/mod.rs"]
mod child;
#[path = "../common/mod.rs"]
mod common;
#[path = "../engine/mod.rs"]
mod engine;

mod churn;
mod exactness;
mod hard_limit;
mod processes;
#[cfg(feature = "profile")]
mod profiles;
mod programs;
#[cfg(all(target_os = "linux", feature = "tracing-layer"))]
mod safe;
mod signals;
mod soak;

use child::watch::{self, random};
use common::ZeroSized;
use dogtag::Dogtag;

#[global_allocator]
static ALLOC: Dogtag<ZeroSized> = Dogtag::with_backend(ZeroSized);

/// Has a panic end it all, where others would wait for whoever has panicked.
fn abort_after_a_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
}
