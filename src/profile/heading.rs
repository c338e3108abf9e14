//! What a table says of its profile as a whole, and how it writes the profile's figures.

use super::collect::Kind;
use super::report::Profile;
use crate::format::{Bytes, Grouped, Share};
use std::fmt::{self, Write};

/// What a table says of its profile as a whole.
#[derive(Clone, Debug)]
pub(super) struct Heading {
    kind: Kind,
    is_difference: bool,
    interval: u64,
    dropped: u64,
    pub(super) samples: u64,
    pub(super) objects: i64,
    pub(super) bytes: i64,
}

impl Heading {
    pub(super) fn of(profile: &Profile) -> Self {
        Self {
            kind: profile.kind,
            is_difference: profile.is_difference,
            interval: profile.interval,
            dropped: profile.dropped,
            samples: profile.samples(),
            objects: profile.objects(),
            bytes: profile.bytes(),
        }
    }

    pub(super) fn column(&self) -> &'static str {
        match self.kind {
            Kind::Live if self.is_difference => "growth",
            Kind::Live => "live",
            Kind::Allocated => "allocated",
        }
    }

    /// Bytes of a row; growth with its sign.
    pub(super) fn bytes(&self, bytes: i64) -> String {
        format!("{}{}", self.sign(bytes), Bytes(bytes.unsigned_abs()))
    }

    pub(super) fn objects(&self, objects: i64) -> String {
        format!("{}{}", self.sign(objects), Grouped(objects.unsigned_abs()))
    }

    fn sign(&self, figure: i64) -> &'static str {
        match figure.signum() {
            -1 => "-",
            1 if self.is_difference && self.kind == Kind::Live => "+",
            _ => "",
        }
    }

    /// The part of all bytes; of growth there is none.
    pub(super) fn share(&self, bytes: i64) -> String {
        match (u64::try_from(bytes), u64::try_from(self.bytes)) {
            (Ok(part), Ok(whole)) if !self.is_difference || self.kind == Kind::Allocated => {
                Share { part, whole }.to_string()
            }
            _ => "–".to_owned(),
        }
    }

    pub(super) fn footnotes(&self, f: &mut String) -> fmt::Result {
        let samples = Grouped(self.samples);
        match self.interval {
            0 => writeln!(f, "\n{samples} samples; sampling had been stopped")?,
            1 => writeln!(f, "\n{samples} samples: every allocation was one")?,
            interval => writeln!(f, "\n{samples} samples, one for each {} on average", Bytes(interval))?,
        }
        if self.dropped > 0 {
            writeln!(
                f,
                "{} more were dropped: the table of samples was full, and a longer interval needs fewer",
                Grouped(self.dropped)
            )?;
        }
        Ok(())
    }
}
