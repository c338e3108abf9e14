//! Profiles in pprof's format: gzipped protobuf, with the sample types of Go's heap profiles.

mod messages;
#[cfg(test)]
mod tests;

use super::collect::Kind;
use super::frame::Frame;
use super::report::Profile;
use super::row::{Origin, ProfileRow};
use super::{frames, mappings, own};
use flate2::Compression;
use flate2::write::GzEncoder;
use messages::{Function, Label, Line, Location, Mapping, Proto, Sample, ValueType};
use prost::Message;
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

/// Writes a [`Profile`] as pprof's gzipped protobuf, with choices: [`Profile::pprof`].
#[derive(Clone, Debug)]
#[must_use = "nothing is written before `write`"]
pub struct Pprof<'a> {
    profile: &'a Profile,
    other: Option<&'a Profile>,
    with_names: bool,
}

impl Profile {
    /// Writes the profile as pprof's gzipped protobuf, which `go tool pprof`, speedscope, Pyroscope,
    /// Parca and others read. [`pprof`](Self::pprof) has the choices, and says what is in the file.
    ///
    /// ```
    /// # let profile = dogtag::profile::Profile::default();
    /// # let path = std::env::temp_dir().join("dogtag-write-pprof.pb.gz");
    /// profile.write_pprof(std::fs::File::create(&path)?)?;
    /// # std::fs::remove_file(path)?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn write_pprof(&self, writer: impl Write) -> io::Result<()> {
        self.pprof().write(writer)
    }

    /// Returns a writer of the profile in pprof's format.
    ///
    /// The file has the sample types of Go's heap profiles: `alloc_objects`, `alloc_space`,
    /// `inuse_objects` and `inuse_space`; those that the profile does not have are 0. The default one
    /// is `inuse_space`, for a profile of what was allocated `alloc_space`. Samples have
    /// the label `service`, and the numeric label `handle`:
    ///
    /// ```sh
    /// go tool pprof -top -tagfocus service=index heap.pb.gz
    /// go tool pprof -top -diff_base earlier.pb.gz later.pb.gz
    /// ```
    ///
    /// `go tool pprof` takes `service=42`, `service=7d` and `service=10mb` for quantities. So that it
    /// finds a service whose name looks so, its samples have the number as a numeric label `service`,
    /// too. The unit makes no difference there; `service=^7d$` finds that name alone.
    ///
    /// Rows that have no call stack have a function whose name says why: `[not sampled]`.
    ///
    /// Functions that were inlined into one another are lines of one location. speedscope shows the
    /// outermost of them; [folded stacks](Self::write_folded) show it all of them.
    ///
    /// In a file no value is negative, since tools refuse such files. Of a
    /// [`difference`](Self::difference) between live profiles it has what grew, and leaves out what
    /// shrank. For both, write the two profiles, and let tools subtract: `-diff_base`.
    ///
    /// ```
    /// # let (live, allocated) = (dogtag::profile::Profile::default(), dogtag::profile::Profile::default());
    /// let mut file = Vec::new();
    /// live.pprof().with(&allocated).write(&mut file)?;
    /// # std::io::Result::Ok(())
    /// ```
    pub fn pprof(&self) -> Pprof<'_> {
        Pprof { profile: self, other: None, with_names: true }
    }
}

impl<'a> Pprof<'a> {
    /// Adds the values of another profile of the same process, of the other [`Kind`], as Go's heap
    /// profiles have both. The default sample type, the times and the interval stay the first
    /// one's.
    pub fn with(self, other: &'a Profile) -> Self {
        Self { other: Some(other), ..self }
    }

    /// Leaves the functions' names out: the file has addresses, the files that are mapped there, and
    /// their build ids, for servers and tools that look names up themselves. No debug information
    /// is read.
    ///
    /// They are told (`drop_frames`) to drop the allocator's functions when they know them.
    pub fn without_names(self) -> Self {
        Self { with_names: false, ..self }
    }

    /// Writes the file.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn write(self, mut writer: impl Write) -> io::Result<()> {
        let file = {
            let _scope = own::enter();
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(&self.message().encode_to_vec())?;
            gzip.finish()?
        };
        writer.write_all(&file)?;
        writer.flush()
    }

    fn message(&self) -> Proto {
        let Self { profile, other, with_names } = *self;
        let mut file = File::new(with_names);
        let types =
            [("alloc_objects", "count"), ("alloc_space", BYTES), ("inuse_objects", "count"), INUSE_SPACE];
        for (kind, unit) in types {
            let value_type = file.value_type(kind, unit);
            file.proto.sample_type.push(value_type);
        }
        let (default, _) = if profile.kind == Kind::Allocated { types[1] } else { INUSE_SPACE };
        file.proto.default_sample_type = file.text(default);
        file.proto.period_type = Some(file.value_type("space", BYTES));
        file.proto.period = signed(profile.interval);
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        file.proto.time_nanos =
            nanos(profile.taken.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        file.proto.duration_nanos = nanos(profile.taken.duration_since(profile.began).unwrap_or_default());
        if !with_names {
            file.proto.drop_frames = file.text(frames::DROPPED);
        }
        file.map(profile);
        for profile in [Some(profile), other].into_iter().flatten() {
            for row in &profile.rows {
                file.add(profile, row);
            }
        }
        if profile.dropped > 0 {
            let comment = format!("{} samples were dropped: the table of samples was full", profile.dropped);
            let comment = file.text(&comment);
            file.proto.comment.push(comment);
        }
        file.proto
    }
}

/// `go tool pprof` scales `bytes`, not `By`.
const BYTES: &str = "bytes";
const INUSE_SPACE: (&str, &str) = ("inuse_space", BYTES);

/// A file in the making, and what is in it already.
struct File<'a> {
    proto: Proto,
    with_names: bool,
    mappings: &'a [mappings::Mapping],
    texts: HashMap<String, i64>,
    functions: HashMap<(&'a str, Option<&'a str>), u64>,
    locations: HashMap<Place<'a>, u64>,
    samples: HashMap<(&'a str, u32, &'a Origin), usize>,
}

/// What is one location: an address, and the functions there that are shown, with the lines.
type Place<'a> = (usize, Vec<(&'a str, Option<u32>)>);

impl<'a> File<'a> {
    fn new(with_names: bool) -> Self {
        let mut file = Self {
            proto: Proto::default(),
            with_names,
            mappings: &[],
            texts: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
            samples: HashMap::new(),
        };
        // The first text is the empty one.
        file.text("");
        file
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(place) = self.texts.get(text) {
            return *place;
        }
        let place = self.proto.string_table.len() as i64;
        self.proto.string_table.push(text.to_owned());
        self.texts.insert(text.to_owned(), place);
        place
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType { kind: self.text(kind), unit: self.text(unit) }
    }

    fn map(&mut self, profile: &'a Profile) {
        self.mappings = &profile.mappings;
        let has_names = self.with_names;
        for (mapping, id) in profile.mappings.iter().zip(1..) {
            let (filename, build_id) = (self.text(&mapping.file), self.text(&mapping.build_id));
            self.proto.mapping.push(Mapping {
                id,
                memory_start: mapping.start as u64,
                memory_limit: mapping.limit as u64,
                file_offset: mapping.offset as u64,
                filename,
                build_id,
                has_functions: has_names,
                has_filenames: has_names,
                has_line_numbers: has_names,
                has_inline_frames: has_names,
            });
        }
    }

    fn add(&mut self, profile: &'a Profile, row: &'a ProfileRow) {
        let values = match profile.kind {
            Kind::Allocated => [row.objects, row.bytes, 0, 0],
            Kind::Live => [0, 0, row.objects, row.bytes],
        };
        // Each for itself: of a row that grew there may be fewer objects.
        let values = values.map(|value| value.max(0));
        if values == [0; 4] {
            return;
        }
        let key = (row.service.as_str(), row.handle, &row.origin);
        if let Some(place) = self.samples.get(&key) {
            let sample = &mut self.proto.sample[*place];
            sample.value.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.saturating_add(value));
            return;
        }
        let location_id = self.stack(profile, row);
        let label = self.labels(row);
        self.samples.insert(key, self.proto.sample.len());
        self.proto.sample.push(Sample { location_id, value: values.to_vec(), label });
    }

    /// The locations of a row's stack, innermost first.
    fn stack(&mut self, profile: &'a Profile, row: &'a ProfileRow) -> Vec<u64> {
        let addresses = row.origin.stack();
        // A sample without a stack would be part of the total and in no line.
        if addresses.is_empty() {
            let function = self.function(row.origin.label(), None);
            return vec![self.location((0, vec![(row.origin.label(), None)]), vec![(function, 0)])];
        }
        let frames = if self.with_names { profile.frames(row) } else { Vec::new() };
        // Nor have rows names that a program has added to the profile.
        if frames.is_empty() {
            return addresses
                .iter()
                .map(|address| self.location((*address, Vec::new()), Vec::new()))
                .collect();
        }
        // Functions that were inlined into one another are one location.
        let of_one_location =
            |inner: &&Frame, outer: &&Frame| inner.is_inlined && inner.address == outer.address;
        frames
            .chunk_by(of_one_location)
            .map(|inlined| {
                let functions = inlined.iter().map(|frame| (frame.function.as_str(), frame.line)).collect();
                let lines = inlined
                    .iter()
                    .map(|frame| {
                        let function = self.function(&frame.function, frame.file.as_deref());
                        (function, frame.line.unwrap_or(0))
                    })
                    .collect();
                self.location((inlined[0].address, functions), lines)
            })
            .collect()
    }

    fn location(&mut self, place: Place<'a>, lines: Vec<(u64, u32)>) -> u64 {
        let address = place.0;
        let next = self.locations.len() as u64 + 1;
        let id = *self.locations.entry(place).or_insert(next);
        if id == next {
            // Of the call, as others have it, not of where it returns to.
            let address = address.saturating_sub(1);
            let mapping = mappings::find(self.mappings, address);
            self.proto.location.push(Location {
                id,
                mapping_id: mapping.map_or(0, |place| place as u64 + 1),
                address: address as u64,
                line: lines
                    .into_iter()
                    .map(|(function_id, line)| Line { function_id, line: line.into() })
                    .collect(),
            });
        }
        id
    }

    fn function(&mut self, name: &'a str, file: Option<&'a str>) -> u64 {
        let next = self.functions.len() as u64 + 1;
        let id = *self.functions.entry((name, file)).or_insert(next);
        if id == next {
            // Without a name for the linker: where that is the same, `go tool pprof` shortens what
            // it takes for C++'s, and of `<T as Trait>::f` leaves `::f`.
            let (name, filename) = (self.text(name), self.text(file.unwrap_or_default()));
            self.proto.function.push(Function { id, name, filename });
        }
        id
    }

    fn labels(&mut self, row: &ProfileRow) -> Vec<Label> {
        let service = self.text("service");
        let name = self.text(&row.service);
        let mut labels = vec![Label { key: service, str: name, ..Label::default() }];
        if let Some(number) = quantity(&row.service) {
            // The unit that a number without one has, so that 0 is a number.
            labels.push(Label { key: service, str: 0, num: number, num_unit: service });
        }
        let handle = self.text("handle");
        labels.push(Label { key: handle, str: 0, num: row.handle.into(), num_unit: handle });
        labels
    }
}

/// The number that `go tool pprof -tagfocus` would look for in place of such a name: of `42`, `7d`,
/// `:10mb`, `10mb:`, and of `1:5` the first. It has no unit, since a label has but one in a file:
/// pprof takes that of the filter.
fn quantity(name: &str) -> Option<i64> {
    fn number(text: &str) -> Option<(i64, &str)> {
        let sign = usize::from(text.starts_with(['+', '-']));
        let digits = text[sign..].bytes().take_while(u8::is_ascii_digit).count();
        let number = text[..sign + digits].parse().ok()?;
        let rest = text[sign + digits..].trim_start_matches(|c: char| c.is_ascii_alphabetic());
        Some((number, rest))
    }

    let (first, rest) = number(name.strip_prefix(':').unwrap_or(name))?;
    let is_range = match rest.strip_prefix(':') {
        None => rest.is_empty(),
        Some(_) if name.starts_with(':') => false,
        Some("") => true,
        Some(last) => number(last).is_some_and(|(_, rest)| rest.is_empty()),
    };
    is_range.then_some(first)
}

fn signed(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}
