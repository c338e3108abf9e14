//! A copy of an event, without its parent.

use std::error::Error;
use std::fmt;
use tracing::Event;
use tracing::field::{DebugValue, Field, Value, Visit, debug};

/// Calls `f` with a copy of the event that has no parent. Debug values are formatted, and
/// errors copied with what they come from.
pub(super) fn with_root<R>(event: &Event<'_>, f: impl FnOnce(&Event<'_>) -> R) -> R {
    /// As many as an event may have with all versions of `tracing`. Those beyond are left out.
    const MOST: usize = 32;

    let mut copies = Copies(Vec::new());
    event.record(&mut copies);
    let metadata = event.metadata();
    let Some((first, _)) = copies.0.first() else {
        return f(&Event::new_child_of(None, metadata, &metadata.fields().value_set(&[])));
    };
    let mut values: [(&Field, Option<&dyn Value>); MOST] = [(first, None); MOST];
    for (place, (field, copy)) in values.iter_mut().zip(&copies.0) {
        *place = (field, Some(copy.value()));
    }
    f(&Event::new_child_of(None, metadata, &metadata.fields().value_set(&values)))
}

struct Copies(Vec<(Field, Copied)>);

enum Copied {
    F64(f64),
    I64(i64),
    U64(u64),
    I128(i128),
    U128(u128),
    Bool(bool),
    Str(String),
    Error(Box<dyn Error>),
    Debug(DebugValue<Formatted>),
}

impl Copied {
    fn value(&self) -> &dyn Value {
        match self {
            Self::F64(value) => value,
            Self::I64(value) => value,
            Self::U64(value) => value,
            Self::I128(value) => value,
            Self::U128(value) => value,
            Self::Bool(value) => value,
            Self::Str(value) => value,
            Self::Error(value) => value,
            Self::Debug(value) => value,
        }
    }
}

impl Copies {
    fn add(&mut self, field: &Field, copy: Copied) {
        self.0.push((field.clone(), copy));
    }
}

impl Visit for Copies {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Copied::F64(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Copied::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Copied::U64(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, Copied::I128(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.add(field, Copied::U128(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Copied::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Copied::Str(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field, Copied::Error(Box::new(CopiedError::of(value))));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Copied::Debug(debug(Formatted::of(value))));
    }
}

/// A value as `{:?}` and as `{:#?}`.
struct Formatted {
    plain: String,
    pretty: String,
}

impl Formatted {
    fn of(value: &dyn fmt::Debug) -> Self {
        Self { plain: format!("{value:?}"), pretty: format!("{value:#?}") }
    }
}

impl fmt::Debug for Formatted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if f.alternate() { &self.pretty } else { &self.plain })
    }
}

struct CopiedError {
    text: String,
    debug: Formatted,
    source: Option<Box<CopiedError>>,
}

impl CopiedError {
    fn of(error: &(dyn Error + 'static)) -> Self {
        Self {
            text: error.to_string(),
            debug: Formatted::of(&error),
            source: error.source().map(|source| Box::new(Self::of(source))),
        }
    }
}

impl fmt::Display for CopiedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CopiedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.debug.fmt(f)
    }
}

impl Error for CopiedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
