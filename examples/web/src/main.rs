//! A document store on the web, and what each of its parts holds in memory.
//!
//! `cargo run --release -p web`, and open
//! <http://127.0.0.1:3000/memory>. `--port 0` takes any port that is free.
//! `--profile interval=64K` sets how finely the heap profiler samples (it goes by
//! `DOGTAG_PROFILE` else, and by itself takes a sample each 512 KiB); `--profile 0`
//! leaves it off.
//!
//! Every route runs in a service, by way of dogtag's tower layer; within, the cache and
//! the index have spans, which name services of their own. One route leaks on purpose, once it is switched on:
//!
//! ```text
//! curl -X PUT http://127.0.0.1:3000/documents/one -d '{"title": "One", "text": "the first of many"}'
//! curl http://127.0.0.1:3000/documents/one
//! curl 'http://127.0.0.1:3000/search?q=first+many'
//! curl -X DELETE http://127.0.0.1:3000/documents/one
//! curl -X PUT http://127.0.0.1:3000/leaky/switch -d '{"on": true}'
//! curl -X POST http://127.0.0.1:3000/sessions
//! curl http://127.0.0.1:3000/metrics            # for Prometheus
//! curl http://127.0.0.1:3000/memory.json        # what /memory draws
//! curl 'http://127.0.0.1:3000/profile.json?service=search' # its flame graph
//! go tool pprof -top http://127.0.0.1:3000/debug/pprof/heap
//! go tool pprof -top 'http://127.0.0.1:3000/debug/pprof/allocs?seconds=30'
//! ```

mod heap_profile;
mod monitor;
mod store;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use dogtag::{Dogtag, ServiceLayer, UnattributedExt};
use dogtag_tower::{AttributionLayer, ChooseName, Named};
use monitor::Monitor;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use store::{Document, IsFull, Store};
use tokio::net::TcpListener;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::filter_fn, fmt, prelude::*, registry};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fn main() -> ExitCode {
    let Some(Options { port, profile }) = options(std::env::args().skip(1)) else {
        eprintln!("usage: web [--port NUMBER] [--profile SETTINGS]");
        return ExitCode::from(2);
    };
    heap_profile::start(profile);
    // The whole set-up: a log, the services, and tracing's own needs apart.
    registry()
        .with(fmt::layer().with_writer(io::stderr).with_filter(LevelFilter::WARN))
        .with(ServiceLayer::new().with_filter(filter_fn(|metadata| metadata.is_span())))
        .unattributed()
        .init();
    match serve(port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("web: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    port: u16,
    /// Settings of the heap profiler.
    profile: Option<String>,
}

fn options(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options { port: 3000, profile: None };
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--port" => options.port = arguments.next()?.parse().ok()?,
            "--profile" => options.profile = Some(arguments.next()?),
            _ => return None,
        }
    }
    Some(options)
}

fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(|error| format!("port {port} cannot be had: {error}; choose another with --port"))?;
        println!("listening on http://{}", listener.local_addr()?);
        println!("open /memory in a browser");
        io::stdout().flush()?;
        tokio::select! {
            served = axum::serve(listener, routes()) => served?,
            asked = tokio::signal::ctrl_c() => asked?,
        }
        Ok(())
    })
}

fn routes() -> Router {
    let documents = put(put_document).get(get_document).delete(delete_document);
    Router::new()
        .merge(Router::new().route("/documents/{id}", documents).layer(in_service("documents")))
        .merge(Router::new().route("/search", get(search)).layer(in_service("search")))
        .merge(
            Router::new()
                .route("/sessions", post(open_session))
                .route("/leaky/switch", put(switch_leak).get(leaks))
                .layer(in_service("sessions")),
        )
        .merge(
            Router::new()
                .route("/", get(async || axum::response::Redirect::to("/memory")))
                .route("/memory", get(async || Monitor::page()))
                .route("/memory.json", get(async || Monitor::answer("/memory.json")))
                .route("/profile.json", get(heap_profile::tree))
                .route("/debug/pprof/heap", get(heap_profile::heap))
                .route("/debug/pprof/allocs", get(heap_profile::allocs))
                .route("/metrics", get(metrics))
                .layer(in_service("monitor")),
        )
        .method_not_allowed_fallback(async || {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this address has other methods than that")
        })
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is nothing here; try /memory"))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(Arc::new(App::default()))
}

/// Runs what is below it in the service of that name.
fn in_service(name: &'static str) -> AttributionLayer<Named<impl ChooseName<Body>>> {
    AttributionLayer::by_name(move |_: &Request<Body>| Some(name.into()))
}

const LARGEST_BODY: usize = 1 << 20;

#[derive(Default)]
struct App {
    store: Store,
    sessions: Sessions,
    monitor: Monitor,
}

type Shared = State<Arc<App>>;
type Sent = Result<Bytes, BytesRejection>;
type Id = Result<Path<String>, PathRejection>;

async fn put_document(State(app): Shared, id: Id, body: Sent) -> Result<Response, Refused> {
    let id = document_id(id)?;
    let document: Document = parse(body)?;
    let is_new = app
        .store
        .put(&id, document)
        .map_err(|IsFull| refuse(StatusCode::CONFLICT, "the store is full: delete documents first"))?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({ "id": id }))).into_response())
}

async fn get_document(State(app): Shared, id: Id) -> Result<Response, Refused> {
    let id = document_id(id)?;
    let found = app.store.get(&id).ok_or_else(|| unknown(&id))?;
    Ok(([("content-type", "application/json")], found).into_response())
}

async fn delete_document(State(app): Shared, id: Id) -> Result<Response, Refused> {
    let id = document_id(id)?;
    if app.store.delete(&id) { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(unknown(&id)) }
}

async fn search(
    State(app): Shared,
    query: Result<Query<HashMap<String, String>>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(query) = query.map_err(|rejection| refuse(rejection.status(), rejection.body_text()))?;
    let bad = |why: &str| refuse(StatusCode::BAD_REQUEST, why);
    let words = query.get("q").filter(|words| !words.trim().is_empty());
    let words = words.ok_or_else(|| bad("say what to search for: ?q=words"))?;
    if words.contains(char::REPLACEMENT_CHARACTER) {
        return Err(bad("q is not UTF-8"));
    }
    let limit = query.get("limit").map_or(Ok(10), |limit| limit.parse::<usize>()).ok();
    let limit = limit.filter(|limit| (1..=100).contains(limit));
    let limit = limit.ok_or_else(|| bad("limit is a number from 1 to 100"))?;
    let (hits, total) = app.store.search(words, limit);
    let hits: Vec<Value> = hits.into_iter().map(|(id, title)| json!({ "id": id, "title": title })).collect();
    Ok(Json(json!({ "hits": hits, "total": total })).into_response())
}

async fn open_session(State(app): Shared, body: Sent) -> Result<Response, Refused> {
    whole(body)?;
    let number = app.sessions.open();
    Ok((StatusCode::CREATED, Json(json!({ "session": format!("{number:016x}") }))).into_response())
}

async fn switch_leak(State(app): Shared, body: Sent) -> Result<Response, Refused> {
    #[derive(serde::Deserialize)]
    struct Switch {
        on: bool,
    }

    let Switch { on } = parse(body)?;
    app.sessions.leaks.store(on, Ordering::Relaxed);
    Ok(Json(json!({ "on": on })).into_response())
}

async fn leaks(State(app): Shared) -> Response {
    Json(json!({ "on": app.sessions.leaks.load(Ordering::Relaxed) })).into_response()
}

async fn metrics(State(app): Shared, request: Request<Body>) -> Response {
    app.monitor.metrics(request.headers())
}

/// Sessions of 16 KiB, which a bug forgets to end, once it is switched on.
#[derive(Default)]
struct Sessions {
    leaks: AtomicBool,
    opened: AtomicU64,
    forgotten: Mutex<Vec<Box<[u8]>>>,
}

impl Sessions {
    fn open(&self) -> u64 {
        /// Where even this leak ends: 512 MiB.
        const MOST: usize = 32 << 10;

        let session = vec![0x5E; 16 << 10].into_boxed_slice();
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        if self.leaks.load(Ordering::Relaxed) && forgotten.len() < MOST {
            forgotten.push(session);
        }
        self.opened.fetch_add(1, Ordering::Relaxed)
    }
}

fn document_id(id: Id) -> Result<String, Refused> {
    let Path(id) = id.map_err(|rejection| refuse(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&id.len()) && id.bytes().all(is_good) {
        return Ok(id);
    }
    Err(refuse(StatusCode::BAD_REQUEST, "an id has 1 to 64 characters: a to z, 0 to 9, and -"))
}

fn parse<T: serde::de::DeserializeOwned>(body: Sent) -> Result<T, Refused> {
    serde_json::from_slice(&whole(body)?).map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))
}

fn whole(body: Sent) -> Result<Bytes, Refused> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("send no more than {LARGEST_BODY} bytes"))
        }
        _ => refuse(StatusCode::BAD_REQUEST, rejection.body_text()),
    })
}

fn unknown(id: &str) -> Refused {
    refuse(StatusCode::NOT_FOUND, format!("there is no document {id}; PUT one"))
}

fn refuse(status: StatusCode, why: impl Into<String>) -> Refused {
    Refused { status, why: why.into() }
}

/// What is wrong with a request, and what to do.
struct Refused {
    status: StatusCode,
    why: String,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.why }))).into_response()
    }
}
