//! One process of a fleet: holds, grows and is denied what its number says, and shows it at `/metrics`.
//!
//! `cargo run -p fleet -- 2 [PORT]` is the process number 2. Of its services,
//!
//! | service | holds |
//! | --- | --- |
//! | `cache` | 1 MiB times its number; its soft limit is 2 MiB, past which the processes from 3 on are |
//! | `tenant` | nothing; of its hard limit of 4 MiB the service below it holds 1 MiB times its number |
//! | `query` | that; it was denied 8 MiB so many times as its number says |
//! | `session` | 64 KiB, and has ended |
//! | `runaway` | 2 MiB, more than its budget, so that it was cancelled, and does not let go |
//! | `leak` | 4 KiB more ten times a second, up to 64 MiB |
//! | `request 1`, `request 2`, … | 64 KiB, each for a tenth of a second |
//!
//! A guard watches over a ceiling of 256 MiB, which it is far from. The dashboard and the queries in `ops` are tested on
//! three of these processes.

use dogtag::guard::{Ceiling, Guard};
use dogtag::{Dogtag, Service};
use dogtag_prometheus::ServiceCollector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;
use std::{env, thread};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const MIB: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let number: usize = arguments.next().ok_or("say which one of the fleet: fleet NUMBER [PORT]")?.parse()?;
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;

    let cache = Service::builder("cache").soft_limit(2 * MIB as u64).register()?;
    let tenant = Service::builder("tenant").hard_limit(4 * MIB as u64).register()?;
    let query = Service::builder("query").parent(&tenant).register()?;
    let entries = cache.run(|| vec![1_u8; number * MIB]);
    let rows = query.run(|| {
        for _ in 0..number {
            assert!(Vec::<u8>::new().try_reserve_exact(8 * MIB).is_err());
        }
        vec![1_u8; number.min(4) * MIB]
    });
    let runaway = Service::builder("runaway").cancel_at(MIB as u64).register()?;
    let kept = runaway.run(|| vec![1_u8; 2 * MIB]);
    let left_behind = Service::register("session")?.run(|| vec![1_u8; 64 << 10]);
    let guard = Guard::builder().ceiling(Ceiling::bytes(256 * MIB as u64)).start()?;
    thread::spawn(leak);

    let mut registry = Registry::default();
    registry.register_collector(Box::new(ServiceCollector::new()));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    println!("listening on http://{}", listener.local_addr()?);
    io::stdout().flush()?;
    for connection in listener.incoming() {
        // Who hangs up in the middle is no matter to the others.
        if let Err(error) = connection.and_then(|connection| answer(connection, &registry)) {
            eprintln!("fleet: {error}");
        }
    }
    drop((guard, entries, rows, tenant, kept, left_behind));
    Ok(())
}

fn leak() {
    let leak = Service::register("leak").expect("the name is free");
    let mut kept: Vec<Vec<u8>> = Vec::with_capacity(64 * MIB / 4096);
    for number in 1.. {
        if kept.len() < kept.capacity() {
            kept.push(leak.run(|| vec![1; 4096]));
        }
        let request = Service::register(format!("request {number}")).expect("the last one has ended");
        let _body = request.run(|| vec![1_u8; 64 << 10]);
        thread::sleep(Duration::from_millis(100));
    }
}

/// Answers one request, whichever it is: in OpenMetrics, which Prometheus asks for.
fn answer(mut connection: TcpStream, registry: &Registry) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    for line in BufReader::new(&connection).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let mut text = String::new();
    encode(&mut text, registry).expect("a String takes everything");
    write!(
        connection,
        "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}
