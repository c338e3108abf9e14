//! The workloads that the programs know, in the order in which they are shown.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Programs,
    Patterns,
    Operations,
    Growth,
    Footprint,
}

impl Group {
    pub const ALL: [Self; 5] =
        [Self::Programs, Self::Patterns, Self::Operations, Self::Growth, Self::Footprint];

    pub const fn title(self) -> &'static str {
        match self {
            Self::Programs => "Programs",
            Self::Patterns => "Allocators’ patterns",
            Self::Operations => "Single operations",
            Self::Growth => "1–256 B, 1 k live, among more",
            Self::Footprint => "Live blocks of one size",
        }
    }

    /// How many of the contestants take part.
    pub const fn contestants(self) -> usize {
        // What grows with services can be compared with bare jemalloc only.
        if matches!(self, Self::Growth) { 3 } else { super::CONTESTANTS.len() }
    }

    pub const fn most_rounds(self) -> usize {
        // Memory is nearly the same each time.
        if matches!(self, Self::Footprint) { 3 } else { usize::MAX }
    }
}

pub struct Workload {
    pub group: Group,
    pub name: &'static str,
    pub label: &'static str,
}

pub fn of(group: Group) -> impl Iterator<Item = &'static Workload> {
    ALL.iter().filter(move |workload| workload.group == group)
}

macro_rules! workloads {
    ($($group:ident { $($name:literal: $label:literal,)* })*) => {
        pub const ALL: &[Workload] =
            &[$($(Workload { group: Group::$group, name: $name, label: $label },)*)*];
    };
}

workloads! {
    Programs {
        "json": "JSON, parsed and dropped",
        "strings": "B-tree, hash map of strings",
        "words": "places of words in a hash map",
        "sort": "strings, sorted and dropped",
        "index": "index of strings and 48 B boxes",
        "regex": "regex over a log",
        "lru": "LRU cache, 1–64 KiB",
        "requests": "tokio, a service a request",
        "merge": "parallel merge of vectors",
        "log": "log pipeline, 2 threads",
    }
    Patterns {
        "larson": "larson, a server",
        "xmalloc": "xmalloc, freed elsewhere",
    }
    Operations {
        "pair-16": "pair, 16 B",
        "pair-64": "pair, 64 B",
        "pair-1024": "pair, 1024 B",
        "small-1k-live": "1–128 B, 1 k live",
        "two-threads": "1–256 B, 1 k live, 2 threads",
        "hand-over": "producer/consumer, 48 B",
        "cold": "1–1024 B, 100 k live (cold)",
        "vec-growth": "Vec growth, per push",
        "realloc-doubling": "realloc doubling, 16 B–8 KiB",
    }
    Growth {
        "threads-1": "1 thread at work",
        "threads-2": "2 threads at work",
        "threads-4": "4 threads at work",
        "threads-8": "8 threads at work",
        "alive-10": "10 threads alive",
        "alive-100": "100 threads alive",
        "alive-1000": "1,000 threads alive",
        "services-1": "1 service",
        "services-100": "100 services",
        "services-10000": "10,000 services",
        "services-1000000": "1,000,000 services",
        "turns-64": "64 services, block by block",
    }
    Footprint {
        "live-8": "8 B",
        "live-16": "16 B",
        "live-24": "24 B",
        "live-32": "32 B",
        "live-48": "48 B",
        "live-64": "64 B",
        "live-100": "100 B",
        "live-128": "128 B",
        "live-256": "256 B",
        "live-512": "512 B",
        "live-1000": "1000 B",
        "live-1024": "1 KiB",
        "live-2048": "2 KiB",
        "live-4096": "4 KiB",
        "live-8192": "8 KiB",
        "live-16384": "16 KiB",
        "live-65536": "64 KiB",
    }
}
