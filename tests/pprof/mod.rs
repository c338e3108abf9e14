//! Reads pprof's files, as far as tests need it.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

use flate2::read::GzDecoder;
use prost::Message;
use std::io::Read;

/// The messages of the format.
#[derive(Clone, PartialEq, Message)]
pub struct File {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
}

impl File {
    pub fn read(gzipped: &[u8]) -> Self {
        let mut file = Vec::new();
        GzDecoder::new(gzipped).read_to_end(&mut file).expect("the file is gzipped");
        Self::decode(&*file).expect("the file is pprof's")
    }

    /// The mean distance of sampled bytes.
    pub fn interval(&self) -> i64 {
        self.period
    }

    pub fn default_sample_type(&self) -> &str {
        self.text(self.default_sample_type)
    }

    /// The sum of a service's values of one type.
    pub fn sum(&self, service: &str, kind: &str) -> i64 {
        self.stacks(service, kind).iter().map(|(value, _)| value).sum()
    }

    /// A service's values of one type that are not 0, and the functions of each, innermost first.
    pub fn stacks(&self, service: &str, kind: &str) -> Vec<(i64, Vec<&str>)> {
        let place = self.sample_type.iter().position(|it| self.text(it.kind) == kind).expect(kind);
        let is_of = |label: &Label| self.text(label.key) == "service" && self.text(label.text) == service;
        let of_service = self.sample.iter().filter(|sample| sample.label.iter().any(is_of));
        of_service
            .map(|sample| (sample.value[place], self.functions(sample)))
            .filter(|(value, _)| *value != 0)
            .collect()
    }

    fn functions(&self, sample: &Sample) -> Vec<&str> {
        let location = |id: &u64| self.location.iter().find(|location| location.id == *id);
        let function = |line: &Line| self.function.iter().find(|function| function.id == line.function_id);
        let lines = sample.location_id.iter().filter_map(location).flat_map(|location| &location.line);
        lines.filter_map(function).map(|function| self.text(function.name)).collect()
    }

    fn text(&self, place: i64) -> &str {
        &self.string_table[place as usize]
    }
}
