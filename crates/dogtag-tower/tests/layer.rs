//! What requests allocate, in stacks of tower's and in axum's routers: every byte is the request's.

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::Path;
use axum::routing::any;
use bytes::Bytes;
use dogtag::{Dogtag, InServiceExt, Service};
use dogtag_tower::{AttributedBody, AttributionLayer, Names};
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use tower::{Layer, Service as _, ServiceBuilder, ServiceExt, service_fn};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const CHUNK: usize = 64 << 10;

/// A body that is made in chunks, as it is read, and allocates when it is dropped.
struct Chunks {
    left: usize,
    kept: &'static Mutex<Vec<u8>>,
    /// Whether each chunk needs a second poll.
    waits: bool,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.waits = !self.waits;
        if self.waits {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![7; CHUNK])))))
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        *self.kept.lock().unwrap() = vec![0; 300];
    }
}

/// Until the test ends, which frees nothing.
fn kept() -> &'static Mutex<Vec<u8>> {
    Service::unattributed().run(|| Box::leak(Box::default()))
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

/// Pending once.
async fn pause() {
    let mut has_paused = false;
    poll_fn(|context| {
        has_paused = !has_paused;
        context.waker().wake_by_ref();
        if has_paused { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

fn live(service: &Service) -> (u64, u64) {
    (service.usage().bytes(), service.usage().blocks())
}

#[test]
fn every_byte_is_the_requests() {
    let (service, caller) =
        (Service::register("every byte").unwrap(), Service::register("its caller").unwrap());
    let (of_call, of_body, chosen) = (kept(), kept(), service.clone());
    let mut stack = ServiceBuilder::new()
        .layer(AttributionLayer::by(move |_: &Request<()>| Some(chosen.clone())))
        .service_fn(|_: Request<()>| {
            *of_call.lock().unwrap() = vec![0; 1000];
            async {
                pause().await;
                std::mem::forget(vec![0_u8; 2000]);
                pause().await;
                Ok::<_, Infallible>(Response::new(Chunks { left: 16, kept: of_body, waits: false }))
            }
        });
    let before = caller.usage();
    let body = caller.run(|| {
        let mut response = pin!(stack.call(Request::new(())));
        let context = &mut Context::from_waker(Waker::noop());
        assert_eq!(live(&service), (1000, 1));
        assert!(response.as_mut().poll(context).is_pending());
        assert!(response.as_mut().poll(context).is_pending());
        assert_eq!(live(&service), (3000, 2));
        assert_eq!(Service::current(), caller);
        let Poll::Ready(Ok(response)) = response.as_mut().poll(context) else { panic!("it is not ready") };
        response.into_body()
    });
    assert_eq!(caller.usage(), before);

    // Read by others, on another thread.
    assert_eq!(body.service(), Some(&service));
    let reader = caller.clone();
    let chunks = std::thread::spawn(move || {
        reader.run(|| {
            let mut body = pin!(body);
            let mut chunks: [Option<Bytes>; 16] = Default::default();
            for chunk in &mut chunks {
                *chunk = block_on(body.frame()).map(|frame| frame.unwrap().into_data().unwrap());
            }
            assert!(block_on(body.frame()).is_none());
            chunks
        })
    });
    let chunks = chunks.join().unwrap();
    assert!(chunks.iter().flatten().all(|chunk| chunk.len() == CHUNK));
    let (bytes, blocks) = live(&service);
    assert_eq!((bytes, blocks), (3000 + (16 * CHUNK) as u64 + 300, 2 + 16 + 1));
    assert_eq!(caller.usage(), before);
    drop(chunks);
    assert_eq!(live(&service), (3300, 3));
}

#[test]
fn a_cancelled_request_ends_in_its_service() {
    struct Guard(&'static Mutex<Vec<u8>>);

    impl Drop for Guard {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = vec![0; 500];
        }
    }

    let (service, caller) =
        (Service::register("cancelled").unwrap(), Service::register("who cancels").unwrap());
    let (kept, chosen) = (kept(), service.clone());
    let layer = AttributionLayer::by(move |_: &Request<()>| Some(chosen.clone()));
    let mut stack = layer.layer(service_fn(|_: Request<()>| async {
        let _guard = Guard(kept);
        let held = vec![0_u8; 2000];
        pause().await;
        drop(held);
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    caller.run(|| {
        {
            let mut response = pin!(stack.call(Request::new(())));
            assert!(response.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert_eq!(live(&service), (2000, 1));
        }
        assert_eq!(live(&service), (500, 1));
        assert_eq!(Service::current(), caller);
    });
    assert_eq!(caller.usage().allocated_bytes, 0);
}

#[test]
fn a_closure_that_panics_chooses_nothing() {
    let caller = Service::register("beside a panic").unwrap();
    let layer = AttributionLayer::by(|_: &Request<()>| panic!("of the closure's"));
    let mut stack = layer.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Service::current().name().to_owned()))
    }));
    let response = caller.run(|| block_on(stack.call(Request::new(())))).unwrap();
    assert_eq!(response.body().service(), None);
    let read = block_on(response.into_body().collect()).unwrap().to_bytes();
    assert_eq!(read, "beside a panic");

    // A service that panics is nobody's business but the caller's.
    let chosen = caller.clone();
    let layer = AttributionLayer::by(move |_: &Request<()>| Some(chosen.clone()));
    let mut stack = layer.layer(service_fn(|request: Request<()>| async move {
        assert!(request.headers().len() > 1, "of the service's");
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let ended = catch_unwind(AssertUnwindSafe(|| block_on(stack.call(Request::new(())))));
    assert!(ended.is_err());
    assert_ne!(Service::current(), caller);
}

#[test]
fn without_a_service_nothing_changes() {
    let caller = Service::register("no choice").unwrap();
    let mut stack = AttributionLayer::by(|_: &Request<()>| None).layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Chunks { left: 1, kept: kept(), waits: false }))
    }));
    let all = caller.run(|| {
        let body = block_on(stack.call(Request::new(()))).unwrap().into_body();
        let mut body = pin!(body);
        block_on(body.frame())
    });
    // The chunk, and what the body left behind when it was dropped.
    assert_eq!(caller.usage().bytes(), CHUNK as u64 + 300);
    drop(all);
}

#[test]
fn the_requests_body_is_read_in_its_service() {
    let service = Service::register("upload").unwrap();
    let (of_body, kept, chosen) = (kept(), kept(), service.clone());
    let mut stack = AttributionLayer::by(move |_: &Request<Chunks>| Some(chosen.clone())).layer(service_fn(
        |request: Request<Chunks>| async {
            let mut body = request.into_body();
            let mut whole = Vec::with_capacity(4 * CHUNK);
            while let Some(frame) = body.frame().await {
                whole.extend_from_slice(&frame.unwrap().into_data().unwrap());
            }
            *kept.lock().unwrap() = whole;
            Ok::<_, Infallible>(Response::new(String::new()))
        },
    ));
    let request = Request::new(Chunks { left: 4, kept: of_body, waits: false });
    block_on(stack.call(request)).unwrap();
    assert_eq!(live(&service), ((4 * CHUNK) as u64 + 300, 2));
    assert_eq!(kept.lock().unwrap().len(), 4 * CHUNK);
    // All that went through: each chunk once more.
    assert!(service.usage().allocated_bytes >= (8 * CHUNK) as u64);

    // Handed to another task.
    let service = Service::register("upload elsewhere").unwrap();
    let body = AttributedBody::new(Chunks { left: 4, kept: of_body, waits: false }, Some(service.clone()));
    let whole = std::thread::spawn(|| block_on(body.collect()).unwrap().to_bytes()).join().unwrap();
    assert_eq!(whole.len(), 4 * CHUNK);
    assert!(service.usage().allocated_bytes >= (4 * CHUNK) as u64 + 300);
}

#[test]
fn routes_of_axum_are_services() {
    let handler = async |Path(number): Path<usize>| {
        pause().await;
        vec![b'x'; 1000 * number]
    };
    let routes: Router = Router::new()
        .route("/apples/{number}", any(handler))
        .route("/pears/{number}", any(handler))
        .route(
            "/stream/{number}",
            any(async |Path(left): Path<usize>| AxumBody::new(Chunks { left, kept: kept(), waits: false })),
        )
        .layer(AttributionLayer::by_name(|request: &Request<_>| {
            let route = request.extensions().get::<axum::extract::MatchedPath>()?;
            Some(format!("{} {}", request.method(), route.as_str()).into())
        }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let ask = |method: Method, path: String| {
        let request = Request::builder().method(method).uri(path).body(AxumBody::empty()).unwrap();
        runtime.spawn(routes.clone().oneshot(request))
    };
    let asked: Vec<_> = (1..=100)
        .flat_map(|n| {
            [
                ask(Method::GET, format!("/apples/{n}")),
                ask(Method::PUT, format!("/apples/{n}")),
                ask(Method::GET, format!("/pears/{}", 2 * n)),
            ]
        })
        .collect();
    let held: Vec<AxumBody> =
        asked.into_iter().map(|asked| runtime.block_on(asked).unwrap().unwrap().into_body()).collect();
    let named = |name: &str| Service::by_name(name).unwrap();
    // What the requests hold is their bodies, and axum's boxes around each.
    for (name, bytes) in [
        ("GET /apples/{number}", 5_050_000),
        ("PUT /apples/{number}", 5_050_000),
        ("GET /pears/{number}", 10_100_000),
    ] {
        let (held, blocks) = live(&named(name));
        assert!((bytes..bytes + 100 * 500).contains(&held), "{name}: {held} bytes in {blocks} blocks");
    }
    drop(held);
    for name in ["GET /apples/{number}", "PUT /apples/{number}", "GET /pears/{number}"] {
        // What a worker of tokio's keeps for the next task is that request's in which it first needs it.
        assert!(live(&named(name)).0 < 10_000, "{name}: {:?}", live(&named(name)));
    }

    // A mebibyte in chunks.
    let body = runtime.block_on(ask(Method::GET, "/stream/16".into())).unwrap().unwrap().into_body();
    let stream = named("GET /stream/{number}");
    let before = stream.usage();
    let read = std::thread::spawn(|| {
        let mut body = body;
        std::iter::from_fn(|| Some(block_on(body.frame())?.unwrap().into_data().unwrap().len()))
            .sum::<usize>()
    });
    assert_eq!(read.join().unwrap(), 1 << 20);
    assert_eq!(stream.usage().since(&before).allocated_bytes, (1 << 20) + 300);
    assert!(stream.usage().bytes() < 10_000);
}

#[cfg(feature = "axum")]
#[test]
fn by_route_goes_by_the_method_and_the_route() {
    let here = async || Service::current().name().to_owned();
    let shop: Router = Router::new().route("/{article}/price", any(here));
    let routes = Router::new()
        .nest("/shop", shop)
        .route("/whole/{*rest}", any(here))
        .fallback(here)
        .layer(AttributionLayer::by_route());
    for (method, path, service) in [
        ("GET", "/shop/12/price", "GET /shop/{article}/price"),
        ("DELETE", "/shop/13/price", "DELETE /shop/{article}/price"),
        ("GET", "/whole/of/it", "GET /whole/{*rest}"),
        ("MAKE-ME-ONE", "/whole/of/it", "(other) /whole/{*rest}"),
        ("GET", "/nowhere", "unattributed"),
    ] {
        let request = Request::builder().method(method).uri(path).body(AxumBody::empty()).unwrap();
        let response = block_on(routes.clone().oneshot(request)).unwrap();
        let said = block_on(response.into_body().collect()).unwrap().to_bytes();
        assert_eq!(said, service, "{method} {path}");
    }
}

/// Counts the events of dogtag's that a thread gets to see, and keeps the last one's text.
#[derive(Default)]
struct Events {
    number: AtomicU64,
    last: Mutex<String>,
}

impl tracing::Subscriber for &'static Events {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "dogtag" && *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text<'a>(&'a mut String);

        impl tracing::field::Visit for Text<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                *self.0 += &format!("{field}={value:?} ");
            }
        }

        let mut text = String::new();
        event.record(&mut Text(&mut text));
        *self.last.lock().unwrap() = text;
        self.number.fetch_add(1, Ordering::Relaxed);
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// What the service of a path is called.
fn asker(
    layer: AttributionLayer<dogtag_tower::Named<dogtag_tower::PathSegment>>,
) -> impl FnMut(&str) -> String {
    let mut stack = layer
        .layer(service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Service::current())) }));
    move |path| {
        let response = block_on(stack.call(Request::get(path).body(()).unwrap())).unwrap();
        response.into_body().service().map_or(String::new(), |service| service.name().to_owned())
    }
}

#[test]
fn a_million_paths_are_few_services() {
    let events: &'static Events = Box::leak(Box::default());
    let names = Names::new().most(100).rest("all the others");
    let mut ask = asker(AttributionLayer::by_path_segment(1).names(names));
    tracing::subscriber::with_default(events, || {
        for number in 0..1_000_000 {
            let name = ask(&format!("/million/path-{number}"));
            let expected = if number < 100 { format!("path-{number}") } else { "all the others".into() };
            assert_eq!(name, expected);
        }
        // Those that have a service keep it.
        assert_eq!(ask("/million/path-7"), "path-7");
    });
    assert_eq!(events.number.load(Ordering::Relaxed), 1, "{:?}", events.last);
    assert!(events.last.lock().unwrap().contains("most=100"), "{:?}", events.last);
    let registered = dogtag::snapshot().rows.iter().filter(|row| row.name.starts_with("path-")).count();
    assert_eq!(registered, 100);
}

#[test]
fn names_that_are_none() {
    let events: &'static Events = Box::leak(Box::default());
    let mut ask = asker(AttributionLayer::by_path_segment(0).names(Names::new().rest("not to be named")));
    tracing::subscriber::with_default(events, || {
        for none in ["/", "//a", "*"] {
            let name = ask(none);
            assert!(name.is_empty() || name == "*", "{none}: {name}");
        }
        for length in [256, 4000, 60_000] {
            assert_eq!(ask(&format!("/{}", "x".repeat(length))), "not to be named");
        }
        assert_eq!(ask(&format!("/{}/more", "x".repeat(255))).len(), 255);
    });
    assert_eq!(events.number.load(Ordering::Relaxed), 1);
    assert!(events.last.lock().unwrap().contains("too long") || events.last.lock().unwrap().contains("255"));

    // Not even the rest can be named: requests are served all the same.
    let mut ask = asker(AttributionLayer::by_path_segment(0).names(Names::new().most(0).rest("")));
    assert_eq!(ask("/a"), "");
    assert_eq!(Service::by_name("a"), None);
}

#[test]
fn what_a_handler_starts_goes_on_in_its_service() {
    let service = Service::register("with a task").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let chosen = service.clone();
    let mut stack = AttributionLayer::by(move |_: &Request<()>| Some(chosen.clone())).layer(service_fn(
        |_: Request<()>| async {
            let here = Service::current();
            let task = tokio::spawn(async { vec![0_u8; 10_000] }.in_service(&here));
            Ok::<_, Infallible>(Response::new(task))
        },
    ));
    let kept = runtime.block_on(async {
        let response = stack.ready().await.unwrap().call(Request::new(())).await.unwrap();
        response.into_body()
    });
    drop(kept);
    drop(runtime);
    assert!(service.usage().allocated_bytes >= 10_000);
}
