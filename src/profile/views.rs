//! A profile by service, by function, and by the code that is the program's own.

use super::frame::Frame;
use super::frames;
use super::heading::Heading;
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
    /// A row for each function, the one that allocated the most bytes itself first.
    pub rows: Vec<FunctionRow>,
    pub(super) heading: Heading,
}

/// Holds what one function allocated, in a profile [by function](Profile::by_function).
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
        let mut rows: HashMap<&str, FunctionRow> = HashMap::new();
        for row in &self.rows {
            let variance = row.standard_error * row.standard_error;
            let frames = self.frames(row);
            let innermost = frames.first().map_or(row.origin.label(), |frame| &frame.function);
            let sum = rows.entry(innermost).or_default();
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
    /// the standard library's do. A function without Rust's `::` in its name is the program's if its
    /// source file is known.
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
        type Line<'a> = (&'a str, u32, &'a str, Option<&'a str>, Option<u32>);

        let mut rows: HashMap<Line<'_>, CodeRow> = HashMap::new();
        let mut services: HashMap<(&str, u32), i64> = HashMap::new();
        for row in &self.rows {
            *services.entry((&row.service, row.handle)).or_default() += row.bytes;
            let frames = self.frames(row);
            let (function, file, line) = match first(&frames, &is_wanted) {
                Some(frame) => (frame.function.as_str(), frame.file.as_deref(), frame.line),
                None => (row.origin.label(), None, None),
            };
            let sum = rows.entry((&row.service, row.handle, function, file, line)).or_default();
            sum.objects += row.objects;
            sum.bytes += row.bytes;
            sum.standard_error += row.standard_error * row.standard_error;
        }
        let mut rows: Vec<CodeRow> = rows
            .into_iter()
            .map(|((service, handle, function, file, line), row)| CodeRow {
                service: service.to_owned(),
                handle,
                function: function.to_owned(),
                file: file.map(str::to_owned),
                line,
                standard_error: row.standard_error.sqrt(),
                ..row
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

fn first<'a>(frames: &[&'a Frame], is_wanted: impl Fn(&Frame) -> bool) -> Option<&'a Frame> {
    let found = frames.iter().find(|frame| is_wanted(frame));
    found
        .or_else(|| frames.iter().find(|frame| !frames::is_standard(&frame.function)))
        .or(frames.first())
        .copied()
}
