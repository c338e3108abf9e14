//! Spans whose callsite has one service, under a filter that leaves some out: random programs against a
//! simple model, and against the same program without dogtag.

use super::attributed::{Output, Recorder};
use super::*;
use dogtag::attributed;
use std::collections::BTreeSet;
use std::sync::mpsc;
use tracing::span::Id;
use tracing::{debug_span, error, field, warn_span};

/// A thread that does what it is told, one thing after the other.
struct Other {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    done: mpsc::Receiver<()>,
}

impl Other {
    fn run<'scope>(threads: &'scope thread::Scope<'scope, '_>, dispatch: &Dispatch) -> Self {
        let (jobs, todo) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (tell, done) = mpsc::channel();
        let dispatch = dispatch.clone();
        threads.spawn(move || {
            tracing::dispatcher::with_default(&dispatch, || {
                todo.into_iter().for_each(|job| {
                    job();
                    tell.send(()).unwrap();
                });
            });
        });
        Self { jobs, done }
    }

    fn does<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let (give, take) = mpsc::channel();
        self.jobs.send(Box::new(move || give.send(job()).unwrap())).unwrap();
        self.done.recv().unwrap();
        take.recv().unwrap()
    }
}

const TARGETS: [&str; 4] = ["callsite a", "callsite b", "callsite c", "callsite d"];

/// `c` and `d` are left out by a filter at `info`.
fn make(callsite: usize, parent: Option<Option<Id>>) -> Span {
    macro_rules! make {
        ($span:ident, $target:literal) => {
            match parent {
                None => $span!(target: $target, $target, later = field::Empty),
                Some(parent) => $span!(target: $target, parent: parent, $target, later = field::Empty),
            }
        };
    }
    match callsite {
        0 => make!(warn_span, "callsite a"),
        1 => make!(info_span, "callsite b"),
        2 => make!(debug_span, "callsite c"),
        _ => make!(debug_span, "callsite d"),
    }
}

type Step = (usize, usize, usize, bool);

/// Does the steps, on two threads. Says for each step what service either thread is in.
fn program(dispatch: &Dispatch, steps: &[Step], mut says: impl FnMut(usize, [String; 2], [&str; 2])) {
    thread::scope(|threads| {
        let other = Other::run(threads, dispatch);
        tracing::dispatcher::with_default(dispatch, || {
            // Each with its service and a number, which its clones share.
            let mut spans: Vec<(Span, &str, usize)> = vec![];
            let mut entered: [Vec<(Span, &str, usize)>; 2] = [vec![], vec![]];
            for (number, &(what, which, parent, elsewhere)) in steps.iter().enumerate() {
                let chosen = (!spans.is_empty()).then(|| which % spans.len().max(1));
                let span = chosen.map(|chosen| spans[chosen].0.clone());
                let thread = usize::from(elsewhere);
                match (what, span) {
                    (0..=2, _) | (_, None) => {
                        let parent_id = match parent % 8 {
                            0 => Some(None),
                            1 if !spans.is_empty() => Some(spans[which % spans.len()].0.id()),
                            _ => None,
                        };
                        let callsite = which % 4;
                        let job = move || make(callsite, parent_id);
                        let made = if elsewhere { other.does(job) } else { job() };
                        spans.push((made, TARGETS[callsite], number));
                    }
                    (3..=5, Some(span)) => {
                        let (_, service, number) = spans[chosen.unwrap()];
                        entered[thread].push((span.clone(), service, number));
                        let job = move || _ = span.with_subscriber(|(id, dispatch)| dispatch.enter(id));
                        if elsewhere { other.does(job) } else { job() }
                    }
                    (6..=8, Some(_)) => {
                        if entered[thread].is_empty() {
                            continue;
                        }
                        let at = parent % entered[thread].len();
                        let (span, _, number) = entered[thread][at].clone();
                        // Which of a span's several entries goes, tracing does not tell: the last one.
                        let last = entered[thread].iter().rposition(|entry| entry.2 == number).unwrap();
                        let gone = entered[thread].remove(last);
                        let job = move || {
                            _ = span.with_subscriber(|(id, dispatch)| dispatch.exit(id));
                            drop(gone);
                        };
                        if elsewhere { other.does(job) } else { job() }
                    }
                    (9, Some(span)) => {
                        let (_, service, number) = spans[chosen.unwrap()];
                        spans.push((span, service, number));
                    }
                    (10, Some(span)) => {
                        let gone = spans.swap_remove(chosen.unwrap());
                        let job = move || drop((span, gone));
                        if elsewhere { other.does(job) } else { job() }
                    }
                    (11, Some(span)) => {
                        let job = move || {
                            span.record("later", 7);
                            error!(parent: &span, "of that span");
                            error!("of the current one");
                        };
                        if elsewhere { other.does(job) } else { job() }
                    }
                    (_, Some(span)) => {
                        span.follows_from(&spans[parent % spans.len()].0);
                    }
                }
                let model =
                    [0, 1].map(|thread: usize| entered[thread].last().map_or("unattributed", |last| last.1));
                says(number, [current(), other.does(current)], model);
            }
            // Left in any order, too.
            let [here, there] = entered;
            for (span, ..) in here {
                span.with_subscriber(|(id, dispatch)| dispatch.exit(id));
            }
            other.does(move || {
                for (span, ..) in there {
                    span.with_subscriber(|(id, dispatch)| dispatch.exit(id));
                }
            });
            says(steps.len(), [current(), other.does(current)], ["unattributed"; 2]);
        });
        drop(other);
    });
}

#[test]
fn spans_of_callsites_are_as_a_simple_model_has_them() {
    alone!();
    random_programs();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(256) as u32, ..ProptestConfig::default() })]

    fn random_programs(
        steps in proptest::collection::vec((0..13_usize, 0..32_usize, 0..32_usize, any::<bool>()), 0..120),
        filter in 0..4_usize,
    ) {
        let output = Output::default();
        let layers = || {
            let level = [LevelFilter::OFF, LevelFilter::WARN, LevelFilter::INFO, LevelFilter::TRACE][filter];
            let is_wanted = filter_fn(move |metadata| metadata.target() != "dogtag" && *metadata.level() <= level);
            registry().with(Recorder(output.clone())).with(is_wanted)
        };
        program(&Dispatch::new(layers()), &steps, |number, _, _| output.line(number.to_string()));
        let before = output.take();
        let layer = ServiceLayer::by_target();
        program(&Dispatch::new(attributed(layers()).with_layer(layer)), &steps, |number, services, model| {
            output.line(number.to_string());
            assert_eq!(services, model, "after step {number} of {steps:?}");
        });
        let after = output.take();
        prop_assert_eq!(before, after, "{:?}", steps);
    }
}

fn off(layer: ServiceLayer) -> Dispatch {
    attributed(fmt().with_max_level(LevelFilter::OFF).finish()).with_layer(layer).into()
}

/// What is attached to one span does not come to the next one of its callsite.
#[test]
fn a_service_is_attached_to_one_span_of_a_callsite() {
    alone!();
    let dispatch = off(ServiceLayer::by_target());
    tracing::dispatcher::with_default(&dispatch, || {
        let make = || debug_span!(target: "callsite attached", "a");
        let attached = Service::register("attached to one").unwrap();
        for _ in 0..3 {
            let (span, other) = (make(), make());
            let clone = span.clone();
            span.in_scope(|| {
                assert_eq!(current(), "callsite attached");
                assert!(attached.attach(&span));
                assert_eq!(current(), "attached to one");
                thread::scope(|threads| {
                    threads.spawn(|| assert_eq!(within(&clone), "attached to one")).join().unwrap();
                });
            });
            assert_eq!([within(&span), within(&other)], ["attached to one", "callsite attached"]);
            drop((span, clone));
            assert_eq!([within(&make()), within(&make())], ["callsite attached"; 2]);
        }
        drop(attached);
        // No span holds it.
        assert_eq!(Service::by_name("attached to one"), None);
    });
}

/// As many as are open at once, and no more.
#[test]
fn spans_of_callsites_are_made_again() {
    alone!();
    let dispatch = off(ServiceLayer::by_target());
    tracing::dispatcher::with_default(&dispatch, || {
        let make = || debug_span!(target: "callsite again", "a");
        let mut seen = BTreeSet::new();
        for _ in 0..100 {
            let spans: Vec<Span> = (0..100).map(|_| make()).collect();
            let numbers: BTreeSet<u64> = spans.iter().map(|span| span.id().unwrap().into_u64()).collect();
            assert_eq!(numbers.len(), 100, "each has its own number");
            seen.extend(numbers);
            // On another thread than the one that has made them.
            thread::scope(|threads| threads.spawn(|| drop(spans)).join().unwrap());
        }
        // A thread looks for one in its own place first, and there are few such places.
        assert!(seen.len() < 120, "{} were made", seen.len());
        // A span that is never closed holds no more than itself.
        let span = make();
        let id = dispatch.clone_span(&span.id().unwrap());
        drop(span);
        let next = make().id();
        assert_ne!(next.as_ref(), Some(&id));
        for _ in 0..1000 {
            assert_eq!(make().id(), next);
        }
    });
    drop(dispatch);
    assert_eq!(Service::by_name("callsite again"), None);
}

#[test]
fn many_threads_make_and_close_spans_of_one_callsite() {
    alone!();
    let dispatch = off(ServiceLayer::by_target());
    let (send, receive) = mpsc::channel::<Span>();
    let receive = std::sync::Mutex::new(receive);
    thread::scope(|threads| {
        for _ in 0..4 {
            let (dispatch, send, receive) = (dispatch.clone(), send.clone(), &receive);
            threads.spawn(move || {
                tracing::dispatcher::with_default(&dispatch, || {
                    for i in 0..times(20_000) {
                        let span = debug_span!(target: "callsite shared", "a");
                        let clone = span.clone();
                        assert_eq!(within(&span), "callsite shared");
                        send.send(clone).unwrap();
                        if i % 3 == 0 {
                            drop(span);
                        }
                        let other = receive.lock().unwrap().recv().unwrap();
                        assert_eq!(within(&other), "callsite shared");
                    }
                });
            });
        }
    });
    drop((send, receive, dispatch));
    assert_eq!(Service::by_name("callsite shared"), None);
}
