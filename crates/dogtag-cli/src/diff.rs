//! `dogtag diff`: two runs, or two moments, service by service.

use crate::arguments::Diff as Arguments;
use crate::failure::{Context, Failure};
use crate::report::print;
use crate::reports::{Report, Reports};
use crate::size::{bytes, difference, printable};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::slice;

/// What is compared of each service, and in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Figures {
    live_bytes: u64,
    live_blocks: u64,
    peak_bytes: u64,
    allocated_bytes: u64,
}

/// One service in both.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    name: String,
    /// None where it was not there.
    before: Option<Figures>,
    after: Option<Figures>,
}

/// The services of both, the one that grew most first, and so the one that shrank most last.
#[derive(Debug, Serialize)]
struct Difference {
    services: Vec<Row>,
    totals: Row,
    /// RSS.
    resident_before: Option<u64>,
    resident_after: Option<u64>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let before = Reports::read(slice::from_ref(&arguments.before))?;
    let after = Reports::read(slice::from_ref(&arguments.after))?;
    let difference = Difference::of(before.chosen(None)?.last(), after.chosen(None)?.last());
    let text = if arguments.json {
        serde_json::to_string(&difference).context("JSON")? + "\n"
    } else {
        difference.table(arguments.rows)
    };
    print(&text)
}

impl From<&dogtag::Usage> for Figures {
    fn from(usage: &dogtag::Usage) -> Self {
        Self {
            live_bytes: usage.bytes(),
            live_blocks: usage.blocks(),
            peak_bytes: usage.peak_bytes,
            allocated_bytes: usage.allocated_bytes,
        }
    }
}

impl Figures {
    fn and(self, other: Self) -> Self {
        Self {
            live_bytes: self.live_bytes.saturating_add(other.live_bytes),
            live_blocks: self.live_blocks.saturating_add(other.live_blocks),
            peak_bytes: self.peak_bytes.saturating_add(other.peak_bytes),
            allocated_bytes: self.allocated_bytes.saturating_add(other.allocated_bytes),
        }
    }
}

impl Row {
    fn growth(&self) -> i128 {
        let live = |figures: Option<Figures>| i128::from(figures.unwrap_or_default().live_bytes);
        live(self.after) - live(self.before)
    }
}

impl Difference {
    fn of(before: &Report, after: &Report) -> Self {
        // Of services with one name, the sum.
        let services = |report: &Report| {
            let mut services: BTreeMap<String, Figures> = BTreeMap::new();
            for row in &report.snapshot.rows {
                let sum = services.entry(row.name.clone()).or_default();
                *sum = sum.and(Figures::from(&row.usage));
            }
            services
        };
        let mut later = services(after);
        let mut rows: Vec<Row> = services(before)
            .into_iter()
            .map(|(name, figures)| Row { after: later.remove(&name), name, before: Some(figures) })
            .collect();
        rows.extend(later.into_iter().map(|(name, figures)| Row {
            name,
            before: None,
            after: Some(figures),
        }));
        rows.sort_by(|a, b| b.growth().cmp(&a.growth()).then_with(|| a.name.cmp(&b.name)));
        let totals = |report: &Report| Some(Figures::from(&report.snapshot.totals));
        let resident =
            |report: &Report| report.snapshot.balance.as_ref().and_then(|balance| balance.resident);
        Self {
            services: rows,
            totals: Row { name: "total".to_owned(), before: totals(before), after: totals(after) },
            resident_before: resident(before),
            resident_after: resident(after),
        }
    }

    /// Shows those that changed most, in either direction.
    fn table(&self, most: usize) -> String {
        let mut places: Vec<usize> = (0..self.services.len()).collect();
        places.sort_by_key(|place| std::cmp::Reverse(self.services[*place].growth().abs()));
        let hidden = places.split_off(places.len().min(most));
        places.sort_unstable();
        let mut text = format!(
            "{:<40}  {:>11}  {:>11}  {:>12}  {:>11}  {:>11}\n",
            "service", "live before", "live after", "difference", "peak before", "peak after",
        );
        let rule = "─".repeat(106);
        let line = |text: &mut String, row: &Row| {
            let cell = |figures: Option<Figures>, of: fn(Figures) -> u64| {
                figures.map_or("–".to_owned(), |figures| bytes(of(figures)))
            };
            // A string takes all that is written.
            let _ = writeln!(
                text,
                "{:<40}  {:>11}  {:>11}  {:>12}  {:>11}  {:>11}",
                printable(&row.name, 40),
                cell(row.before, |figures| figures.live_bytes),
                cell(row.after, |figures| figures.live_bytes),
                difference(row.growth()),
                cell(row.before, |figures| figures.peak_bytes),
                cell(row.after, |figures| figures.peak_bytes),
            );
        };
        let _ = writeln!(text, "{rule}");
        places.into_iter().for_each(|place| line(&mut text, &self.services[place]));
        if !hidden.is_empty() {
            let growth = hidden.iter().map(|place| self.services[*place].growth()).sum();
            let _ = writeln!(text, "{:<40}  {:>38}", format!("({} more)", hidden.len()), difference(growth));
        }
        let _ = writeln!(text, "{rule}");
        line(&mut text, &self.totals);
        if let (Some(before), Some(after)) = (self.resident_before, self.resident_after) {
            let _ = writeln!(
                text,
                "{:<40}  {:>11}  {:>11}  {:>12}",
                "RSS",
                bytes(before),
                bytes(after),
                difference(i128::from(after) - i128::from(before)),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rows: &str, totals: u64) -> Report {
        Report::parse(&format!(
            r#"{{"time":1,"occasion":"exit","program":"a","pid":1,"rows":[{rows}],"totals":{{"allocated_bytes":{totals}}}}}"#
        ))
        .unwrap()
    }

    fn row(name: &str, bytes: u64) -> String {
        format!(r#"{{"name":"{name}","usage":{{"allocated_bytes":{bytes}}}}}"#)
    }

    #[test]
    fn services_are_compared_by_their_names() {
        let before = report(&[row("a", 5), row("b", 7), row("gone", 100)].join(","), 112);
        let after = report(&[row("a", 3), row("a", 4), row("new", 1024), row("b", 7)].join(","), 1038);
        let difference = Difference::of(&before, &after);
        let rows: Vec<(&str, i128)> =
            difference.services.iter().map(|row| (row.name.as_str(), row.growth())).collect();
        assert_eq!(rows, [("new", 1024), ("a", 2), ("b", 0), ("gone", -100)]);
        let table = difference.table(2);
        assert!(table.contains("+1.0 KiB") && table.contains("-100 B"), "{table}");
        assert!(table.contains("(2 more)") && !table.contains("\nb "), "{table}");
        assert!(table.contains("\ntotal ") && table.contains("+926 B"), "{table}");
    }
}
