//! A profile by service, by function, and by the code that is the program's own.

use super::frame::Frame;
use super::frames;
use super::heading::Heading;
use super::own;
use super::report::Profile;
use super::row::ProfileRow;
use std::collections::{HashMap, HashSet};

/// Holds a [`Profile`] by service: [`Profile::by_service`]. `Display` writes a table; a precision
/// bounds its lines.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ByService {
    /// A row for each service, the one with the most bytes first.
    pub rows: Vec<ServiceRow>,
    pub(super) heading: Heading,
}

/// Holds what one service allocated, in a profile [by service](Profile::by_service).
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct ServiceRow {
    /// The service's name.
    pub service: String,
    /// The service's handle.
    pub handle: u32,
    /// Blocks: the exact number.
    pub objects: i64,
    /// Requested bytes: the exact number.
    pub bytes: i64,
    /// How many of these bytes are in rows with a call stack.
    pub with_stack: i64,
    /// Samples of the service.
    pub samples: u64,
}

/// Holds a [`Profile`] by function: [`Profile::by_function`]. `Display` writes a table; a precision
/// bounds its lines.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ByFunction {
    /// A row for each function, the one that allocated the most bytes itself first. What the standard
    /// library's functions allocate counts as their callers'.
    pub rows: Vec<FunctionRow>,
    pub(super) heading: Heading,
}

/// Holds what one function allocated, in a profile [by function](Profile::by_function): itself, or with
/// functions of the standard library.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct FunctionRow {
    /// The function's name.
    pub function: String,
    /// Blocks that it allocated itself, estimated.
    pub objects: i64,
    /// Requested bytes that it allocated itself, estimated.
    pub bytes: i64,
    /// The standard error of `bytes`.
    pub standard_error: f64,
    /// Blocks that it, and all that it called, allocated; estimated.
    pub cumulative_objects: i64,
    /// Requested bytes that it, and all that it called, allocated; estimated.
    pub cumulative_bytes: i64,
    /// The standard error of `cumulative_bytes`.
    pub cumulative_standard_error: f64,
    /// Blocks of the stacks whose innermost function it is, the standard library's included, as pprof
    /// counts them; estimated.
    pub flat_objects: i64,
    /// Requested bytes of the stacks whose innermost function it is, the standard library's included,
    /// as pprof counts them; estimated.
    pub flat_bytes: i64,
}

/// Holds a [`Profile`] by service and line of code: [`Profile::by_own_code`] and [`Profile::by_code`].
/// `Display` writes a table; a precision bounds the lines of each service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ByCode {
    /// A row for each line of code and service: services with the most bytes first, and lines of one
    /// service by their bytes.
    pub rows: Vec<CodeRow>,
    pub(super) heading: Heading,
}

/// Holds what one service allocated in one line of code, in a profile
/// [by code](Profile::by_own_code).
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct CodeRow {
    /// The service's name.
    pub service: String,
    /// The service's handle.
    pub handle: u32,
    /// The function's name; `[not sampled]` or alike where there is no call stack.
    pub function: String,
    /// The path of the source file, if it is known.
    pub file: Option<String>,
    /// The line that allocated, or called what did.
    pub line: Option<u32>,
    /// Blocks, estimated.
    pub objects: i64,
    /// Requested bytes, estimated.
    pub bytes: i64,
    /// The standard error of `bytes`.
    pub standard_error: f64,
    /// What code outside allocated of it that this line called, such as a dependency's: by the innermost
    /// function that is not the standard library's, the one with the most bytes first. The rest was
    /// allocated here.
    pub callees: Vec<CalleeRow>,
}

/// Holds what a line of code allocated by way of one line of other crates: a part of a [`CodeRow`].
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct CalleeRow {
    /// The function's name.
    pub function: String,
    /// The path of the source file, if it is known.
    pub file: Option<String>,
    /// The line that allocated.
    pub line: Option<u32>,
    /// Blocks, estimated.
    pub objects: i64,
    /// Requested bytes, estimated.
    pub bytes: i64,
    /// The standard error of `bytes`.
    pub standard_error: f64,
}

/// A function, its file, and a line in it.
type Line<'a> = (&'a str, Option<&'a str>, Option<u32>);

fn line(frame: &Frame) -> Line<'_> {
    (&frame.function, frame.file.as_deref(), frame.line)
}

/// The sum of rows' figures, the error as a variance.
#[derive(Clone, Copy, Default)]
struct Sum {
    objects: i64,
    bytes: i64,
    variance: f64,
}

/// The sum of a line, and those of the lines that it called.
type WithCallees<'a> = (Sum, HashMap<Line<'a>, Sum>);

impl Sum {
    fn add(&mut self, row: &ProfileRow) {
        self.objects += row.objects;
        self.bytes += row.bytes;
        self.variance += row.standard_error * row.standard_error;
    }
}

impl Profile {
    /// Returns the profile by service.
    ///
    /// ```
    /// # let profile = dogtag::profile::Profile::default();
    /// println!("{}", profile.by_service());
    /// for row in profile.by_service().rows {
    ///     println!("{} has {} B, {} samples", row.service, row.bytes, row.samples);
    /// }
    /// ```
    #[must_use]
    pub fn by_service(&self) -> ByService {
        let _scope = own::enter();
        let mut rows: HashMap<(&str, u32), ServiceRow> = HashMap::new();
        for row in &self.rows {
            let sum = rows.entry((&row.service, row.handle)).or_default();
            sum.objects += row.objects;
            sum.bytes += row.bytes;
            sum.samples += row.samples;
            if !row.origin.stack().is_empty() {
                sum.with_stack += row.bytes;
            }
        }
        let mut rows: Vec<ServiceRow> = rows
            .into_iter()
            .map(|((service, handle), row)| ServiceRow { service: service.to_owned(), handle, ..row })
            .collect();
        rows.sort_by(|a, b| {
            b.bytes.cmp(&a.bytes).then_with(|| (&a.service, a.handle).cmp(&(&b.service, b.handle)))
        });
        ByService { rows, heading: Heading::of(self) }
    }

    /// Returns the profile by function, all services together: what each allocated itself, and with
    /// what it called.
    ///
    /// What functions of the standard library allocate, such as `Vec::with_capacity`, counts as allocated by
    /// whoever called them: the innermost function outside of it. (`flat_bytes` has the other count.)
    /// Functions of the same name are one. A function that calls itself counts once.
    ///
    /// ```
    /// # let profile = dogtag::profile::Profile::default();
    /// println!("{:.20}", profile.by_function());
    /// ```
    ///
    /// For one service, keep its rows:
    ///
    /// ```
    /// # let mut profile = dogtag::profile::Profile::default();
    /// profile.rows.retain(|row| row.service == "cache");
    /// println!("{:.20}", profile.by_function());
    /// ```
    #[must_use]
    pub fn by_function(&self) -> ByFunction {
        let _scope = own::enter();
        let mut rows: HashMap<&str, FunctionRow> = HashMap::new();
        for row in &self.rows {
            let variance = row.standard_error * row.standard_error;
            let frames = self.frames(row);
            let innermost = frames.first().map_or(row.origin.label(), |frame| &frame.function);
            let itself = outside(&frames).map_or(innermost, |frame| &frame.function);
            let flat = rows.entry(innermost).or_default();
            flat.flat_objects += row.objects;
            flat.flat_bytes += row.bytes;
            let sum = rows.entry(itself).or_default();
            sum.objects += row.objects;
            sum.bytes += row.bytes;
            sum.standard_error += variance;
            let all: HashSet<&str> =
                frames.iter().map(|frame| frame.function.as_str()).chain([innermost]).collect();
            for function in all {
                let sum = rows.entry(function).or_default();
                sum.cumulative_objects += row.objects;
                sum.cumulative_bytes += row.bytes;
                sum.cumulative_standard_error += variance;
            }
        }
        let mut rows: Vec<FunctionRow> = rows
            .into_iter()
            .map(|(function, row)| FunctionRow {
                function: function.to_owned(),
                standard_error: row.standard_error.sqrt(),
                cumulative_standard_error: row.cumulative_standard_error.sqrt(),
                ..row
            })
            .collect();
        rows.sort_by(|a, b| {
            (b.bytes, b.cumulative_bytes)
                .cmp(&(a.bytes, a.cumulative_bytes))
                .then_with(|| a.function.cmp(&b.function))
        });
        ByFunction { rows, heading: Heading::of(self) }
    }

    /// Returns the profile by service and by the first function, from the inside, that is in the
    /// program's own crates, with the line that allocated or called what did.
    ///
    /// A function is the program's own if its source file is neither below Cargo's directories of
    /// downloaded crates (`registry/src`, `git/checkouts`) nor the standard library's, and its crate
    /// is neither of the standard library nor dogtag. A crate that is named like the executable is
    /// the program's in any case (as of programs that `cargo install` built). Vendored crates look
    /// like the program's own. Without debug information there are no paths, so all crates but
    /// the standard library's do; if the program has some, what has no path is a dependency's. A function without Rust's `::` in its name is the program's if its
    /// source file is known, and its code in the executable, not in a library beside it.
    ///
    /// What the line called of other crates is in its row's [`callees`](CodeRow::callees).
    ///
    /// For a stack with none of them it is the first function outside of the standard library, else
    /// the first one. [`by_code`](Self::by_code) takes another choice.
    ///
    /// ```
    /// # let profile = dogtag::profile::Profile::default();
    /// println!("{:.5}", profile.by_own_code());
    /// ```
    #[must_use]
    pub fn by_own_code(&self) -> ByCode {
        self.by_code(|frame| frame.is_own)
    }

    /// Returns the profile by service and by the first function, from the inside, that
    /// `is_wanted` accepts.
    ///
    /// For a stack with none of them it is the first function outside of the standard library, else
    /// the first one.
    ///
    /// ```
    /// # let profile = dogtag::profile::Profile::default();
    /// println!("{}", profile.by_code(|frame| frame.function.starts_with("serde_json::")));
    /// ```
    #[must_use]
    pub fn by_code(&self, is_wanted: impl Fn(&Frame) -> bool) -> ByCode {
        let _scope = own::enter();
        let mut sums: HashMap<(&str, u32, Line<'_>), WithCallees<'_>> = HashMap::new();
        let mut services: HashMap<(&str, u32), i64> = HashMap::new();
        for row in &self.rows {
            *services.entry((&row.service, row.handle)).or_default() += row.bytes;
            let frames = self.frames(row);
            let place = frames.iter().position(|frame| is_wanted(frame));
            let chosen = match place {
                Some(place) => Some(&frames[place]),
                None => outside(&frames).or(frames.first()),
            };
            let of_row = chosen.map_or((row.origin.label(), None, None), |frame| line(frame));
            let (sum, callees) = sums.entry((&row.service, row.handle, of_row)).or_default();
            sum.add(row);
            if let Some(callee) = place.and_then(|place| outside(&frames[..place])) {
                callees.entry(line(callee)).or_default().add(row);
            }
        }
        let mut rows: Vec<CodeRow> = sums
            .into_iter()
            .map(|((service, handle, (function, file, line)), (sum, callees))| CodeRow {
                service: service.to_owned(),
                handle,
                function: function.to_owned(),
                file: file.map(str::to_owned),
                line,
                objects: sum.objects,
                bytes: sum.bytes,
                standard_error: sum.variance.sqrt(),
                callees: callee_rows(callees),
            })
            .collect();
        rows.sort_by(|a, b| {
            let of_service = |row: &CodeRow| services[&(row.service.as_str(), row.handle)];
            (of_service(b).cmp(&of_service(a)))
                .then_with(|| (&a.service, a.handle).cmp(&(&b.service, b.handle)))
                .then_with(|| b.bytes.cmp(&a.bytes))
                .then_with(|| (&a.function, &a.file, a.line).cmp(&(&b.function, &b.file, b.line)))
        });
        ByCode { rows, heading: Heading::of(self) }
    }

    /// Returns what stands in a row's place in stacks: the names of its functions, outermost first,
    /// or why there are none.
    pub(super) fn titles(&self, row: &ProfileRow) -> Vec<&str> {
        let frames = self.frames(row);
        if frames.is_empty() {
            return vec![row.origin.label()];
        }
        frames.iter().rev().map(|frame| frame.function.as_str()).collect()
    }
}

/// The innermost frame outside of the standard library.
fn outside<'a, 'b>(frames: &'b [&'a Frame]) -> Option<&'b &'a Frame> {
    frames.iter().find(|frame| !frames::is_standard(&frame.function))
}

fn callee_rows(callees: HashMap<Line<'_>, Sum>) -> Vec<CalleeRow> {
    let mut rows: Vec<CalleeRow> = callees
        .into_iter()
        .map(|((function, file, line), sum)| CalleeRow {
            function: function.to_owned(),
            file: file.map(str::to_owned),
            line,
            objects: sum.objects,
            bytes: sum.bytes,
            standard_error: sum.variance.sqrt(),
        })
        .collect();
    rows.sort_by(|a, b| {
        (b.bytes.cmp(&a.bytes))
            .then_with(|| (&a.function, &a.file, a.line).cmp(&(&b.function, &b.file, b.line)))
    });
    rows
}
