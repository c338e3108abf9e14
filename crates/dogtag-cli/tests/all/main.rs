//! The program `dogtag`, run as people run it.

mod check;
mod place;
mod report;
mod run;
mod top;
#[path = "../../../../tests/watch/mod.rs"]
mod watch;
