//! Requests whose services are cancelled, in stacks of tower's and in axum's routers: how they end, what is
//! left of them, and that others go on.

use axum::Router;
use axum::body::Body as AxumBody;
use axum::routing::get;
use bytes::Bytes;
use dogtag::guard::{CancelReason, Cancelled};
use dogtag::{Dogtag, Service};
use dogtag_tower::{AttributionLayer, CancelLayer};
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use tower::{Service as _, ServiceBuilder, ServiceExt, service_fn};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// Counts how often it is woken.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn poll<F: Future>(future: Pin<&mut F>, counter: &Arc<Counter>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(counter))))
}

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

async fn grows_and_waits() -> Vec<u8> {
    let rows = vec![0_u8; 5000];
    pending::<()>().await;
    rows
}

fn routes() -> Router {
    // Each in the service of its path, if that is registered.
    let by_path = AttributionLayer::by(|request: &Request<_>| Service::by_name(request.uri().path()));
    let layers = ServiceBuilder::new().layer(by_path).layer(CancelLayer::unavailable());
    Router::new()
        .route("/waits", get(grows_and_waits))
        .route("/waits/too", get(grows_and_waits))
        .route("/cancels/itself", get(async || _ = Service::current().cancel("by its handler")))
        .route("/is/ready", get(async || vec![7_u8; 3000]))
        .layer(layers)
}

fn request(path: &str) -> Request<AxumBody> {
    Request::get(path).body(AxumBody::empty()).unwrap()
}

#[test]
fn a_router_answers_503_and_the_others_go_on() {
    let (cancelled, other) = (Service::register("/waits").unwrap(), Service::register("/waits/too").unwrap());
    let counters = [Arc::new(Counter::default()), Arc::new(Counter::default())];
    let mut response = Box::pin(routes().oneshot(request("/waits")));
    let mut others = Box::pin(routes().oneshot(request("/waits/too")));
    for _ in 0..3 {
        assert!(poll(response.as_mut(), &counters[0]).is_pending());
        assert!(poll(others.as_mut(), &counters[1]).is_pending());
    }
    let before = other.usage();
    assert!(cancelled.usage().bytes() >= 5000);
    assert_eq!(counters[0].0.load(SeqCst), 0);
    cancelled.cancel("too slow");
    assert_eq!(counters.each_ref().map(|counter| counter.0.load(SeqCst)), [1, 0]);
    let Poll::Ready(Ok(response)) = poll(response.as_mut(), &counters[0]) else { panic!("it goes on") };
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[RETRY_AFTER], "1");
    let why = response.extensions().get::<Cancelled>().unwrap();
    assert_eq!((&*why.service, &why.reason), ("/waits", &CancelReason::Program("too slow".into())));
    assert!(why.usage.bytes() >= 5000);
    assert!(response.body().is_end_stream());
    assert_eq!(response.body().size_hint().exact(), Some(0));
    assert_eq!(now(response.into_body().collect()).unwrap().to_bytes(), "");
    // Whatever axum has around the handler, too.
    assert_eq!(cancelled.usage().bytes(), 0);
    assert_eq!(cancelled.usage().blocks(), 0);
    assert_eq!(Arc::strong_count(&counters[0]), 1);

    // Nothing happened to the other one.
    assert!(poll(others.as_mut(), &counters[1]).is_pending());
    assert_eq!(other.usage(), before);
    drop(others);
    assert_eq!((other.usage().bytes(), Arc::strong_count(&counters[1])), (0, 1));
}

#[test]
fn a_request_that_is_ready_is_answered() {
    let _ready = Service::register("/is/ready").unwrap();
    let response = now(routes().oneshot(request("/is/ready"))).unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(now(response.into_body().collect()).unwrap().to_bytes().len(), 3000);
    // In the same poll as its end; its body does not come any more.
    let _cancels = Service::register("/cancels/itself").unwrap();
    let response = now(routes().oneshot(request("/cancels/itself"))).unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // Without a service nobody can be cancelled.
    let mut waits = Box::pin(routes().oneshot(request("/waits")));
    assert!(poll(waits.as_mut(), &Arc::default()).is_pending());
}

#[test]
fn a_stack_returns_the_error_among_its_own() {
    let query = Service::register("of a stack").unwrap();
    let chosen = query.clone();
    let calls = Arc::new(AtomicUsize::new(0));
    let mut stack = ServiceBuilder::new()
        .layer(AttributionLayer::by(move |_: &Request<u32>| Some(chosen.clone())))
        .layer(CancelLayer::new())
        .service(service_fn(|request: Request<u32>| {
            calls.fetch_add(1, SeqCst);
            async move {
                let rows = vec![0_u8; 1000];
                match request.into_body() {
                    0 => Err(std::io::Error::other("of its own")),
                    1 => Ok(Response::new(String::from("fine"))),
                    _ => {
                        pending::<()>().await;
                        Ok(Response::new(format!("{} rows", rows.len())))
                    }
                }
            }
        }));
    let error = now(stack.call(Request::new(0))).unwrap_err();
    assert_eq!((error.is::<Cancelled>(), &*error.to_string()), (false, "of its own"));
    drop(error);
    assert_eq!(now(stack.call(Request::new(1))).unwrap().status(), StatusCode::OK);
    let mut waits = Box::pin(stack.call(Request::new(2)));
    assert!(poll(waits.as_mut(), &Arc::default()).is_pending());
    query.cancel("enough");
    let error = now(waits.as_mut()).unwrap_err();
    let why = error.downcast_ref::<Cancelled>().unwrap();
    assert_eq!((&*why.service, &*why.reason.to_string()), ("of a stack", "enough"));
    // Nor is the error its own.
    assert_eq!(query.usage().bytes(), 0);
    drop(waits);

    // Who comes too late does not reach it.
    let before = calls.load(SeqCst);
    let error = now(stack.call(Request::new(1))).unwrap_err();
    assert!(error.is::<Cancelled>());
    assert_eq!(calls.load(SeqCst), before);
}

/// A body that is made in chunks, and holds something meanwhile.
struct Chunks {
    left: usize,
    _held: Vec<u8>,
    dropped: Arc<AtomicUsize>,
    service: Service,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // One that waits for somebody who never comes.
        let Some(left) = self.left.checked_sub(1) else { return Poll::Pending };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"chunk")))))
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        assert_eq!(Service::current(), self.service);
        self.dropped.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_body_ends_with_an_error_wherever_it_waits() {
    let query = Service::register("streams").unwrap();
    let (chosen, dropped) = (query.clone(), Arc::new(AtomicUsize::new(0)));
    let layers = |chosen: Service| {
        ServiceBuilder::new()
            .layer(AttributionLayer::by(move |_: &Request<()>| Some(chosen.clone())))
            .layer(CancelLayer::unavailable())
    };
    let chunks = || {
        let (service, dropped) = (Service::current(), Arc::clone(&dropped));
        ready(Ok::<_, Infallible>(Response::new(Chunks { left: 2, _held: vec![0; 2000], dropped, service })))
    };
    let mut stack = layers(chosen).service(service_fn(|_: Request<()>| chunks()));
    let response = now(stack.call(Request::new(()))).unwrap();
    let counter = Arc::new(Counter::default());
    let mut body = pin!(response.into_body());
    for _ in 0..2 {
        assert_eq!(now(body.frame()).unwrap().unwrap().into_data().unwrap(), "chunk");
    }
    assert!(poll(pin!(body.frame()), &counter).is_pending());
    assert_eq!((query.usage().bytes(), body.is_end_stream()), (2000, false));
    query.cancel("the client reads too slowly");
    assert_eq!((counter.0.load(SeqCst), dropped.load(SeqCst)), (1, 0));
    let Poll::Ready(Some(Err(error))) = poll(pin!(body.frame()), &counter) else { panic!("it goes on") };
    assert_eq!(error.downcast_ref::<Cancelled>().unwrap().reason.to_string(), "the client reads too slowly");
    assert_eq!((query.usage().bytes(), dropped.load(SeqCst)), (0, 1));
    assert!(body.is_end_stream());
    assert!(now(body.frame()).is_none());
    assert_eq!(Arc::strong_count(&counter), 1);

    // One that nobody has begun to read ends in the same way; and one that has ended does not.
    let query = Service::register("streams").unwrap();
    let mut stack = layers(query.clone()).service(service_fn(|_: Request<()>| chunks()));
    let unread = now(stack.call(Request::new(()))).unwrap();
    let whole = layers(query.clone())
        .service(service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new("whole".to_owned())))));
    let mut whole = pin!(now(whole.oneshot(Request::new(()))).unwrap().into_body());
    assert_eq!(now(whole.frame()).unwrap().unwrap().into_data().unwrap(), "whole");
    assert!(now(whole.frame()).is_none());
    query.cancel("at once");
    assert!(now(whole.frame()).is_none());
    assert!(now(unread.into_body().collect()).is_err());
    assert_eq!(query.usage().bytes(), 0);
}

/// On a runtime's threads, a thousand requests: each ends, cancelled or not, and nothing is left.
#[test]
fn many_requests_end_as_they_should() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let by_id = AttributionLayer::by(|request: &Request<u32>| {
        Service::builder(format!("request {}", request.body())).cancel_at(100_000).register().ok()
    });
    let stack = ServiceBuilder::new().layer(by_id).layer(CancelLayer::unavailable()).service(service_fn(
        |request: Request<u32>| async move {
            let mut rows = Vec::new();
            // Every fourth one grows without end.
            while rows.len() < 10 || request.body().is_multiple_of(4) {
                rows.push(vec![0_u8; 1000]);
                tokio::task::yield_now().await;
            }
            Ok::<_, Infallible>(Response::new(format!("{} rows", rows.len())))
        },
    ));
    let requests: Vec<_> =
        (0..1000).map(|id| runtime.spawn(stack.clone().oneshot(Request::new(id)))).collect();
    for (id, response) in requests.into_iter().enumerate() {
        let response = runtime.block_on(response).unwrap().unwrap();
        let status = if id % 4 == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        assert_eq!(response.status(), status, "{id}");
        let body = runtime.block_on(response.into_body().collect());
        assert_eq!(body.unwrap().to_bytes().len(), if id % 4 == 0 { 0 } else { "10 rows".len() });
    }
    drop(runtime);
    let left = dogtag::snapshot().rows.into_iter().filter(|row| row.name.starts_with("request "));
    assert_eq!(left.map(|row| row.usage.bytes()).sum::<u64>(), 0);
}

/// A body's default is an empty one, as libraries ask for.
#[test]
fn parts_can_be_taken_apart() {
    let mut cancel = ServiceBuilder::new()
        .layer(CancelLayer::unavailable().retry_after(None))
        .service(service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::new())))));
    let _ = cancel.get_ref();
    let _ = cancel.get_mut();
    assert!(now(poll_fn(|context| cancel.poll_ready(context))).is_ok());
    let query = Service::register("without a header").unwrap();
    query.cancel("before it came");
    let response = now(query.run(|| cancel.call(Request::new(())))).unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().is_empty());
    let _ = cancel.into_inner();
    let empty = dogtag_tower::CancelBody::<String>::default();
    assert!(empty.is_end_stream());
}
