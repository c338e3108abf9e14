//! [`attributed`]: the program's layers are told what they were told before, whatever its filters leave out.

use super::*;
use dogtag::attributed;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, debug, debug_span, error, field, trace_span, warn, warn_span};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::registry::SpanRef;
use tracing_subscriber::{EnvFilter, reload};

/// What a program's layers have written.
#[derive(Clone, Default)]
pub(super) struct Output(Arc<Mutex<String>>);

impl Output {
    pub(super) fn line(&self, line: String) {
        let mut output = self.0.lock().unwrap();
        *output += &line;
        output.push('\n');
    }

    pub(super) fn take(&self) -> String {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn log(&self) -> impl Fn() -> Self + use<> {
        let output = self.clone();
        move || output.clone()
    }
}

impl io::Write for Output {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        *self.0.lock().unwrap() += std::str::from_utf8(text).unwrap();
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes down all that a layer is told, and what it sees of it.
pub(super) struct Recorder(pub(super) Output);

struct Fields(String);

impl field::Visit for Fields {
    fn record_debug(&mut self, field: &field::Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}|{value:#?}").unwrap();
    }

    fn record_i64(&mut self, field: &field::Field, value: i64) {
        write!(self.0, " {field}={value}i64").unwrap();
    }

    fn record_str(&mut self, field: &field::Field, value: &str) {
        write!(self.0, " {field}={value}str").unwrap();
    }

    fn record_error(&mut self, field: &field::Field, mut value: &(dyn std::error::Error + 'static)) {
        write!(self.0, " {field}={value}|{value:?}").unwrap();
        while let Some(source) = value.source() {
            write!(self.0, " from {source}|{source:?}").unwrap();
            value = source;
        }
    }
}

fn fields(record: impl FnOnce(&mut Fields)) -> String {
    let mut fields = Fields(String::new());
    record(&mut fields);
    fields.0
}

fn path<'a, S: LookupSpan<'a>>(span: Option<SpanRef<'a, S>>) -> String {
    let path =
        span.map(|span| span.scope().from_root().map(|span| span.name()).collect::<Vec<_>>().join(":"));
    path.unwrap_or_else(|| "nothing".to_owned())
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let fields = fields(|fields| attributes.record(fields));
        let (is_root, is_contextual) = (attributes.is_root(), attributes.is_contextual());
        self.0.line(format!("made {}{fields} {is_root} {is_contextual}", path(context.span(id))));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.line(format!("{} has{}", path(context.span(id)), fields(|fields| values.record(fields))));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        self.0.line(format!("{} follows {}", path(context.span(id)), path(context.span(follows))));
    }

    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        self.0.line(format!("asked for an event in {}", path(context.event_span(event))));
        true
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let fields = fields(|fields| event.record(fields));
        let (is_root, is_contextual) = (event.is_root(), event.is_contextual());
        self.0
            .line(format!("event in {}{fields} {is_root} {is_contextual}", path(context.event_span(event))));
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.0.line(format!("entered {}, is in {}", path(context.span(id)), path(context.lookup_current())));
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.0.line(format!("left {}, is in {}", path(context.span(id)), path(context.lookup_current())));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.0.line(format!("closed {}", path(context.span(&id))));
    }
}

#[derive(Debug)]
struct Failure(io::Error);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it failed")
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A program with spans and events of all levels, in all relations. It says itself what it sees.
fn program(output: &Output) {
    let names = |span: Span| span.metadata().map(Metadata::name);
    let outer = info_span!("outer", number = 1, later = field::Empty);
    let entered = outer.enter();
    error!("in outer");
    debug!(number = 2, "debug in outer");
    let debugged = debug_span!("debugged", service = "debugged", text = %"text", later = field::Empty);
    let (warned, kept) = debugged.in_scope(|| {
        info!(number = 3, "in debugged");
        let inner = info_span!("inner", service = "inner");
        inner.in_scope(|| {
            warn!("in inner");
            Span::current().record("later", "recorded on the current one");
            trace_span!("traced", later = field::Empty).in_scope(|| {
                warn!("in traced");
                Span::current().record("later", "recorded on the current one");
            });
        });
        let warned = warn_span!(parent: &debugged, "warned", later = field::Empty);
        warned.in_scope(|| warn!("in warned"));
        warned.follows_from(&debugged);
        debugged.follows_from(&warned);
        warned.follows_from(&outer);
        let failure = Failure(io::Error::other("source"));
        let failure: &dyn std::error::Error = &failure;
        error!(parent: &debugged, failure, list = ?[1, 2], text = %"a\nb", number = 7, "{} parent", "debugged");
        error!(parent: &debugged, yes = true, real = 0.5, wide = 1_u128 << 100, text = "text");
        error!(parent: &warned, "warned parent");
        error!(parent: None, "no parent");
        error!(parent: Span::current(), "current parent");
        let children = [
            info_span!(parent: Span::current(), "child of the current one"),
            warn_span!(parent: &inner, "child of inner"),
            warn_span!(parent: None, "child of none"),
            debug_span!("debugged child"),
        ];
        let clones = children.clone();
        children.iter().for_each(|child| child.in_scope(|| error!("in a child")));
        drop(children);
        (warned, clones)
    });
    debugged.record("later", 5);
    outer.record("later", "recorded");
    warned.record("later", true);
    drop(entered);
    output.line(format!("in {:?}", names(Span::current())));
    // In another order, and on another thread.
    let (a, b, c) = (outer.clone().entered(), debugged.clone().entered(), warned.clone().entered());
    let a = a.exit();
    error!("in debugged and warned");
    let grandchild = error_span(&a);
    drop(c.exit());
    error!("in debugged only");
    drop((a, b));
    let dispatch = tracing::dispatcher::get_default(Dispatch::clone);
    thread::scope(|threads| {
        threads.spawn(|| {
            tracing::dispatcher::with_default(&dispatch, || {
                debugged.in_scope(|| {
                    error!("elsewhere");
                    grandchild.in_scope(|| error!("elsewhere"));
                    let new = info_span!("made elsewhere").entered();
                    error!("elsewhere");
                    // Closed where it is not entered, at last.
                    drop((kept, new));
                });
            });
        });
    });
    drop((outer, debugged, warned, grandchild));
    for level in [Level::ERROR, Level::INFO, Level::DEBUG] {
        let (spans, events, any) = match level {
            Level::ERROR => (span_enabled(&Level::ERROR), tracing::enabled!(Level::ERROR), 0),
            Level::INFO => {
                let any = u32::from(tracing::event_enabled!(Level::INFO));
                (tracing::span_enabled!(Level::INFO), tracing::enabled!(Level::INFO), any)
            }
            _ => (tracing::span_enabled!(Level::DEBUG), tracing::enabled!(Level::DEBUG), 0),
        };
        output.line(format!("{level}: {spans} {events} {any}"));
    }
}

fn span_enabled(_: &Level) -> bool {
    tracing::span_enabled!(Level::ERROR)
}

fn error_span(parent: &Span) -> Span {
    tracing::error_span!(parent: parent, "grandchild")
}

/// What the program writes, and whether its spans have services. On a thread of its own: what filters of
/// layers are asked by `enabled!` stays with the thread.
fn run<S: Into<Dispatch>>(
    make: impl FnOnce(&Output) -> (S, Box<dyn FnOnce()>) + Send,
) -> (String, [String; 2]) {
    let run = || {
        let output = Output::default();
        let (subscriber, later) = make(&output);
        tracing::dispatcher::with_default(&subscriber.into(), || {
            program(&output);
            later();
            output.line("later".to_owned());
            program(&output);
            let written = output.take();
            let services = [
                within(&debug_span!("a", service = "a service")),
                within(&info_span!("b", service = "another service")),
            ];
            assert_eq!(current(), "unattributed");
            (written, services)
        })
    };
    thread::scope(|threads| threads.spawn(run).join().unwrap())
}

fn check<S: Subscriber + Send + Sync>(what: &str, make: impl Fn(&Output) -> (S, Box<dyn FnOnce()>) + Sync) {
    let (before, _) = run(&make);
    let (after, services) = run(|output| {
        let (subscriber, later) = make(output);
        (attributed(subscriber), later)
    });
    assert_eq!(services, ["a service", "another service"], "{what}");
    if before != after {
        let other = before.lines().zip(after.lines()).position(|(before, after)| before != after);
        let at = other.unwrap_or(before.lines().count().min(after.lines().count()));
        let [before, after] = [&before, &after]
            .map(|text| text.lines().skip(at.saturating_sub(3)).take(5).collect::<Vec<_>>().join("\n"));
        panic!("{what}: from line {at} on, before:\n{before}\nafter:\n{after}");
    }
}

fn nothing() -> Box<dyn FnOnce()> {
    Box::new(|| ())
}

// dogtag's own events tell of the services.
const FILTERS: [&str; 9] = [
    "off",
    "error",
    "warn",
    "info",
    "debug,dogtag=off",
    "trace,dogtag=off",
    "off,[outer]=info",
    "warn,[debugged{text}]=trace,dogtag=off",
    "off,[inner{service=inner}]=trace,dogtag=off",
];

#[test]
fn the_output_of_a_program_does_not_change() {
    alone!();
    for filter in FILTERS {
        check(&format!("fmt, {filter}"), |output| {
            let builder = fmt().with_env_filter(filter).with_span_events(FmtSpan::FULL).without_time();
            (builder.with_ansi(false).with_writer(output.log()).finish(), nothing())
        });
        check(&format!("pretty, {filter}"), |output| {
            let layer = fmt::layer().without_time().with_ansi(false).with_writer(output.log());
            (registry().with(layer).with(EnvFilter::new(filter)), nothing())
        });
        check(&format!("a layer below the filter, {filter}"), |output| {
            (registry().with(EnvFilter::new(filter)).with(Recorder(output.clone())), nothing())
        });
        check(&format!("a filter of a layer, {filter}"), |output| {
            (registry().with(Recorder(output.clone()).with_filter(EnvFilter::new(filter))), nothing())
        });
        check(&format!("filters of layers, {filter}"), |output| {
            let log = fmt::layer().without_time().with_ansi(false).with_writer(output.log());
            let layers = registry()
                .with(log.with_filter(EnvFilter::new(filter)))
                .with(Recorder(output.clone()).with_filter(LevelFilter::WARN));
            (layers, nothing())
        });
        check(&format!("a filter in a filter, {filter}"), |output| {
            let layers = registry()
                .with(Recorder(output.clone()).with_filter(LevelFilter::INFO))
                .with(EnvFilter::new(filter));
            (layers, nothing())
        });
    }
    for level in [LevelFilter::OFF, LevelFilter::WARN, LevelFilter::INFO] {
        check(&format!("fmt at {level}"), |output| {
            let log = fmt().with_max_level(level).without_time().with_ansi(false);
            (log.with_writer(output.log()).finish(), nothing())
        });
        check(&format!("unattributed, {level}"), |output| {
            (registry().with(Recorder(output.clone())).with(level).unattributed(), nothing())
        });
        check(&format!("in a box, {level}"), |output| {
            let boxed: Box<dyn Subscriber + Send + Sync> =
                Box::new(registry().with(level).with(Recorder(output.clone())));
            (boxed, nothing())
        });
        check(&format!("a filter that only names a level, {level}"), |output| {
            (registry().with(Recorder(output.clone())).with(Hint(level)), nothing())
        });
        check(&format!("a function, {level}"), |output| {
            let is_wanted =
                filter_fn(move |metadata| *metadata.level() <= level && metadata.name() != "inner");
            (registry().with(Recorder(output.clone())).with(is_wanted), nothing())
        });
    }
    check("no filter", |output| (registry().with(Recorder(output.clone())), nothing()));
}

/// A layer that filters nothing, and says up to which level it wants something.
struct Hint(LevelFilter);

impl<S: Subscriber> Layer<S> for Hint {
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }
}

#[test]
fn nor_does_it_when_its_filter_is_exchanged() {
    alone!();
    for (first, second) in
        [("off", "info"), ("info", "off"), ("error", "debug,dogtag=off"), ("warn", "error")]
    {
        check(&format!("{first}, then {second}"), |output| {
            let (filter, handle) = reload::Layer::new(EnvFilter::new(first));
            let layers = registry().with(filter).with(Recorder(output.clone()));
            (layers, Box::new(move || handle.reload(EnvFilter::new(second)).unwrap()))
        });
        check(&format!("of a layer: {first}, then {second}"), |output| {
            let (filter, handle) = reload::Layer::new(EnvFilter::new(first));
            let layers = registry().with(Recorder(output.clone()).with_filter(filter));
            (layers, Box::new(move || handle.reload(EnvFilter::new(second)).unwrap()))
        });
    }
}

#[test]
fn the_level_and_the_layer_can_be_chosen() {
    alone!();
    let own = module_path!().split("::").next().unwrap();
    let log = || fmt().with_max_level(LevelFilter::ERROR).with_writer(io::sink).finish();
    with_default(attributed(log()), || {
        assert_eq!(within(&info_span!("a")), own);
        assert_eq!(within(&debug_span!("a")), own);
        assert_eq!(within(&trace_span!("a")), "unattributed");
    });
    with_default(attributed(log()).with_max_level(LevelFilter::TRACE), || {
        assert_eq!(within(&trace_span!("a")), own);
    });
    with_default(attributed(log()).with_max_level(LevelFilter::WARN), || {
        assert_eq!(within(&info_span!("a")), "unattributed");
        assert_eq!(within(&tracing::error_span!("a")), own);
    });
    with_default(attributed(log()).with_layer(ServiceLayer::by_target()), || {
        assert_eq!(within(&info_span!("a")), module_path!());
    });
    with_default(attributed(registry()), || assert_eq!(within(&trace_span!("a")), own));
}

#[test]
fn it_is_the_global_subscriber() {
    alone!();
    let output = Output::default();
    let log = fmt().with_env_filter("warn").with_ansi(false).without_time().with_writer(output.log());
    attributed(log.finish()).init();
    assert_eq!(LevelFilter::current(), LevelFilter::DEBUG);
    assert!(attributed(registry()).try_init().is_err());
    let span = info_span!(target: "a_library::module", "a", b = 1);
    assert_eq!(within(&span), "a_library");
    span.in_scope(|| {
        info!("nobody reads this");
        warn!("somebody reads this");
    });
    assert_eq!(output.take(), format!(" WARN {}: somebody reads this\n", module_path!()));
    assert_eq!(thread::scope(|threads| threads.spawn(|| within(&span)).join().unwrap()), "a_library");
}

#[test]
fn it_is_installed_without_an_extension() {
    alone!();
    let output = Output::default();
    let layers = registry()
        .with(Recorder(output.clone()).with_filter(EnvFilter::new("warn")))
        .with(fmt::layer().with_writer(io::sink).with_filter(LevelFilter::ERROR));
    tracing::subscriber::set_global_default(attributed(layers)).unwrap();
    assert_eq!(within(&debug_span!("a", service = "globally")), "globally");
    assert_eq!(within(&trace_span!("a", service = "beyond the level")), "unattributed");
    assert_eq!(output.take(), "");
}

/// A subscriber of the program's own, without a registry.
struct Own(Output);

impl Subscriber for Own {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        self.0.line(format!("made {}", attributes.metadata().name()));
        Id::from_u64(7)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.0.line(format!("event {}", fields(|fields| event.record(fields))));
    }

    fn enter(&self, id: &Id) {
        self.0.line(format!("entered {id:?}"));
    }

    fn exit(&self, id: &Id) {
        self.0.line(format!("left {id:?}"));
    }
}

/// It is told everything.
#[test]
fn a_subscriber_without_a_registry_is_as_it_was() {
    alone!();
    let [before, after] = [false, true].map(|is_attributed| {
        let output = Output::default();
        let own = Own(output.clone());
        let dispatch = if is_attributed { Dispatch::new(attributed(own)) } else { Dispatch::new(own) };
        tracing::dispatcher::with_default(&dispatch, || program(&output));
        output.take()
    });
    assert_eq!(before, after);
    assert!(before.contains("made outer"), "{before}");
}

#[test]
fn who_has_no_registry_is_told_so() {
    alone!();
    let output = Output::default();
    attributed(Own(output.clone())).init();
    let written = || output.0.lock().unwrap().clone();
    crate::watch::eventually(|| {
        let written = written();
        if written.contains("has no `Registry`") { Ok(()) } else { Err(written) }
    });
    assert_eq!(within(&info_span!("a")), "unattributed");
    assert_eq!(written().lines().filter(|line| line.contains("has no `Registry`")).count(), 1);
}
