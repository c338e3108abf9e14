//! What tokio-console sees of a program's tasks is the same with `dogtag::attributed` as without, and so is
//! what the program logs; and the program's spans have services, though its log leaves them out.
//!
//! `cargo run`, which runs itself with and without, since there is one global subscriber in a process.
#![forbid(unsafe_code)]

use console_api::instrument::InstrumentRequest;
use console_api::instrument::instrument_client::InstrumentClient;
use dogtag::{Dogtag, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;
use tracing::{Instrument, info_span, warn};
use tracing_subscriber::{EnvFilter, Layer, fmt, prelude::*, registry};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const TASKS: [&str; 3] = ["baker", "butcher", "smith"];

fn main() {
    if let Some(which) = env::args().nth(1) {
        return run(which == "attributed");
    }
    let [before, after] = ["plain", "attributed"].map(|which| {
        let output = Command::new(env::current_exe().unwrap()).arg(which).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{which}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    });
    assert!(before == after, "before\n{before}\nafter\n{after}");
    for task in TASKS {
        assert!(before.contains(&format!("{task} was seen, and ended")), "{before}");
    }
    print!("{before}");
}

fn run(is_attributed: bool) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let console = console_subscriber::ConsoleLayer::builder()
        .server_addr(address)
        .publish_interval(Duration::from_millis(50))
        .retention(Duration::from_secs(600))
        .spawn();
    let lines = fmt::layer().without_time().with_ansi(false).with_writer(std::io::stdout);
    let layers = registry().with(console).with(lines.with_filter(EnvFilter::new("warn")));
    if is_attributed {
        dogtag::attributed(layers).init();
    } else {
        layers.init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for name in TASKS {
            let work = work(name, is_attributed).instrument(info_span!("work", service = name));
            tasks.push(tokio::task::Builder::new().name(name).spawn(work).unwrap());
        }
        for task in tasks {
            task.await.unwrap();
        }
        for (name, has_ended) in seen(address.port()).await {
            println!("{name} was seen{}", if has_ended { ", and ended" } else { "" });
        }
    });
}

async fn work(name: &'static str, is_attributed: bool) {
    let block = vec![0_u8; 1000];
    for _ in 0..3 {
        tokio::task::yield_now().await;
        if is_attributed {
            assert_eq!(Service::current().name(), name);
            assert!(Service::by_name(name).unwrap().usage().bytes() >= 1000);
        }
    }
    tracing::info!("not in the log");
    if name == TASKS[0] {
        warn!("in the log: {}", block.len());
    }
}

/// Asks as tokio-console does, until it has seen all tasks end.
async fn seen(port: u16) -> BTreeMap<String, bool> {
    let mut client = loop {
        match InstrumentClient::connect(format!("http://127.0.0.1:{port}")).await {
            Ok(client) => break client,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let mut updates = client.watch_updates(InstrumentRequest {}).await.unwrap().into_inner();
    let (mut names, mut ended) = (BTreeMap::new(), BTreeSet::new());
    let end = |names: &BTreeMap<u64, String>, ended: &BTreeSet<u64>| {
        names.len() == TASKS.len() && names.keys().all(|id| ended.contains(id))
    };
    while !end(&names, &ended) {
        let update = updates.message().await.unwrap().expect("the console goes on");
        let Some(tasks) = update.task_update else { continue };
        for task in tasks.new_tasks {
            let name = task.fields.iter().find_map(|field| {
                let value = field.value.as_ref()?.to_string();
                TASKS.into_iter().find(|name| value.trim_matches('"') == *name)
            });
            if let (Some(id), Some(name)) = (task.id, name) {
                names.insert(id.id, name.to_owned());
            }
        }
        ended.extend(
            tasks.stats_update.iter().filter(|(_, stats)| stats.dropped_at.is_some()).map(|(id, _)| *id),
        );
    }
    names.into_iter().map(|(id, name)| (name, ended.contains(&id))).collect()
}
