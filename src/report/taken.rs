//! One report: the figures of one moment, as text and as JSON.

#[cfg(feature = "profile")]
use super::json::Json;
use super::json::Object;
use crate::format::Bytes;
use crate::ledger::slots::UNATTRIBUTED;
#[cfg(feature = "profile")]
use crate::profile::{self, Kind, Profile, Profiler};
use crate::service::Scope;
use crate::snapshot::{Snapshot, snapshot};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Holds the figures of one report: [`take`] returns one, and
/// [closures](super::ReportBuilder::to) get one.
///
/// `Display` writes the text: a line with the program and the occasion, the table, the balance and the
/// profile. [`to_json`](Self::to_json) writes a line of JSON.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// let report = dogtag::report::take();
/// let largest = &report.snapshot.rows[0];
/// println!("{} has {} bytes", largest.name, largest.usage.bytes());
/// println!("{report}");
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// When it was taken.
    pub time: SystemTime,
    /// Why it was taken.
    pub occasion: Occasion,
    /// The services' figures, with the balance unless it is [left
    /// out](super::ReportBuilder::without_balance).
    pub snapshot: Snapshot,
    /// Which code holds the memory, if the profiler runs and the profile is not [left
    /// out](super::ReportBuilder::without_profile).
    #[cfg(feature = "profile")]
    pub profile: Option<Profile>,
}

/// Says why a report was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Occasion {
    /// The program asked for it: [`take`], [`json`](super::json()), or the page.
    Asked,
    /// The program ends.
    Exit,
    /// The process got a signal.
    Signal,
    /// The time between two reports has passed.
    Interval,
}

impl Occasion {
    /// Returns the occasion's name in JSON: `asked`, `exit`, `signal` or `interval`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::Interval => "interval",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Asked => "as asked for",
            Self::Exit => "at its exit",
            Self::Signal => "at a signal",
            Self::Interval => "by the clock",
        }
    }
}

/// What is in a report beside the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) balance: bool,
    #[cfg_attr(not(feature = "profile"), allow(dead_code, reason = "there is none"))]
    pub(super) profile: bool,
}

impl Parts {
    pub(super) const ALL: Self = Self { balance: true, profile: true };
}

/// Takes a report now, with all that is in one: the snapshot with the balance, and the profile if the
/// profiler runs.
///
/// What it allocates is charged to the unattributed service.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// println!("{}", dogtag::report::take());
/// # }
/// ```
#[must_use]
pub fn take() -> Report {
    Report::take(Occasion::Asked, Parts::ALL)
}

impl Report {
    pub(super) fn take(occasion: Occasion, parts: Parts) -> Self {
        let _scope = Scope::enter(&UNATTRIBUTED);
        let snapshot = snapshot();
        Self {
            time: SystemTime::now(),
            occasion,
            snapshot: if parts.balance { snapshot.with_balance() } else { snapshot },
            #[cfg(feature = "profile")]
            profile: (parts.profile && Profiler::running().is_some()).then(profile::live),
        }
    }

    /// Returns the report as one line of JSON, without a line break at its end.
    ///
    /// The fields are those of [`Snapshot`], so with the feature `serde` it can be read as one. Each
    /// [`Usage`](crate::Usage) has `live_bytes` and `live_blocks` too, and the balance has its `lines`.
    /// `time` is in milliseconds since 1970; `occasion`, `program` and `pid` say whose report it is. With
    /// a profile there is `profile`: what each service holds by which line of the program's own code.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// let line = dogtag::report::take().to_json();
    /// assert!(line.starts_with(r#"{"time":1"#) && !line.contains('\n'));
    /// # }
    /// ```
    #[must_use]
    pub fn to_json(&self) -> String {
        let _scope = Scope::enter(&UNATTRIBUTED);
        let mut text = String::new();
        Object::append(&mut text, |object| {
            object.field("time", &milliseconds(self.time));
            object.field("occasion", self.occasion.name());
            object.field("program", &program());
            object.field("pid", &std::process::id());
            let Snapshot {
                rows,
                ended,
                totals,
                lost,
                quarantine,
                cancellations,
                #[cfg(feature = "guard")]
                guard,
                #[cfg(feature = "sampled-guard")]
                sampled_guard,
                jemalloc,
                regions,
                balance,
            } = &self.snapshot;
            object.field("rows", rows);
            object.field("ended", ended);
            object.field("totals", totals);
            object.field("lost", lost);
            object.field("quarantine", quarantine);
            object.field("cancellations", cancellations);
            #[cfg(feature = "guard")]
            object.field("guard", guard);
            #[cfg(feature = "sampled-guard")]
            object.field("sampled_guard", sampled_guard);
            object.field("jemalloc", jemalloc);
            object.field("regions", regions);
            object.field("balance", balance);
            #[cfg(feature = "profile")]
            if let Some(profile) = &self.profile {
                object.field("profile", profile);
            }
        });
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (program, when) = (program(), self.occasion.words());
        let program = program.escape_debug();
        let pid = std::process::id();
        write!(f, "dogtag: {program} (pid {pid}) {when}\n\n{}\n", self.snapshot)?;
        uncounted(&self.snapshot, f)?;
        #[cfg(feature = "profile")]
        if let Some(profile) = &self.profile {
            /// Lines of each service.
            const MOST: usize = 10;
            writeln!(f, "{profile:.MOST$}")?;
        }
        Ok(())
    }
}

/// Milliseconds since 1970.
pub(super) fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis().try_into().unwrap_or(u64::MAX)
}

pub(super) fn program() -> String {
    std::env::args_os().next().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes a line on memory of other allocators, if there is much of it.
fn uncounted(snapshot: &Snapshot, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    /// Statics and the C library's own memory are mostly less.
    const MUCH: u64 = 4 << 20;

    let Some(balance) = &snapshot.balance else { return Ok(()) };
    let elsewhere = balance.other_allocators + balance.other_mappings;
    let totals = &snapshot.totals;
    if elsewhere < MUCH && totals.allocated_blocks > 0 {
        return Ok(());
    }
    let own = if elsewhere > totals.allocated_bytes {
        ": the program has an allocator of its own, or maps memory itself"
    } else {
        ""
    };
    writeln!(f, "{} are in mappings of other allocators, and not counted{own}", Bytes(elsewhere))
}

#[cfg(feature = "profile")]
impl Json for Profile {
    fn append_to(&self, text: &mut String) {
        let kind = match self.kind {
            Kind::Live => "Live",
            Kind::Allocated => "Allocated",
        };
        Object::append(text, |object| {
            object.field("kind", kind);
            object.field("interval", &self.interval);
            object.field("dropped", &self.dropped);
            object.field("samples", &self.samples());
            object.field("rows", &self.by_own_code().rows);
        });
    }
}

#[cfg(feature = "profile")]
use crate::profile::{CalleeRow, CodeRow};
#[cfg(feature = "profile")]
super::json::objects! {
    CodeRow { service, handle, function, file, line, objects, bytes, standard_error, callees };
    CalleeRow { function, file, line, objects, bytes, standard_error };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arenas::{Region, RegionStats};
    use crate::balance::Balance;
    use crate::snapshot::{Cancellation, Cancellations, Lost, Quarantine, Row};
    use crate::usage::Usage;
    use serde_json::Value;
    use std::time::Duration;

    fn made_up() -> Report {
        let usage = Usage { allocated_bytes: u64::MAX, freed_bytes: 7, peak_bytes: 9, ..Usage::NONE };
        let row = |name: &str| Row { name: name.to_owned(), handle: 3, usage, ..Row::default() };
        let family = Row { parent: Some(0), hard_limit: Some(1), soft_limit: Some(0), ..row("\"b\"\n") };
        let cancellation = Cancellation {
            by: "budget".to_owned(),
            reason: "too \"much\"".to_owned(),
            bytes: 5,
            ago: Duration::new(7, 8),
            released_after: Some(Duration::from_micros(9)),
        };
        let cancelled = Row { is_cancelled: true, cancellation: Some(cancellation), ..row("c") };
        let snapshot = Snapshot {
            rows: vec![Row { is_retired: true, ..row("a") }, family, cancelled],
            ended: usage,
            totals: usage,
            lost: Lost { bytes: 1, blocks: 2 },
            quarantine: Some(Quarantine { bytes: 3, blocks: 4 }),
            cancellations: Some(Cancellations {
                by_budget: 1,
                longest_release: Some(Duration::from_secs(3)),
                ..Cancellations::default()
            }),
            regions: vec![Region {
                name: "region".to_owned(),
                stats: RegionStats { size: 5, ..RegionStats::default() },
            }],
            balance: Some(Balance {
                services: 10 << 20,
                other_mappings: 5 << 20,
                not_in_memory: 1 << 20,
                resident: Some(20 << 20),
                ..Balance::default()
            }),
            #[cfg(feature = "guard")]
            guard: Some(crate::guard::figures()),
            #[cfg(feature = "sampled-guard")]
            sampled_guard: Some(crate::sampled_guard::Figures {
                caught: 7,
                ..crate::sampled_guard::figures()
            }),
            ..Snapshot::default()
        };
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        Report {
            time,
            occasion: Occasion::Exit,
            snapshot,
            #[cfg(feature = "profile")]
            profile: None,
        }
    }

    #[test]
    fn json_has_what_is_needed_to_know_whose_it_is() {
        let line = made_up().to_json();
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["time"], 1_700_000_000_123_u64);
        assert_eq!((&value["occasion"], &value["pid"]), (&"exit".into(), &std::process::id().into()));
        assert!(!value["program"].as_str().unwrap().is_empty());
        assert_eq!(value["rows"][1]["name"], "\"b\"\n");
        assert_eq!(value["rows"][1]["usage"]["live_bytes"], u64::MAX - 7);
        #[cfg(feature = "sampled-guard")]
        assert_eq!(value["sampled_guard"]["caught"], 7);
        let lines = value["balance"]["lines"].as_array().unwrap();
        let sum: i64 = lines.iter().map(|line| line["bytes"].as_i64().unwrap()).sum();
        assert_eq!(sum, 20 << 20);
        assert_eq!(lines.last().unwrap()["part"], "unexplained");
        assert!(!line.contains('\n'));
    }

    /// Whatever serde writes of a snapshot is there, and equal.
    #[cfg(feature = "serde")]
    #[test]
    fn json_is_serdes_and_more() {
        fn check(serdes: &Value, ours: &Value, place: &str) {
            match serdes {
                Value::Object(fields) => {
                    fields
                        .iter()
                        .for_each(|(name, value)| check(value, &ours[name], &format!("{place}.{name}")));
                }
                Value::Array(values) => {
                    assert_eq!(ours.as_array().map(Vec::len), Some(values.len()), "{place}");
                    values.iter().zip(ours.as_array().unwrap()).for_each(|(a, b)| check(a, b, place));
                }
                value => assert_eq!(value, ours, "{place}"),
            }
        }

        let real = Report::take(Occasion::Asked, Parts::ALL);
        for report in [made_up(), real] {
            let ours = serde_json::from_str(&report.to_json()).unwrap();
            check(&serde_json::to_value(&report.snapshot).unwrap(), &ours, "");
            assert_eq!(serde_json::from_value::<Snapshot>(ours).unwrap(), report.snapshot);
        }
    }

    #[test]
    fn the_text_says_whose_it_is_and_what_is_not_counted() {
        let mut report = made_up();
        let text = report.to_string();
        let heading = format!("(pid {}) at its exit\n\nservice ", std::process::id());
        assert!(text.starts_with("dogtag: ") && text.contains(&heading), "{text}");
        assert!(text.ends_with("5.0 MiB are in mappings of other allocators, and not counted\n"), "{text}");
        report.snapshot.totals.allocated_bytes = 1;
        assert!(report.to_string().ends_with("or maps memory itself\n"), "{report}");
        report.snapshot.balance = None;
        assert!(!report.to_string().contains("other allocators"), "{report}");
    }
}
