//! What tracing-opentelemetry exports, tracing-error prints and the crate `log` hands over is the same with
//! `dogtag::attributed` as without, whatever the program's filter leaves out; and all spans have services.
//!
//! With the feature `compiled-out` spans above the level info are not in the program, and `attributed` says so.
//!
//! `cargo run`, which runs itself once for each of its set-ups, since there is one global subscriber in a
//! process.
#![forbid(unsafe_code)]

use dogtag::{Dogtag, Service};
use opentelemetry::trace::{TraceContextExt, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::{env, io};
use tracing::{Span, debug_span, error, field, info, info_span, warn};
use tracing_error::{ErrorLayer, SpanTrace};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, prelude::*, registry};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const FILTERS: [&str; 5] = ["debug", "off", "error", "warn", "info"];
const SETUPS: [&str; 2] = ["whole", "layers"];

fn main() {
    if cfg!(feature = "compiled-out") {
        return compiled_out();
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [setup, filter, is_attributed] = &arguments[..] {
        return run(setup, filter, is_attributed == "attributed");
    }
    for setup in SETUPS {
        for filter in FILTERS {
            let [before, after] = ["plain", "attributed"].map(|which| {
                let child = Command::new(env::current_exe().unwrap()).args([setup, filter, which]).output();
                let output = child.unwrap();
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{setup}, {filter}, {which}: {errors}");
                String::from_utf8(output.stdout).unwrap()
            });
            assert!(before == after, "{setup}, {filter}: before\n{before}\nafter\n{after}");
            println!("{setup}, {filter}: {} lines, the same", before.lines().count());
        }
    }
}

fn compiled_out() {
    let log = Log::default();
    let writer = {
        let log = log.clone();
        move || log.clone()
    };
    let lines = fmt().with_max_level(tracing::Level::WARN).with_ansi(false).with_writer(writer);
    dogtag::attributed(lines.finish()).init();
    assert!(info_span!("in").in_scope(Service::current).name() == "dogtag_setups");
    assert!(debug_span!("out").is_disabled());
    for _ in 0..1000 {
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        if text.contains("spans above this level are not compiled in") && text.contains("above=info") {
            return println!("{text}");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("nothing was said of spans that are not compiled in");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn run(setup: &str, filter: &str, is_attributed: bool) {
    let (log, exporter) = (Log::default(), InMemorySpanExporter::default());
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let tracer = provider.tracer("setups");
    let filter = || EnvFilter::new(filter);
    let writer = {
        let log = log.clone();
        move || log.clone()
    };
    let lines = fmt::layer().without_time().with_ansi(false).with_writer(writer);
    if setup == "whole" {
        let layers = registry()
            .with(lines)
            .with(tracing_opentelemetry::layer().with_tracer(tracer))
            .with(ErrorLayer::default())
            .with(filter());
        if is_attributed { dogtag::attributed(layers).init() } else { layers.init() }
    } else {
        let layers = registry()
            .with(lines.with_filter(filter()))
            .with(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(filter()));
        if is_attributed { dogtag::attributed(layers).init() } else { layers.init() }
    }
    println!("log up to {}", log::max_level());
    program(is_attributed);
    provider.force_flush().unwrap();
    let spans = exporter.get_finished_spans().unwrap();
    for span in &spans {
        let name = |id| spans.iter().find(|span| span.span_context.span_id() == id).map(|span| &span.name);
        let SpanData { name: own, parent_span_id, events, links, attributes, .. } = span;
        let mut fields: Vec<_> =
            attributes.iter().map(|field| format!("{}={}", field.key, field.value)).collect();
        fields.retain(|field| {
            !["busy_ns", "idle_ns", "code.", "thread."].iter().any(|own| field.starts_with(own))
        });
        let events: Vec<_> = events.iter().map(|event| &event.name).collect();
        println!("exported {own} in {:?}: {fields:?} {events:?} {}", name(*parent_span_id), links.len());
    }
    print!("{}", String::from_utf8(log.0.lock().unwrap().clone()).unwrap());
}

/// Spans that are handed to extensions, whether the filter leaves them out or not.
fn program(is_attributed: bool) {
    let within = |span: &Span, name: &str| {
        if is_attributed {
            assert_eq!(span.in_scope(Service::current).name(), name);
        }
    };
    let outer = info_span!("outer", service = "outer", later = field::Empty);
    let entered = outer.enter();
    let inner = debug_span!("inner", service = "inner");
    for span in [&outer, &inner] {
        span.set_attribute("attribute", 7);
        let context = span.context();
        println!("a context: {}", context.span().span_context().is_valid());
        let _ = inner.set_parent(context.clone());
        span.add_link(context.span().span_context().clone());
    }
    inner.in_scope(|| {
        println!("the current context: {}", Span::current().context().span().span_context().is_valid());
        Span::current().record("later", "recorded on the current one");
        info!("in inner");
        error!(parent: &inner, "with a parent");
        warn!("a warning");
        log::debug!("of log: debug");
        log::info!("of log: info");
        log::error!("of log: error");
        let child = info_span!("child");
        within(&child, "dogtag_setups");
        if child.in_scope(Span::current).id() == child.id() {
            // A span that the program's own layers know.
            println!("{}", child.in_scope(SpanTrace::capture).to_string().len() < 10_000);
        }
        child.follows_from(&outer);
        child.follows_from(&inner);
    });
    within(&inner, "inner");
    within(&outer, "outer");
    drop(entered);
    // In none that the program wants.
    println!("{:?}", SpanTrace::capture().status());
}
