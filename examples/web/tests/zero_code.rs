//! A program that uses nothing but libraries with spans: axum and tower-http. With a
//! layer that goes by targets, its modules' memory shows.

use axum::extract::State;
use axum::routing::get;
use axum::{Router, serve};
use dogtag::{Dogtag, Service, ServiceLayer, UnattributedExt};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_http::trace::TraceLayer;
use tracing_subscriber::{filter::filter_fn, prelude::*, registry};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

mod catalogue {
    //! A module of the program, with spans that know nothing of services.

    use tracing::info_span;

    pub fn load() -> Vec<String> {
        info_span!("load").in_scope(|| (0..1000).map(|i| format!("item number {i}")).collect())
    }
}

type Kept = Arc<Mutex<Vec<Vec<u8>>>>;

async fn remember(State(kept): State<Kept>) -> &'static str {
    let page = vec![1_u8; 100_000];
    kept.lock().unwrap().push(page);
    "remembered"
}

#[test]
fn a_program_with_spans_shows_its_modules_memory() {
    registry()
        .with(ServiceLayer::by_target().with_filter(filter_fn(|metadata| metadata.is_span())))
        .unattributed()
        .init();
    let kept = Kept::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let items = runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes: Router = Router::new()
            .route("/", get(remember))
            // As everybody has it, straight from the library.
            .layer(TraceLayer::new_for_http())
            .with_state(Arc::clone(&kept));
        tokio::spawn(async { serve(listener, routes).await });
        for _ in 0..50 {
            let mut connection = TcpStream::connect(address).await.unwrap();
            let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            connection.write_all(request).await.unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("remembered"), "{answer}");
        }
        catalogue::load()
    });
    let snapshot = dogtag::snapshot();
    println!("{snapshot}");

    let of_requests = Service::by_name("tower_http::trace::make_span").unwrap().usage();
    assert!((5_000_000..5_100_000).contains(&of_requests.bytes()), "{snapshot}");
    let of_catalogue = Service::by_name("zero_code::catalogue").unwrap().usage();
    let expected: usize =
        items.iter().map(String::capacity).sum::<usize>() + items.capacity() * size_of::<String>();
    assert_eq!((of_catalogue.bytes(), of_catalogue.blocks()), (expected as u64, 1001));
    drop(items);
    kept.lock().unwrap().clear();
    assert!(
        Service::by_name("tower_http::trace::make_span").unwrap().usage().bytes() < 100_000,
        "{snapshot}"
    );
}
