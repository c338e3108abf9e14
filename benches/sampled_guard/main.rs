//! What the sampled guard catches of a million violations, and what it costs real programs.
//!
//! `cargo bench --features sampled-guard --bench sampled_guard [-- crimes [NUMBER] | cost [ROUNDS [WORKLOAD ...]]]`
//!
//! `crimes` commits so many violations, a quarter of each of four kinds, at a rate of one in 1,000. It fails if one of
//! a guarded block is not caught, if anything is reported that was not committed, if a report is wrong anywhere, or
//! if the share is not the rate within five standard errors.
//!
//! `cost` runs the programs of the bench `overhead` without the feature, with it, and with the guard on. Every
//! measurement is a fresh process; the contestants take turns within a round.

#[path = "../programs/builder.rs"]
mod builder;
mod cost;
mod crimes;
#[path = "../programs/settings.rs"]
mod settings;

use dogtag::Dogtag;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fn main() {
    if let Ok(task) = std::env::var("DOGTAG_CRIMES_TASK") {
        return crimes::commit_all(&task);
    }
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    let number = arguments.iter().find_map(|it| it.parse().ok());
    let part = arguments.first().map(String::as_str).filter(|it| it.parse::<u64>().is_err());
    match part {
        None => {
            let is_well = crimes::measure(1_000_000);
            cost::measure(11, &[]);
            assert!(is_well, "a promise is broken");
        }
        Some("crimes") => assert!(crimes::measure(number.unwrap_or(1_000_000)), "a promise is broken"),
        Some("cost") => cost::measure(number.map_or(11, |number| number as usize), &arguments[1..]),
        Some(other) => builder::fail(&format!("{other:?} is no part: crimes, cost")),
    }
}
