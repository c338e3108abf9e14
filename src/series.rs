//! The figures that exporters show: one set, under one name each, whichever system they are for.
//!
//! An exporter takes a [`Reading`], and for each of the [`METRICS`] its [samples](Reading::samples).

mod names;

pub use names::Names;

use crate::balance::{Balance, BalanceLine, balance};
use crate::service::Service;
use crate::snapshot::{Row, Snapshot, snapshot};
use crate::usage::Usage;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

/// A figure of each service, or of the process.
#[derive(Debug)]
pub struct Metric {
    /// Without what systems put around it: `live_blocks`.
    name: &'static str,
    /// What it is, in one sentence that needs no escapes.
    pub help: &'static str,
    /// How it changes.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    source: Source,
}

/// How a metric changes, and whether it adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down, and adds up over services.
    Sum,
    /// Goes up and down; sums of it mean nothing.
    Gauge,
    /// Only grows.
    Counter,
}

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Blocks.
    Blocks,
    /// Calls of the allocator.
    Allocations,
    /// Services.
    Services,
    /// What happens, or is done.
    Events,
    /// Seconds: the samples are in nanoseconds, and to be shown as [`Sample::seconds`].
    Seconds,
}

/// What tells the samples of a metric apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// A service's name, or what several are summed as.
    Service,
    /// A line of the balance.
    Part,
    /// Who cancelled services.
    By,
}

#[derive(Debug)]
enum Source {
    /// Of each service; also where it is of several in sum.
    Live(fn(&Usage) -> u64),
    /// Of each living service.
    Service(fn(&Usage) -> u64),
    Limit(fn(&Row) -> Option<u64>),
    Totals(fn(&Usage) -> u64),
    Process(fn(&Snapshot) -> u64),
    Resident,
    Balance,
    /// Of the process, where there is such a thing.
    Optional(fn(&Snapshot) -> Option<u64>),
    CancelledBy,
}

use Kind::{Counter, Gauge, Sum};
use Unit::{Allocations, Blocks, Bytes, Events, Seconds, Services};

const fn metric(name: &'static str, kind: Kind, unit: Unit, source: Source, help: &'static str) -> Metric {
    Metric { name, help, kind, unit, source }
}

/// A figure of the guard's, once there has been one.
macro_rules! of_guard {
    ($field:ident) => {
        |snapshot| {
            #[cfg(feature = "guard")]
            return snapshot.guard.map(|guard| guard.$field);
            #[cfg(not(feature = "guard"))]
            (|_: &Snapshot| None)(snapshot)
        }
    };
}

/// A figure of the sampled guard's, once it was started.
macro_rules! of_sampled_guard {
    ($field:ident) => {
        |snapshot| {
            #[cfg(feature = "sampled-guard")]
            return snapshot.sampled_guard.map(|guard| guard.$field);
            #[cfg(not(feature = "sampled-guard"))]
            (|_: &Snapshot| None)(snapshot)
        }
    };
}

/// All that exporters show, in the order of the table in the guide.
#[rustfmt::skip]
pub static METRICS: [Metric; 46] = [
    metric("live", Sum, Bytes, Source::Live(|usage| usage.bytes()), "Bytes that were requested and not freed, of each service"),
    metric("live_blocks", Sum, Blocks, Source::Live(|usage| usage.blocks()), "Blocks that were allocated and not freed, of each service"),
    metric("allocated", Counter, Bytes, Source::Service(|usage| usage.allocated_bytes), "Bytes that were allocated so far, of each service"),
    metric("allocated_blocks", Counter, Blocks, Source::Service(|usage| usage.allocated_blocks), "Blocks that were allocated so far, of each service"),
    metric("freed", Counter, Bytes, Source::Service(|usage| usage.freed_bytes), "Bytes that were freed so far, by whomever, of each service"),
    metric("freed_blocks", Counter, Blocks, Source::Service(|usage| usage.freed_blocks), "Blocks that were freed so far, by whomever, of each service"),
    metric("peak", Gauge, Bytes, Source::Service(|usage| usage.peak_bytes), "The most bytes that were live at once, of each service"),
    metric("denied_allocations", Counter, Allocations, Source::Service(|usage| usage.denied), "Allocations that a hard limit has denied, of each service"),
    metric("hard_limit", Gauge, Bytes, Source::Limit(|row| row.hard_limit), "The most bytes that a service and those below it may hold"),
    metric("soft_limit", Gauge, Bytes, Source::Limit(|row| row.soft_limit), "The bytes past which an event tells what a service and those below it hold"),
    metric("live_with_children", Gauge, Bytes, Source::Limit(|row| row.hard_limit.or(row.soft_limit).map(|_| row.usage_with_children.bytes())), "Bytes that a service with limits and those below it hold, which is what its limits bound"),
    metric("live", Sum, Bytes, Source::Totals(|usage| usage.bytes()), "Bytes that were requested and not freed, of the process"),
    metric("live_blocks", Sum, Blocks, Source::Totals(|usage| usage.blocks()), "Blocks that were allocated and not freed, of the process"),
    metric("allocated", Counter, Bytes, Source::Totals(|usage| usage.allocated_bytes), "Bytes that were allocated so far, of the process"),
    metric("allocated_blocks", Counter, Blocks, Source::Totals(|usage| usage.allocated_blocks), "Blocks that were allocated so far, of the process"),
    metric("freed", Counter, Bytes, Source::Totals(|usage| usage.freed_bytes), "Bytes that were freed so far, of the process"),
    metric("freed_blocks", Counter, Blocks, Source::Totals(|usage| usage.freed_blocks), "Blocks that were freed so far, of the process"),
    metric("peak", Gauge, Bytes, Source::Totals(|usage| usage.peak_bytes), "The most bytes that were live at once, of the process"),
    metric("denied_allocations", Counter, Allocations, Source::Totals(|usage| usage.denied), "Allocations that a hard limit has denied, of the process"),
    metric("services", Sum, Services, Source::Process(|snapshot| snapshot.rows.len() as u64), "Services that live, or have left blocks behind"),
    metric("lost_blocks", Counter, Blocks, Source::Process(|snapshot| snapshot.lost.blocks), "Blocks that were freed with an overwritten owner, so that nobody was refunded"),
    metric("resident", Sum, Bytes, Source::Resident, "Physical memory of the process (RSS)"),
    metric("balance", Sum, Bytes, Source::Balance, "Where the physical memory of the process is; the parts add up to what is resident"),
    metric("cancelled_services", Counter, Services, Source::CancelledBy, "Services that were cancelled: by the program, by their budgets, by the guard"),
    metric("refused_allocations", Counter, Allocations, Source::Optional(|snapshot| Some(snapshot.cancellations?.refused)), "Allocations of cancelled services that failed, since their callers can do without"),
    metric("unreleased_services", Sum, Services, Source::Optional(|snapshot| Some(snapshot.cancellations?.holding)), "Cancelled services that hold something still"),
    metric("unreleased", Sum, Bytes, Source::Optional(|snapshot| Some(snapshot.cancellations?.holding_bytes)), "Bytes that cancelled services and those below them hold still"),
    metric("last_release", Gauge, Seconds, Source::Optional(|snapshot| nanos(snapshot.cancellations?.last_release)), "How long the last cancelled service that let go of everything took for it"),
    metric("longest_release", Gauge, Seconds, Source::Optional(|snapshot| nanos(snapshot.cancellations?.longest_release)), "How long the slowest cancelled service that let go of everything took for it"),
    metric("guard_ceiling", Gauge, Bytes, Source::Optional(of_guard!(ceiling)), "The bytes that the process may use before the guard cancels a service"),
    metric("guard_used", Gauge, Bytes, Source::Optional(of_guard!(used)), "The bytes that counted against the ceiling when the guard looked last"),
    metric("guard_highest_over", Gauge, Bytes, Source::Optional(of_guard!(highest_over)), "The most bytes by which the ceiling was ever seen passed"),
    metric("guard_polls", Counter, Events, Source::Optional(of_guard!(polls)), "Looks of the guard at what is used"),
    metric("guard_failed_polls", Counter, Events, Source::Optional(of_guard!(failed_polls)), "Looks of the guard that failed, since a file could not be read"),
    metric("guard_purges", Counter, Events, Source::Optional(of_guard!(purges)), "Times that the guard made the allocator give its free pages back"),
    metric("guard_purged", Counter, Bytes, Source::Optional(of_guard!(purged_bytes)), "Bytes that were given back by that"),
    metric("guard_pressure_calls", Counter, Events, Source::Optional(of_guard!(pressure_calls)), "Times that the guard asked caches to let go of what they can do without"),
    metric("guard_unresponsive_services", Counter, Services, Source::Optional(of_guard!(unresponsive)), "Services that the guard cancelled and that did not let go in time"),
    metric("guard_helpless", Counter, Events, Source::Optional(of_guard!(helpless)), "Times that the ceiling was passed and no service could be cancelled"),
    metric("sampled_guard_slots", Sum, Blocks, Source::Optional(of_sampled_guard!(slots)), "Blocks that the sampled guard can have at once"),
    metric("sampled_guard_retired_slots", Sum, Blocks, Source::Optional(of_sampled_guard!(retired)), "Of those, slots that are not used again since a violation was let through"),
    metric("sampled_guard_guarded_blocks", Sum, Blocks, Source::Optional(of_sampled_guard!(guarded)), "Live blocks that are guarded"),
    metric("sampled_guard_blocks", Counter, Blocks, Source::Optional(of_sampled_guard!(ever)), "Blocks that were guarded so far"),
    metric("sampled_guard_refused_blocks", Counter, Blocks, Source::Optional(of_sampled_guard!(refused)), "Blocks that were to be guarded and for which there was no slot"),
    metric("sampled_guard_throttled_blocks", Counter, Blocks, Source::Optional(of_sampled_guard!(throttled)), "Blocks that were to be guarded when as many had been as may be in a second"),
    metric("sampled_guard_violations", Counter, Events, Source::Optional(of_sampled_guard!(caught)), "Accesses to freed memory or past the end of a block, and wrong frees, that the sampled guard has caught"),
];

fn nanos(time: Option<Duration>) -> Option<u64> {
    time.map(|time| time.as_nanos().try_into().unwrap_or(u64::MAX))
}

impl Metric {
    /// The name in Prometheus without what a library for OpenMetrics appends by itself:
    /// `dogtag_service_live`.
    #[must_use]
    pub fn base_name(&self) -> String {
        let service = if self.label() == Some(Label::Service) { "service_" } else { "" };
        format!("dogtag_{service}{}", self.name)
    }

    /// The whole name in Prometheus: `dogtag_service_live_bytes`.
    #[must_use]
    pub fn full_name(&self) -> String {
        let unit = match self.unit {
            Bytes => "_bytes",
            Seconds => "_seconds",
            _ => "",
        };
        let total = if self.kind == Counter { "_total" } else { "" };
        format!("{}{unit}{total}", self.base_name())
    }

    /// The name in OpenTelemetry, which becomes the [`full_name`](Self::full_name) in Prometheus.
    #[must_use]
    pub fn dotted_name(&self) -> String {
        let service = if self.label() == Some(Label::Service) { "service." } else { "" };
        format!("dogtag.{service}{}", self.name)
    }

    /// What tells its samples apart: nothing, if it is of the process.
    #[must_use]
    pub fn label(&self) -> Option<Label> {
        match self.source {
            Source::Live(_) | Source::Service(_) | Source::Limit(_) => Some(Label::Service),
            Source::Balance => Some(Label::Part),
            Source::CancelledBy => Some(Label::By),
            Source::Totals(_) | Source::Process(_) | Source::Resident | Source::Optional(_) => None,
        }
    }
}

/// All figures at one moment.
#[derive(Debug)]
pub struct Reading {
    snapshot: Snapshot,
    balance: Balance,
    lines: Vec<BalanceLine>,
    services: Vec<Series>,
}

/// The values with one label: those of a service, or the sum of several.
#[derive(Debug)]
struct Series {
    label: String,
    usage: Usage,
    /// The row of the service, if it is one living service. Only then do counters never fall.
    living: Option<usize>,
}

/// One value of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// Empty where the metric has no label.
    pub label: &'a str,
    /// Negative in lines of the balance only.
    pub value: i64,
}

impl Sample<'_> {
    /// The value of a metric in [seconds](Unit::Seconds).
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.value as f64 / 1e9
    }
}

impl Reading {
    /// Reads the figures. The services that hold the most, so many, have series of their own; the others
    /// are summed as `(other)`. What this allocates is unattributed.
    #[must_use]
    pub fn take(most_services: usize) -> Self {
        Self::take_admitted(most_services, |_| true)
    }

    /// Reads the figures. Of the services whose labels are admitted, those that hold the most, so many, have series of
    /// their own.
    #[must_use]
    pub fn take_admitted(most_services: usize, admits: impl FnMut(&str) -> bool) -> Self {
        Self::take_chosen(|rows| choose(rows, most_services, admits))
    }

    /// Reads the figures. The services that hold the most, so many, have series of their own, as far as there are
    /// at most so many names of late.
    #[must_use]
    pub fn take_named(most_services: usize, most_names: usize, names: &Names) -> Self {
        // Not locked while the snapshot tells callbacks what happened, which may be exporters themselves.
        Self::take_chosen(|rows| {
            let (mut shown, now) = (names.lock(), Instant::now());
            shown.forget(now);
            choose(rows, most_services, |name| shown.admit(name, most_names, now))
        })
    }

    fn take_chosen(choose: impl FnOnce(&[Row]) -> Vec<Series>) -> Self {
        let unattributed = Service::unattributed();
        let _scope = unattributed.enter();
        let snapshot = snapshot();
        let balance = balance();
        Self { services: choose(&snapshot.rows), lines: balance.lines(), balance, snapshot }
    }

    /// The names of all services that live, whether they have a series or not.
    pub fn living(&self) -> impl Iterator<Item = &str> {
        self.snapshot.rows.iter().filter(|row| is_living(row)).map(|row| &*row.name)
    }

    /// The values of one metric. No two have the same label.
    pub fn samples<'a>(&'a self, metric: &'a Metric) -> impl Iterator<Item = Sample<'a>> {
        let resident = self.balance.resident;
        let single = match metric.source {
            Source::Totals(value) => Some(value(&self.snapshot.totals)),
            Source::Process(value) => Some(value(&self.snapshot)),
            Source::Resident => resident,
            Source::Optional(value) => value(&self.snapshot),
            _ => None,
        };
        let by = self.snapshot.cancellations.filter(|_| matches!(metric.source, Source::CancelledBy));
        let by = by.into_iter().flat_map(|counts| {
            [("program", counts.by_program), ("budget", counts.by_budget), ("guard", counts.by_guard)]
        });
        let is_balance = matches!(metric.source, Source::Balance) && resident.is_some();
        let lines = if is_balance { &*self.lines } else { &[] };
        let services = self.services.iter().filter_map(|series| {
            let living = series.living.map(|row| &self.snapshot.rows[row]);
            let value = match metric.source {
                Source::Live(value) => value(&series.usage),
                Source::Service(value) => living.map(|_| value(&series.usage))?,
                Source::Limit(limit) => limit(living?)?,
                _ => return None,
            };
            Some(Sample { label: &series.label, value: signed(value) })
        });
        services
            .chain(single.map(|value| Sample { label: "", value: signed(value) }))
            .chain(by.map(|(label, value)| Sample { label, value: signed(value) }))
            .chain(lines.iter().map(|line| Sample { label: line.part, value: line.bytes }))
    }
}

/// Whether it has its name for itself.
fn is_living(row: &Row) -> bool {
    !row.is_retired && !row.is_cancelled
}

fn signed(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// Chooses the services that have series of their own, those that hold the most, and sums the others. No two series have the
/// same label.
fn choose(rows: &[Row], most_services: usize, mut admits: impl FnMut(&str) -> bool) -> Vec<Series> {
    const OTHERS: &str = "(other)";

    let mut chosen: Vec<Series> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut others: Option<Usage> = None;
    let mut add = |label: String, usage, living| match places.get(&label) {
        Some(place) => {
            let known = &mut chosen[*place];
            add_live(&mut known.usage, &usage);
            known.living = None;
        }
        None => {
            places.insert(label.clone(), chosen.len());
            chosen.push(Series { label, usage, living });
        }
    };
    // Whoever bounds a family holds what those below it do: of a tenant nothing else tells.
    let held = |row: &Row| {
        let is_limited = row.hard_limit.or(row.soft_limit).is_some();
        if is_limited { row.usage_with_children.bytes() } else { row.usage.bytes() }
    };
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|place| Reverse(held(&rows[*place])));
    let mut own = 0;
    for place in order {
        let row = &rows[place];
        if own < most_services {
            // Another one may have the name by now.
            let label = match row {
                Row { is_cancelled: true, name, .. } => format!("{name} (cancelled)"),
                Row { is_retired: true, name, .. } => format!("{name} (retired)"),
                Row { name, .. } => name.clone(),
            };
            if admits(&label) {
                own += 1;
                add(label, row.usage, is_living(row).then_some(place));
                continue;
            }
        }
        add_live(others.get_or_insert_default(), &row.usage);
    }
    if let Some(others) = others {
        add(OTHERS.to_owned(), others, None);
    }
    chosen
}

/// Adds what is live: of a sum of services nothing else is shown. Figures of one process wrap together.
fn add_live(sum: &mut Usage, usage: &Usage) {
    sum.allocated_bytes = sum.allocated_bytes.wrapping_add(usage.allocated_bytes);
    sum.allocated_blocks = sum.allocated_blocks.wrapping_add(usage.allocated_blocks);
    sum.freed_bytes = sum.freed_bytes.wrapping_add(usage.freed_bytes);
    sum.freed_blocks = sum.freed_blocks.wrapping_add(usage.freed_blocks);
}

/// Tells that a text is no name for a label.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabelError {
    /// What was to be the name.
    pub label: String,
}

impl fmt::Display for LabelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beginning: String = self.label.chars().take(50).collect();
        write!(
            f,
            "{beginning:?} is no name for a label: choose one of 1 to 100 letters (a to z, A to Z), digits and \
             underscores that begins with a letter"
        )
    }
}

impl Error for LabelError {}

/// Checks the name of a label: Prometheus throws away the whole scrape in which one is wrong.
///
/// # Errors
///
/// [`LabelError`] if it is no name, or one of those that systems keep for themselves.
pub fn check_label(name: &str) -> Result<(), LabelError> {
    let is_good = name.len() <= 100
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_good { Ok(()) } else { Err(LabelError { label: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// What the systems ask for: some write it as it is.
    #[test]
    fn names_and_descriptions_need_no_escapes() {
        let mut names = HashSet::new();
        for metric in &METRICS {
            assert!(names.insert(metric.full_name()), "{metric:?}");
            assert!(check_label(&metric.full_name()).is_ok(), "{metric:?}");
            assert_eq!(metric.dotted_name().replace('.', "_"), metric.base_name());
            let is_plain = |c: char| c.is_ascii_graphic() && c != '\\' && c != '"' || c == ' ';
            assert!(metric.help.len() > 10 && metric.help.chars().all(is_plain), "{metric:?}");
        }
    }

    #[test]
    fn the_guide_has_all_names() {
        let guide = include_str!("guide.md");
        let table = guide.split("\n# Metrics\n").nth(1).unwrap().split("\n# ").next().unwrap();
        for metric in &METRICS {
            let name = metric.full_name();
            let prefix = if metric.label() == Some(Label::Service) { "dogtag_service" } else { "dogtag" };
            let column = if metric.label() == Some(Label::Service) { 1 } else { 2 };
            let short = format!("`{}`", name.replacen(prefix, "", 1));
            let cells = || table.lines().filter_map(|line| line.split('|').nth(column));
            let is_there = cells().any(|cell| cell.contains(&format!("`{name}`")) || cell.contains(&short));
            assert!(is_there, "{name}");
        }
    }

    /// The next one of its name has its counters for itself.
    #[cfg(feature = "guard")]
    #[test]
    fn cancelled_services_are_apart_from_those_that_have_their_names() {
        let sample = |reading: &Reading, name: &str, label: &str| {
            let metric = METRICS.iter().find(|metric| metric.full_name() == name).unwrap();
            reading.samples(metric).find(|sample| sample.label == label).map(|sample| sample.value)
        };
        let old = Service::register("of a series").unwrap();
        old.cancel("again");
        let new = Service::register("of a series").unwrap();
        let reading = Reading::take(usize::MAX);
        for (label, counter) in [("of a series", Some(0)), ("of a series (cancelled)", None)] {
            assert_eq!(sample(&reading, "dogtag_service_live_bytes", label), Some(0));
            assert_eq!(sample(&reading, "dogtag_service_allocated_bytes_total", label), counter);
        }
        assert_eq!(reading.living().filter(|name| *name == "of a series").count(), 1);
        assert!(sample(&reading, "dogtag_cancelled_services_total", "program") >= Some(1));
        assert_eq!(sample(&reading, "dogtag_cancelled_services_total", "guard"), Some(0));
        assert!(sample(&reading, "dogtag_longest_release_seconds", "").is_some());
        assert_eq!(sample(&reading, "dogtag_guard_ceiling_bytes", ""), None, "there is no guard");
        assert_eq!(Sample { label: "", value: 1_500_000 }.seconds(), 0.0015);
        drop((old, new));
    }

    #[test]
    fn labels_are_checked() {
        for good in ["service", "dogtag_service", "S2", &"x".repeat(100)] {
            assert_eq!(check_label(good), Ok(()));
        }
        for bad in ["", "_", "__name__", "1a", "a-b", "a b", "ä", "a\n", &"x".repeat(101)] {
            let error = check_label(bad).unwrap_err();
            assert!(error.to_string().len() < 300 && error.label == bad, "{error}");
        }
    }
}
