//! Profiles as tables.

use super::own;
use super::places::Places;
use super::report::Profile;
use super::views::{ByCode, ByFunction, ByService, CalleeRow, CodeRow, ServiceRow};
use crate::format::{Bytes, Grouped, printable, printable_up_to};
use std::fmt::{self, Write};

/// A line of a table: its title, and the columns to its right.
struct Line<const COLUMNS: usize>(String, [String; COLUMNS]);

/// Writes lines between rules, and the total.
fn write<const COLUMNS: usize>(
    f: &mut String,
    head: &Line<COLUMNS>,
    lines: &[Line<COLUMNS>],
    total: &Line<COLUMNS>,
) -> fmt::Result {
    let all = || [head, total].into_iter().chain(lines);
    let width = all().map(|line| line.0.chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        all().map(|line| line.1[column].chars().count()).max().unwrap_or(0).max(9)
    });
    let write = |f: &mut String, line: &Line<COLUMNS>| {
        write!(f, "{:<width$}", line.0)?;
        for (column, width) in line.1.iter().zip(widths) {
            write!(f, "  {column:>width$}")?;
        }
        writeln!(f)
    };
    let rule = "─".repeat(width + widths.iter().map(|width| width + 2).sum::<usize>());
    write(f, head)?;
    writeln!(f, "{rule}")?;
    for line in lines {
        write(f, line)?;
    }
    writeln!(f, "{rule}")?;
    write(f, total)
}

/// Has a table written, with so many rows at most as the precision lets through. What it takes to make it is
/// charged to the profiler, the text itself to whoever asks.
fn show(f: &mut fmt::Formatter<'_>, table: impl FnOnce(&mut String, usize) -> fmt::Result) -> fmt::Result {
    let mut text = String::new();
    {
        let _scope = own::enter();
        table(&mut text, f.precision().unwrap_or(usize::MAX))?;
    }
    f.write_str(&text)
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.by_own_code().fmt(f)
    }
}

impl fmt::Display for ByService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, |text, most| self.write(text, most))
    }
}

impl ByService {
    fn write(&self, f: &mut String, most: usize) -> fmt::Result {
        let heading = &self.heading;
        let columns = |bytes, objects, with_stack, samples| {
            [
                heading.bytes(bytes),
                heading.share(bytes),
                heading.objects(objects),
                heading.bytes(with_stack),
                Grouped(samples).to_string(),
            ]
        };
        let (rows, others) = self.rows.split_at(most.min(self.rows.len()));
        let mut lines: Vec<_> = rows
            .iter()
            .map(|row| {
                let title = printable(&row.service);
                Line(title, columns(row.bytes, row.objects, row.with_stack, row.samples))
            })
            .collect();
        if !others.is_empty() {
            let sum = |figure: fn(&ServiceRow) -> i64| others.iter().map(figure).sum();
            let samples = others.iter().map(|row| row.samples).sum();
            lines.push(Line(
                format!("({} more)", others.len()),
                columns(sum(|row| row.bytes), sum(|row| row.objects), sum(|row| row.with_stack), samples),
            ));
        }
        let head = ["share", "objects", "with stack", "samples"];
        let head: Vec<String> = [heading.column()].into_iter().chain(head).map(str::to_owned).collect();
        let head = Line("service".to_owned(), head.try_into().unwrap_or_default());
        let with_stack = self.rows.iter().map(|row| row.with_stack).sum();
        let total =
            Line("total".to_owned(), columns(heading.bytes, heading.objects, with_stack, heading.samples));
        write(f, &head, &lines, &total)?;
        heading.footnotes(f)
    }
}

impl fmt::Display for ByFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, |text, most| self.write(text, most))
    }
}

impl ByFunction {
    fn write(&self, f: &mut String, most: usize) -> fmt::Result {
        let heading = &self.heading;
        let (rows, others) = self.rows.split_at(most.min(self.rows.len()));
        let mut lines: Vec<_> = rows
            .iter()
            .map(|row| {
                Line(
                    printable_up_to(&row.function, LONGEST),
                    [
                        heading.bytes(row.bytes),
                        heading.share(row.bytes),
                        error(row.standard_error),
                        heading.bytes(row.cumulative_bytes),
                        heading.share(row.cumulative_bytes),
                        heading.objects(row.objects),
                    ],
                )
            })
            .collect();
        if !others.is_empty() {
            let bytes = others.iter().map(|row| row.bytes).sum();
            let objects = others.iter().map(|row| row.objects).sum();
            let variance: f64 = others.iter().map(|row| row.standard_error * row.standard_error).sum();
            lines.push(Line(
                format!("({} more)", others.len()),
                [
                    heading.bytes(bytes),
                    heading.share(bytes),
                    error(variance.sqrt()),
                    String::new(),
                    String::new(),
                    heading.objects(objects),
                ],
            ));
        }
        let head = [heading.column(), "share", "± error", "with calls", "share", "objects"];
        let head = Line("function".to_owned(), head.map(str::to_owned));
        let bytes = heading.bytes(heading.bytes);
        let total = Line(
            "total".to_owned(),
            [
                bytes,
                heading.share(heading.bytes),
                String::new(),
                String::new(),
                String::new(),
                heading.objects(heading.objects),
            ],
        );
        write(f, &head, &lines, &total)?;
        heading.footnotes(f)
    }
}

impl fmt::Display for ByCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, |text, most| self.write(text, most))
    }
}

impl ByCode {
    fn write(&self, f: &mut String, most: usize) -> fmt::Result {
        let heading = &self.heading;
        let columns = |bytes, standard_error, objects| {
            [heading.bytes(bytes), heading.share(bytes), standard_error, heading.objects(objects)]
        };
        let places = Places::of(self.rows.iter().flat_map(|row| {
            [&row.file].into_iter().chain(row.callees.iter().map(|callee| &callee.file)).flatten()
        }));
        let mut lines = Vec::new();
        for rows in self.rows.chunk_by(|a, b| (&a.service, a.handle) == (&b.service, b.handle)) {
            let (bytes, objects) = sum(rows);
            lines.push(Line(printable(&rows[0].service), columns(bytes, String::new(), objects)));
            let (rows, others) = rows.split_at(most.min(rows.len()));
            for row in rows {
                let function = printable_up_to(&row.function, LONGEST);
                let place = places.show(row.file.as_deref(), row.line);
                lines.push(Line(
                    format!("  {function}{place}"),
                    columns(row.bytes, error(row.standard_error), row.objects),
                ));
                let matters =
                    |callee: &&CalleeRow| callee.bytes.unsigned_abs() >= row.bytes.unsigned_abs() / 10;
                for callee in row.callees.iter().filter(matters).take(CALLEES) {
                    let function = printable_up_to(&callee.function, LONGEST);
                    let place = places.show(callee.file.as_deref(), callee.line);
                    lines.push(Line(
                        format!("    by {function}{place}"),
                        columns(callee.bytes, error(callee.standard_error), callee.objects),
                    ));
                }
            }
            if !others.is_empty() {
                let (bytes, objects) = sum(others);
                let variance: f64 = others.iter().map(|row| row.standard_error * row.standard_error).sum();
                lines.push(Line(
                    format!("  ({} more)", others.len()),
                    columns(bytes, error(variance.sqrt()), objects),
                ));
            }
        }
        let head = [heading.column(), "share", "± error", "objects"];
        let head = Line("service, and its code".to_owned(), head.map(str::to_owned));
        let total = Line("total".to_owned(), columns(heading.bytes, String::new(), heading.objects));
        write(f, &head, &lines, &total)?;
        heading.footnotes(f)
    }
}

/// Lines of other crates that are shown of a row: the largest, with a tenth of it at least.
const CALLEES: usize = 3;

/// Characters of a function's name that are shown.
const LONGEST: usize = 64;

fn sum(rows: &[CodeRow]) -> (i64, i64) {
    rows.iter().fold((0, 0), |(bytes, objects), row| (bytes + row.bytes, objects + row.objects))
}

fn error(standard_error: f64) -> String {
    // Casts saturate.
    if standard_error < 0.5 { "exact".to_owned() } else { Bytes(standard_error.round() as u64).to_string() }
}
