//! What the stress tests do, with an owner table: the ledger is held against the truth while threads,
//! forks and random programs share pages.

#[macro_use]
#[path = "../child/mod.rs"]
mod child;
#[path = "../stress/churn.rs"]
mod churn;
#[path = "../common/mod.rs"]
mod common;
#[path = "../engine/mod.rs"]
mod engine;
#[path = "../stress/exactness.rs"]
mod exactness;
mod owners;
#[path = "../stress/processes.rs"]
mod processes;
#[path = "../stress/programs/mod.rs"]
mod programs;

use child::watch::{self, random};
use common::Unpadded;
use dogtag::{Dogtag, OwnerTable};

#[global_allocator]
static ALLOC: Dogtag<Unpadded, OwnerTable> = Dogtag::with_backend_and_owner_table(Unpadded);
