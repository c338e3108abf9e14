//! The `tracing` events of target `dogtag`, as they come.

use super::child::watch;
use std::fmt;
use std::sync::{Mutex, Once};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static TOLD: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "dogtag"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Text(String);

        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }

        let mut text = Text(String::new());
        event.record(&mut text);
        TOLD.lock().unwrap().push((*event.metadata().level(), text.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// From now on all are listened to, trace ones too: they are the most that is to be told.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Listener).unwrap());
}

/// Those that have such a text, and what they say of a field.
pub fn told(text: &str, field: &str) -> Vec<(Level, u64)> {
    let told = TOLD.lock().unwrap();
    // The message comes first.
    let value = |told: &str| told.split_once(&format!(" {field}="))?.1.split(' ').next()?.parse().ok();
    told.iter()
        .filter(|(_, told)| told.contains(text))
        .filter_map(|(level, told)| Some((*level, value(told)?)))
        .collect()
}

/// What all of them say in sum.
pub fn sum(text: &str, field: &str) -> u64 {
    told(text, field).iter().map(|(_, number)| number).sum()
}

/// Waits until so much in all was told by a field of such events, whose level is that one.
pub fn wait_for(text: &str, field: &str, level: Level, sum: u64) {
    watch::eventually(|| {
        // Who ends a scope, or asks for figures, has it told; not more often than each second.
        let _ = dogtag::snapshot();
        let told = told(text, field);
        assert!(told.iter().all(|(its, _)| *its == level), "{told:?}");
        if self::sum(text, field) >= sum { Ok(()) } else { Err(format!("not told: {text:?}, {told:?}")) }
    });
}
