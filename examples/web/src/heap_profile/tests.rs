#[path = "../../../../tests/pprof/mod.rs"]
mod pprof;

use super::*;
use crate::routes;
use dogtag::profile::ProfileRow;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Once;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves the program's routes on a port of their own, while `test` runs.
fn served<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr) -> F) {
    static STARTED: Once = Once::new();

    STARTED.call_once(|| {
        Profiler::from_settings("interval=1").unwrap().expect("it is not running");
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, routes()).await });
        test(address).await;
    });
    runtime.shutdown_background();
}

/// Gets a page: its status and body.
async fn get(address: SocketAddr, path: &str) -> (u16, Vec<u8>) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(end + 4))
}

async fn get_json(address: SocketAddr, path: &str) -> Value {
    let (status, body) = get(address, path).await;
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

async fn get_pprof(address: SocketAddr, path: &str) -> pprof::File {
    let (status, body) = get(address, path).await;
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    pprof::File::read(&body)
}

#[inline(never)]
fn shelves() -> Vec<Vec<u8>> {
    (1..=100).map(|i| vec![0; i * 10]).collect()
}

/// Bytes of what `shelves` returns.
const SHELVES: i64 = 10 * 5050 + 100 * size_of::<Vec<u8>>() as i64;

#[test]
fn the_flame_graphs_figures_are_those_of_the_profile() {
    served(async |address| {
        let service = dogtag::Service::register("library").unwrap();
        let kept = service.run(shelves);
        let expected: Vec<ProfileRow> =
            profile::live().rows.into_iter().filter(|row| row.service == "library").collect();
        assert_eq!(expected.iter().map(|row| row.bytes).sum::<i64>(), SHELVES);

        for functions in ["all", "own"] {
            let answer =
                get_json(address, &format!("/profile.json?service=library&functions={functions}")).await;
            assert_eq!((&answer["service"], &answer["interval"]), (&json!("library"), &json!(1)));
            let nodes = answer["nodes"].as_array().unwrap();
            let root = &nodes[0];
            assert_eq!((&root["bytes"], &root["objects"]), (&json!(SHELVES), &json!(101)), "{nodes:#?}");
            check(nodes);
            let shelves = nodes.iter().find(|node| node["name"].as_str().unwrap().ends_with("::shelves"));
            let shelves = shelves.unwrap_or_else(|| panic!("no shelves in {nodes:#?}"));
            assert_eq!((&shelves["bytes"], &shelves["own"]), (&json!(SHELVES), &json!(true)));
        }
        let all = get_json(address, "/profile.json").await;
        let nodes = all["nodes"].as_array().unwrap();
        check(nodes);
        let library = nodes.iter().find(|node| node["depth"] == 1 && node["name"] == "library").unwrap();
        assert_eq!(library["bytes"], SHELVES);

        let file = get_pprof(address, "/debug/pprof/heap").await;
        assert_eq!(file.default_sample_type(), "inuse_space");
        for (kind, figure) in [("inuse_space", SHELVES), ("inuse_objects", 101), ("alloc_space", SHELVES)] {
            assert_eq!(file.sum("library", kind), figure, "{kind}");
        }
        drop(kept);
        let answer = get_json(address, "/profile.json?service=library").await;
        let [root] = answer["nodes"].as_array().unwrap().as_slice() else { panic!("{answer:#}") };
        assert_eq!(root["bytes"], 0);
    });
}

/// Checks that no function has less than those that it calls.
fn check(nodes: &[Value]) {
    let number = |node: &Value, what: &str| node[what].as_i64().unwrap();
    for (i, node) in nodes.iter().enumerate() {
        let depth = number(node, "depth");
        let below = nodes[i + 1..].iter().take_while(|below| number(below, "depth") > depth);
        let children = below.filter(|below| number(below, "depth") == depth + 1);
        assert!(
            children.map(|child| number(child, "bytes")).sum::<i64>() <= number(node, "bytes"),
            "{node:#}"
        );
    }
}

#[test]
fn seconds_give_what_came_in_between() {
    served(async |address| {
        let before = dogtag::Service::register("before").unwrap();
        let churn = dogtag::Service::register("churn").unwrap();
        let kept = before.run(|| vec![0_u8; 10_000]);
        for path in ["heap", "allocs"] {
            let path = format!("/debug/pprof/{path}?seconds=1");
            let asked = tokio::spawn(async move { get_pprof(address, &path).await });
            let mut pieces = Vec::new();
            while !asked.is_finished() {
                pieces.push(churn.run(|| vec![0_u8; 1000]));
                drop(churn.run(|| vec![0_u8; 500]));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let file = asked.await.unwrap();
            let [live, allocated] = ["inuse_space", "alloc_space"].map(|kind| file.sum("churn", kind));
            let all = pieces.len() as i64 * 1000;
            assert!(0 < live && live <= all, "{live} of {all}");
            assert!(live < allocated && allocated <= all + all / 2, "{allocated} of {all}");
            assert_eq!(file.sum("before", "inuse_space") + file.sum("before", "alloc_space"), 0);
        }
        drop(kept);
    });
}

#[test]
fn bad_requests_are_told_what_is_wrong() {
    served(async |address| {
        for (path, status, why) in [
            ("/debug/pprof/heap?seconds=0", 400, "seconds is a number"),
            ("/debug/pprof/heap?seconds=-1", 400, "seconds is a number"),
            ("/debug/pprof/heap?seconds=1.5", 400, "seconds is a number"),
            ("/debug/pprof/allocs?seconds=", 400, "seconds is a number"),
            ("/debug/pprof/allocs?seconds=99999999999999999999", 400, "seconds is a number"),
            ("/debug/pprof/allocs?seconds=%FF", 400, ""),
            ("/profile.json?functions=some", 400, "all or own"),
            ("/profile.json?service=nobody", 404, "no service nobody"),
        ] {
            let (found, body) = get(address, path).await;
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(found, status, "{path}: {body}");
            assert!(body["error"].as_str().unwrap().contains(why), "{path}: {body}");
        }
    });
}
