//! The `tracing` events of target `dogtag`: each is emitted once, by no allocation.

use crate::watch;
use dogtag::{RegisterError, Service};
use std::fmt;
use std::sync::{Mutex, Once};
use std::thread;
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::{Layer, prelude::*, registry};

static TOLD: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

struct Listener;

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Text(String);

        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }

        if event.metadata().target() == "dogtag" {
            let mut text = Text(String::new());
            event.record(&mut text);
            TOLD.lock().unwrap().push((*event.metadata().level(), text.0));
        }
    }
}

/// What was reported of a service so far.
fn told_of(service: &str) -> Vec<(Level, String)> {
    let name = format!("service={service:?} ");
    let told = TOLD.lock().unwrap();
    told.iter().filter(|(_, text)| text.contains(&name)).cloned().collect()
}

/// Waits until so much was reported of a service.
fn wait_for(service: &str, events: usize) -> Vec<(Level, String)> {
    watch::eventually(|| {
        let told = told_of(service);
        if told.len() >= events { Ok(told) } else { Err(format!("not told: {told:?}")) }
    })
}

fn listen() {
    static ONCE: Once = Once::new();

    ONCE.call_once(|| registry().with(Listener).init());
}

/// A service that could not be registered was none, and so it is not retired.
#[test]
fn events_tell_nothing_of_services_that_are_refused() {
    alone!();
    listen();
    let owner = Service::builder("owner of the handle").handle(77).register().unwrap();
    let error = Service::builder("refused").handle(77).parent(&owner).register().unwrap_err();
    assert!(matches!(error, RegisterError::HandleTaken { .. }), "{error}");
    // They come in order.
    drop(Service::register("after the refusal").unwrap());
    assert_eq!(wait_for("after the refusal", 2).len(), 2);
    assert_eq!(told_of("refused"), []);
    // Nor does the parent that it would have had stay for its sake.
    drop(owner);
    assert_eq!(wait_for("owner of the handle", 2).len(), 2);
}

/// Of a span that names a service which there cannot be: there is nobody to return an error to.
#[cfg(feature = "tracing-layer")]
#[test]
fn events_tell_of_names_that_are_none() {
    alone!();
    listen();
    let long = "é".repeat(1 << 20);
    tracing::subscriber::with_default(registry().with(dogtag::ServiceLayer::new()), || {
        for (name, cut) in [("", ""), (&*long, &long[..254])] {
            // Once a second, so it may take some.
            let (level, text) = watch::eventually(|| {
                tracing::info_span!("a", service = name);
                told_of(cut).pop().ok_or("it is not told")
            });
            assert_eq!(level, Level::ERROR);
            assert!(text.contains("the one that it names cannot be registered"), "{text}");
            assert!(text.len() < 1500, "{} bytes", text.len());
        }
    });
}

#[test]
fn events_tell_what_happens_to_services() {
    alone!();
    listen();

    // A beginning and an end.
    let parent = Service::register("parent").unwrap();
    let child = Service::builder("child").parent(&parent).handle(77).register().unwrap();
    let (level, text) = wait_for("child", 1).pop().unwrap();
    assert_eq!(level, Level::TRACE);
    for part in ["handle=77 ", "parent=\"parent\" ", "registered"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(Service::register("child").unwrap(), child);
    assert_eq!(told_of("child").len(), 1, "a service that is found is told of again");
    drop(child.clone());
    assert_eq!(told_of("child").len(), 1, "a clone's end is told of");
    let block = child.run(|| Box::new(1));
    drop(child);
    let (level, text) = wait_for("child", 2).pop().unwrap();
    assert_eq!((level, told_of("child").len()), (Level::TRACE, 2));
    assert!(text.contains("handle=77 ") && text.contains("retired"), "{text}");
    drop(block);

    // What denies, however often: once a second. The service with the limit is
    // named, and what is below it has asked.
    let tenant = Service::builder("tenant").hard_limit(1 << 20).register().unwrap();
    let query = Service::builder("query").parent(&tenant).register().unwrap();
    let begin = std::time::Instant::now();
    for _ in 0..1000 {
        assert!(query.run(|| Vec::<u8>::new().try_reserve(2 << 20)).is_err());
    }
    let told = wait_for("tenant", 2);
    let (_, text) = told.iter().find(|(level, _)| *level == Level::WARN).unwrap();
    for part in ["denies", "hard_limit=1048576 ", "total_denied="] {
        assert!(text.contains(part), "{text}");
    }
    thread::sleep(Duration::from_millis(1100));
    let told = told_of("tenant").len();
    // The slower, the more.
    assert!(told as u64 <= 2 + begin.elapsed().as_secs(), "{:?}", told_of("tenant"));
    assert!(query.run(|| Vec::<u8>::new().try_reserve(2 << 20)).is_err());
    watch::eventually(|| {
        // Asking for figures has it reported, not more often than each second.
        let _ = dogtag::snapshot();
        let told = told_of("tenant");
        let is_told = told.iter().any(|(_, text)| text.contains("total_denied=1001 "));
        if is_told { Ok(()) } else { Err(format!("not told: {told:?}")) }
    });

    // Both limits of one service are reported apart.
    let both = Service::builder("both").soft_limit(1000).hard_limit(1 << 20).register().unwrap();
    let block = both.run(|| vec![0_u8; 2000]);
    assert!(both.run(|| Vec::<u8>::new().try_reserve(2 << 20)).is_err());
    let told = wait_for("both", 3);
    assert!(told.iter().any(|(_, text)| text.contains("soft limit")), "{told:?}");
    assert!(told.iter().any(|(_, text)| text.contains("denies")), "{told:?}");
    drop(block);
}

#[cfg(feature = "guard")]
#[test]
fn events_tell_who_was_cancelled_and_why() {
    alone!();
    listen();
    let query = Service::builder("cancelled query").handle(78).register().unwrap();
    let rows = query.run(|| vec![0_u8; 1000]);
    query.cancel("too slow");
    query.cancel("once more");
    drop((query, rows));
    let told = wait_for("cancelled query", 3);
    let is_of = |text: &str| told.iter().filter(|(_, told)| told.contains(text)).count();
    assert_eq!((told.len(), is_of("registered"), is_of("retired")), (3, 1, 1), "{told:?}");
    let (level, text) = &told[1];
    assert_eq!(*level, Level::WARN);
    for part in ["handle=78 ", "bytes=1000 ", "reason=\"too slow\" ", "a service was cancelled"] {
        assert!(text.contains(part), "{text}");
    }
}
