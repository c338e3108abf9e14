//! Figures as JSON, in the form that serde gives them.
//!
//! The lists of fields are complete, or they do not compile. A test compares them with serde's.

use crate::arenas::{Region, RegionStats};
use crate::backend::JemallocStats;
use crate::balance::{Balance, BalanceLine};
#[cfg(feature = "guard")]
use crate::guard::Figures;
#[cfg(feature = "sampled-guard")]
use crate::sampled_guard::Figures as SampledGuardFigures;
use crate::snapshot::{Cancellation, Cancellations, Lost, Quarantine, Row};
use crate::usage::Usage;
use std::fmt::Write;
use std::time::Duration;

/// Can be written as a JSON value.
pub(super) trait Json {
    /// Appends the value.
    fn append_to(&self, text: &mut String);
}

/// An object that is being written.
pub(super) struct Object<'a> {
    text: &'a mut String,
    is_empty: bool,
}

impl Object<'_> {
    /// Appends an object with what `fill` puts into it.
    pub(super) fn append(text: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
        text.push('{');
        let mut object = Object { text, is_empty: true };
        fill(&mut object);
        text.push('}');
    }

    /// Adds a field.
    pub(super) fn field(&mut self, name: &str, value: &(impl Json + ?Sized)) {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.text.push(',');
        }
        name.append_to(self.text);
        self.text.push(':');
        value.append_to(self.text);
    }
}

macro_rules! numbers {
    ($($type:ty),+) => {
        $(impl Json for $type {
            fn append_to(&self, text: &mut String) {
                // A string takes all that is written.
                let _ = write!(text, "{self}");
            }
        })+
    };
}

numbers!(bool, i64, u32, u64, usize);

impl Json for f64 {
    fn append_to(&self, text: &mut String) {
        if self.is_finite() {
            let _ = write!(text, "{self}");
        } else {
            text.push_str("null");
        }
    }
}

impl Json for Duration {
    fn append_to(&self, text: &mut String) {
        Object::append(text, |object| {
            object.field("secs", &self.as_secs());
            object.field("nanos", &self.subsec_nanos());
        });
    }
}

impl Json for str {
    fn append_to(&self, text: &mut String) {
        text.push('"');
        for c in self.chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                // The last two end a line for JavaScript; `<` would end a script in a page.
                '\0'..='\u{1f}' | '\u{7f}' | '\u{2028}' | '\u{2029}' | '<' => {
                    let _ = write!(text, "\\u{:04x}", u32::from(c));
                }
                _ => text.push(c),
            }
        }
        text.push('"');
    }
}

impl Json for String {
    fn append_to(&self, text: &mut String) {
        self.as_str().append_to(text);
    }
}

impl<T: Json + ?Sized> Json for &T {
    fn append_to(&self, text: &mut String) {
        (**self).append_to(text);
    }
}

impl<T: Json> Json for Option<T> {
    fn append_to(&self, text: &mut String) {
        match self {
            Some(value) => value.append_to(text),
            None => text.push_str("null"),
        }
    }
}

impl<T: Json> Json for [T] {
    fn append_to(&self, text: &mut String) {
        text.push('[');
        for (i, value) in self.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            value.append_to(text);
        }
        text.push(']');
    }
}

impl<T: Json> Json for Vec<T> {
    fn append_to(&self, text: &mut String) {
        self.as_slice().append_to(text);
    }
}

/// Writes all fields of a type by their names, and perhaps what is computed from them.
macro_rules! objects {
    ($($type:ident { $($field:ident),+ $(,)? } $(plus $($name:literal: $value:expr),+)?;)+) => {
        $(impl Json for $type {
            fn append_to(&self, text: &mut String) {
                let Self { $($field),+ } = self;
                Object::append(text, |object| {
                    $(object.field(stringify!($field), $field);)+
                    $($(object.field($name, &($value)(self));)+)?
                });
            }
        })+
    };
}
#[cfg(feature = "profile")]
pub(super) use objects;

#[cfg(feature = "guard")]
objects! {
    Figures {
        running, ceiling, used, own, highest_over, polls, failed_polls, purges, purged_bytes, pressure_calls,
        cancelled, given_back_bytes, unresponsive, helpless,
    };
}

#[cfg(feature = "sampled-guard")]
objects! {
    SampledGuardFigures { rate, slots, retired, guarded, ever, refused, throttled, caught };
}

objects! {
    Usage { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, denied, peak_bytes }
        plus "live_bytes": Usage::bytes, "live_blocks": Usage::blocks;
    Row {
        name, handle, is_retired, is_cancelled, cancellation, usage, parent, usage_with_children, hard_limit, soft_limit,
    };
    Cancellation { by, reason, bytes, ago, released_after };
    Cancellations {
        by_program, by_budget, by_guard, refused, released, holding, holding_bytes, last_release, longest_release,
    };
    Lost { bytes, blocks };
    Quarantine { bytes, blocks };
    JemallocStats { allocated, active, resident, mapped, retained, metadata };
    Region { name, stats };
    RegionStats { size, used, free, largest_free, free_ranges, blocks, peak, refused };
    Balance {
        services, unattributed, cookies, quarantine, rounding, thread_caches, free_slots, dirty_pages,
        metadata, regions, ledger, files, stacks, other_mappings, other_allocators, is_profiled,
        not_in_memory, resident,
    } plus "lines": Balance::lines;
    BalanceLine { part, bytes, meaning };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &(impl Json + ?Sized)) -> String {
        let mut text = String::new();
        value.append_to(&mut text);
        text
    }

    #[test]
    fn texts_are_read_back() {
        for text in ["", "plain", "\"\\/", "\0\n\r\t\u{1f}\u{7f}", "é名😀\u{2028}\u{2029}", "</script>"] {
            let written = json(text);
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text, "{written}");
            assert!(!written.contains(['\n', '\r', '\u{2028}', '<']), "{written}");
        }
    }

    #[test]
    fn numbers_are_exact() {
        assert_eq!(json(&[u64::MAX, 0][..]), "[18446744073709551615,0]");
        assert_eq!(json(&i64::MIN), "-9223372036854775808");
        for number in [0.1 + 0.2, 1e300, -5e-324, 3.0] {
            assert_eq!(json(&number).parse::<f64>().unwrap(), number);
        }
        assert_eq!(json(&vec![Some(f64::NAN), Some(f64::INFINITY), None]), "[null,null,null]");
    }
}
