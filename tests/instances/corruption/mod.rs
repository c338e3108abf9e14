//! A program that writes where it must not: near its own blocks, anywhere, of any length and
//! content. dogtag goes on, and writes nowhere but into its own bytes; and of the ledger
//! nothing changes but what the bytes that were found say.
//!
//! What they say can be foretold to the byte. Without memory-check a cookie that was changed to
//! another living service's is that one's: its figures have a free too many. One that
//! is nobody's is counted as lost. All other figures stay exact. With memory-check each
//! change of a guard is reported, once, and the figures are those of a program without one.

#[cfg(feature = "memory-check")]
mod checked;
mod field;
#[cfg(not(feature = "memory-check"))]
mod plain;

use crate::random::times;

#[cfg(not(feature = "memory-check"))]
#[test]
fn what_a_cookie_says_is_all_that_changes() {
    alone!();
    plain::run(plain::FEW, times(30_000));
}

/// Then cookies of blocks differ in length, and nearly all that can be written is somebody's.
#[cfg(not(feature = "memory-check"))]
#[test]
fn among_more_services_than_short_cookies_too() {
    alone!();
    plain::run(plain::MANY, times(7_500));
}

#[cfg(feature = "memory-check")]
#[test]
fn every_change_of_a_guard_is_told() {
    alone!("quarantine-blocks=128");
    checked::run(times(30_000));
}
