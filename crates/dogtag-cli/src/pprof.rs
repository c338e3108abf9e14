//! Heap profiles in pprof's format, as far as flame graphs and folded stacks need them.

use crate::failure::{Context, Failure};
use dogtag::__private::format::frame;
use flate2::read::GzDecoder;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Read;

/// A profile: what was sampled, by call stack.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Nanoseconds since 1970.
    pub time: i64,
    pub stacks: Vec<Stack>,
}

/// One call stack of a service.
#[derive(Debug, PartialEq, Eq)]
pub struct Stack {
    pub service: String,
    /// The outermost function first.
    pub functions: Vec<String>,
    pub live_bytes: i64,
    pub allocated_bytes: i64,
}

/// The most that a profile may have unpacked.
const MOST_BYTES: u64 = 1 << 30;

impl Profile {
    /// Reads a file's content.
    pub fn read(name: impl fmt::Display, content: &[u8]) -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        GzDecoder::new(content)
            .take(MOST_BYTES)
            .read_to_end(&mut bytes)
            .context(format_args!("{name} is no heap profile, or is cut off"))?;
        let proto = Proto::decode(&bytes[..]).context(format_args!("{name} is no heap profile"))?;
        Self::of(&proto).ok_or_else(|| Failure::new(format!("{name} is a profile of something else")))
    }

    fn of(proto: &Proto) -> Option<Self> {
        let text = |index: i64| proto.strings.get(usize::try_from(index).ok()?).map(String::as_str);
        let place = |name| proto.sample_types.iter().position(|kind| text(kind.kind) == Some(name));
        let (live, allocated) = (place("inuse_space")?, place("alloc_space")?);
        let functions: HashMap<u64, &str> =
            proto.functions.iter().filter_map(|function| Some((function.id, text(function.name)?))).collect();
        let locations: HashMap<u64, &Location> =
            proto.locations.iter().map(|location| (location.id, location)).collect();
        let mut stacks = Vec::with_capacity(proto.samples.len());
        for sample in &proto.samples {
            let service = sample.labels.iter().find(|label| text(label.key) == Some("service"));
            let mut names = Vec::new();
            // The innermost first, also of those that were inlined into one another.
            for id in &sample.locations {
                let location = locations.get(id)?;
                for line in &location.lines {
                    names.push((*functions.get(&line.function).unwrap_or(&"?")).to_owned());
                }
                if location.lines.is_empty() {
                    names.push(format!("{:#x}", location.address));
                }
            }
            names.reverse();
            stacks.push(Stack {
                service: service.and_then(|label| text(label.text)).unwrap_or_default().to_owned(),
                functions: names,
                live_bytes: *sample.values.get(live)?,
                allocated_bytes: *sample.values.get(allocated)?,
            });
        }
        Some(Self { time: proto.time_nanos, stacks })
    }

    /// Writes what is live as folded stacks: `service;main;read 4096`, a line for each, with names as dogtag itself
    /// writes them.
    pub fn folded(&self) -> String {
        let mut sums: BTreeMap<String, i64> = BTreeMap::new();
        for stack in self.stacks.iter().filter(|stack| stack.live_bytes > 0) {
            let names = [&stack.service].into_iter().chain(&stack.functions);
            let names: Vec<String> = names.map(|name| frame(name)).collect();
            *sums.entry(names.join(";")).or_default() += stack.live_bytes;
        }
        sums.into_iter().map(|(stack, bytes)| format!("{stack} {bytes}\n")).collect()
    }
}

// The messages of pprof's `profile.proto`, without what is not read.

#[derive(Clone, PartialEq, Message)]
struct Proto {
    #[prost(message, repeated, tag = "1")]
    sample_types: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    locations: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    functions: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    strings: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    locations: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    values: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    labels: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    lines: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    /// `main` calls `read`, which is inlined into it, for the service `web`.
    pub fn file() -> Vec<u8> {
        let strings = ["", "alloc_space", "inuse_space", "service", "web", "main", "re;ad"];
        let kind = |kind| ValueType { kind };
        let location = |id, lines: &[u64]| Location {
            id,
            address: id,
            lines: lines.iter().map(|function| Line { function: *function }).collect(),
        };
        let sample = |locations: &[u64], allocated, live| Sample {
            locations: locations.to_vec(),
            values: vec![allocated, live],
            labels: vec![Label { key: 3, text: 4 }],
        };
        let proto = Proto {
            sample_types: vec![kind(1), kind(2)],
            samples: vec![sample(&[1], 100, 60), sample(&[2, 1], 10, 5), sample(&[1], 7, 0)],
            locations: vec![location(1, &[2, 1]), location(2, &[])],
            functions: vec![Function { id: 1, name: 5 }, Function { id: 2, name: 6 }],
            strings: strings.map(str::to_owned).to_vec(),
            time_nanos: 1_700_000_000_000_000_000,
        };
        packed(&proto.encode_to_vec())
    }

    #[test]
    fn stacks_have_the_outermost_function_first() {
        let profile = Profile::read("x", &file()).unwrap();
        let [first, second, _] = &profile.stacks[..] else { panic!("{profile:?}") };
        assert_eq!(first.functions, ["main", "re;ad"]);
        assert_eq!((first.service.as_str(), first.live_bytes, first.allocated_bytes), ("web", 60, 100));
        assert_eq!(second.functions, ["main", "re;ad", "0x2"]);
        assert_eq!(profile.folded(), "web;main;re,ad 60\nweb;main;re,ad;0x2 5\n");
    }

    #[test]
    fn what_is_no_profile_is_told() {
        let whole = file();
        for end in 0..whole.len() {
            assert!(Profile::read("x", &whole[..end]).is_err(), "{end}");
        }
        let other = Proto { sample_types: vec![], ..Proto::default() };
        for bytes in [&b"\xff\xff"[..], &other.encode_to_vec()] {
            assert_eq!(Profile::read("x", &packed(bytes)).unwrap_err().status, 2);
        }
    }
}
