//! A query engine in one process, and what becomes of eight tenants when one of them asks for too much.
//!
//! Each query joins generated orders with their customers by a hash table, and sorts what it finds; it is
//! a service of its own below its tenant's. One query is a join without a condition, and grows without
//! end. The program runs the same load three times, each time as a child process with a GiB of address
//! space, and checks all answers against a plain computation:
//!
//! 1. with nothing against it: the process is killed, and whoever waits for an answer gets none;
//! 2. with a budget for each query: the one that gets past it is cancelled;
//! 3. with a guard, which cancels the heaviest query when the process reaches its ceiling.
//!
//! `cargo run --release --features guard --example queries`
//!
//! With a word (`without`, `budgets`, `guard`, or `cgroup` for a ceiling of nine tenths of the limit of its
//! cgroup) it runs the load once.
//!
//! The exit status is 0 if only the endless query ended without its answer, in 2 and 3.

use dogtag::guard::{Ceiling, Guard, Policy};
use dogtag::{Cancellation, Dogtag, InServiceExt, RegisterError, Service};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tokio::task::yield_now;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const MIB: u64 = 1 << 20;
const ADDRESSES: u64 = 1024 * MIB;
const CEILING: u64 = 512 * MIB;
const BUDGET: u64 = 192 * MIB;

const TENANTS: [&str; 8] = ["acorn", "birch", "cedar", "dogwood", "elm", "fir", "greedy", "hazel"];
const QUERIES: u64 = 4;
/// Tenant and query.
const ENDLESS: (usize, u64) = (6, 1);

const CUSTOMERS: u32 = 20_000;
const ORDERS: u32 = 200_000;
/// So many rows are handled between two chances for others.
const BATCH: usize = 4096;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("without") => return run(Against::Nothing),
        Some("budgets") => return run(Against::Budgets),
        Some("guard") => return run(Against::Ceiling(Ceiling::bytes(CEILING))),
        // In a container: its limit says how much there is.
        Some("cgroup") => return run(Against::Ceiling(Ceiling::cgroup(0.9))),
        Some(other) => return Err(format!("{other:?} is none of without, budgets, guard, cgroup").into()),
    }
    println!("Eight tenants run four queries each; one query of \"greedy\" is a join without a condition.");
    let mut is_well = true;
    for (number, (argument, heading)) in [
        ("without", "With nothing against it, in a GiB of address space"),
        ("budgets", "With a budget of 192 MiB for each query"),
        ("guard", "With a guard, and a ceiling of 512 MiB for the process"),
    ]
    .into_iter()
    .enumerate()
    {
        println!("\n{}. {heading}:\n", number + 1);
        let begin = Instant::now();
        let status = Command::new(std::env::current_exe()?).arg(argument).status()?;
        match status.signal() {
            Some(signal) => println!(
                "The process was ended by signal {signal}{} after {:.1?}: whatever was not done by then is lost.",
                match signal {
                    libc::SIGABRT => " (SIGABRT, since an allocation failed)",
                    libc::SIGKILL => " (SIGKILL, as the kernel ends who takes too much)",
                    _ => "",
                },
                begin.elapsed()
            ),
            None => println!("The process ended as it should after {:.1?}.", begin.elapsed()),
        }
        is_well &= if argument == "without" { status.signal().is_some() } else { status.success() };
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What there is against queries that take too much.
#[derive(Clone, Copy)]
enum Against {
    Nothing,
    Budgets,
    Ceiling(Ceiling),
}

fn run(against: Against) -> Result<ExitCode, Box<dyn Error>> {
    limit_addresses()?;
    let guard = match against {
        Against::Ceiling(ceiling) => {
            // Where the machine is busy, a cancelled task may wait long for its turn to let go.
            let guard = Guard::builder().policy(Policy::most_bytes()).grace(Duration::from_secs(10));
            Some(guard.ceiling(ceiling).start()?)
        }
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let serving: Vec<_> = (0..TENANTS.len()).map(|tenant| runtime.spawn(serve(tenant, against))).collect();

    println!("tenant     answers   right   cancelled   most in a query");
    println!("───────────────────────────────────────────────────────");
    let (mut wrong, mut cancelled) = (0, Vec::new());
    for (number, served) in serving.into_iter().enumerate() {
        let queries = runtime.block_on(served)??;
        let answers = queries.iter().filter(|query| query.is_right.is_ok()).count();
        let right = queries.iter().filter(|query| query.is_right == Ok(true)).count();
        let most = queries.iter().map(|query| query.peak).max().unwrap_or(0);
        println!(
            "{:<10} {answers:>7} {right:>7} {:>11} {:>13.1} MiB",
            TENANTS[number],
            queries.len() - answers,
            most as f64 / MIB as f64
        );
        wrong += answers - right;
        let ends = queries.into_iter().zip(0..);
        cancelled.extend(ends.filter_map(|(query, at)| Some(((number, at), query.is_right.err()?))));
    }
    println!();
    for ((tenant, query), End { cancellation, until_error }) in &cancelled {
        println!(
            "{}, query {query}, was cancelled when it held {:.1} MiB: {}.\nIts task had the error after \
             {until_error:.1?}, and {}.",
            TENANTS[*tenant],
            cancellation.bytes as f64 / MIB as f64,
            cancellation.reason,
            match cancellation.released_after {
                Some(after) => format!("it held nothing after {after:.1?}"),
                None => "it holds something still".to_owned(),
            },
        );
    }
    if let Some(guard) = &guard {
        let figures = guard.figures();
        let over = figures.highest_over as f64 / MIB as f64;
        println!("The process was {over:.1} MiB above its ceiling at most.");
    }
    let counts = dogtag::snapshot().cancellations.unwrap_or_default();
    println!("{counts}.");
    let by = match against {
        Against::Nothing => (0, 0),
        Against::Budgets => (1, 0),
        Against::Ceiling(_) => (0, 1),
    };
    let is_only_one =
        (counts.by_budget, counts.by_guard) == by && cancelled.len() == 1 && cancelled[0].0 == ENDLESS;
    let has_let_go = cancelled.iter().all(|(_, end)| end.cancellation.released_after.is_some());
    Ok(if wrong == 0 && is_only_one && has_let_go { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How a query ended.
struct Outcome {
    /// Whether its answer is right; or how it was cancelled.
    is_right: Result<bool, End>,
    /// The most that it held.
    peak: u64,
}

#[derive(PartialEq)]
struct End {
    cancellation: Cancellation,
    until_error: Duration,
}

/// Runs a tenant's queries, one after the other: a cancelled one is not the end of the others.
async fn serve(number: usize, against: Against) -> Result<Vec<Outcome>, RegisterError> {
    let tenant = Service::register(TENANTS[number])?;
    let mut outcomes = Vec::new();
    for query in 0..QUERIES {
        let name = format!("{}/query {query}", TENANTS[number]);
        let service = Service::builder(&name).parent(&tenant);
        let service = match against {
            Against::Nothing => service,
            Against::Budgets => service.cancel_at(BUDGET),
            Against::Ceiling(_) => service.cancellable(0),
        };
        let service = service.register()?;
        let seed = number as u64 * QUERIES + query;
        let is_endless = (number, query) == ENDLESS;
        let work = async move { if is_endless { join_all(seed).await } else { join_and_sort(seed).await } };
        let answer = tokio::spawn(work.in_service(&service).or_cancelled()).await.expect("no query panics");
        let is_right = match answer {
            Ok(answer) => Ok(answer == plain_answer(seed)),
            Err(_) => {
                let rows = dogtag::snapshot().rows;
                let row = rows.into_iter().find(|row| row.is_cancelled && row.name == name);
                let cancellation = row.and_then(|row| row.cancellation).unwrap_or_default();
                Err(End { until_error: cancellation.ago, cancellation })
            }
        };
        outcomes.push(Outcome { is_right, peak: service.usage().peak_bytes });
    }
    Ok(outcomes)
}

/// Generates the table of orders: customer and amount. Half of the customers are unknown.
fn orders(seed: u64) -> impl Iterator<Item = (u32, u32)> {
    let mut random = seed + 1;
    (0..ORDERS).map(move |_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((random >> 33) as u32 % (2 * CUSTOMERS), (random >> 40) as u32 % 1_000_000)
    })
}

/// A row of a join.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    amount: u32,
    customer: u32,
    name: String,
}

/// The number of rows, and a hash of them in their order.
#[derive(Default, Debug, PartialEq)]
struct Answer {
    rows: u64,
    hash: u64,
}

impl Answer {
    fn add(&mut self, amount: u32, customer: u32) {
        self.rows += 1;
        let row = u64::from(amount) << 32 | u64::from(customer);
        self.hash = (self.hash.rotate_left(5) ^ row).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

async fn customers() -> HashMap<u32, String> {
    let mut customers = HashMap::new();
    for customer in 0..CUSTOMERS {
        customers.insert(customer, format!("customer number {customer}"));
        if (customer as usize).is_multiple_of(BATCH) {
            yield_now().await;
        }
    }
    customers
}

/// Joins by a hash table, sorts in runs, and merges these.
async fn join_and_sort(seed: u64) -> Answer {
    let customers = customers().await;
    let mut runs: Vec<Vec<Row>> = vec![Vec::new()];
    for (customer, amount) in orders(seed) {
        let Some(name) = customers.get(&customer) else { continue };
        let run = runs.last_mut().expect("there is one");
        run.push(Row { amount, customer, name: name.clone() });
        if run.len() == BATCH {
            run.sort_unstable();
            runs.push(Vec::new());
            yield_now().await;
        }
    }
    runs.iter_mut().for_each(|run| run.sort_unstable());
    let mut runs: Vec<_> = runs.into_iter().map(Vec::into_iter).collect();
    let mut heads: BinaryHeap<_> =
        runs.iter_mut().enumerate().filter_map(|(run, rows)| Some(Reverse((rows.next()?, run)))).collect();
    let mut answer = Answer::default();
    while let Some(Reverse((row, run))) = heads.pop() {
        answer.add(row.amount, row.customer);
        heads.extend(runs[run].next().map(|row| Reverse((row, run))));
        if (answer.rows as usize).is_multiple_of(BATCH) {
            yield_now().await;
        }
    }
    answer
}

/// Joins each order with each customer: as many rows as no process can hold.
async fn join_all(seed: u64) -> Answer {
    /// Rows by columns.
    #[derive(Default)]
    struct Batch {
        keys: Vec<(u32, u32)>,
        names: String,
    }

    let customers = customers().await;
    let mut batches: Vec<Batch> = Vec::new();
    for (_, amount) in orders(seed) {
        let mut rows = customers.iter().peekable();
        while rows.peek().is_some() {
            let mut batch = Batch::default();
            for (customer, name) in rows.by_ref().take(BATCH) {
                batch.keys.push((amount, *customer));
                batch.names.push_str(name);
            }
            batches.push(batch);
            yield_now().await;
        }
    }
    let mut answer = Answer::default();
    let keys = batches.iter().flat_map(|batch| &batch.keys);
    keys.for_each(|(amount, customer)| answer.add(*amount, *customer));
    answer
}

/// The same answer, without an engine.
fn plain_answer(seed: u64) -> Answer {
    let mut known: Vec<(u32, u32)> = orders(seed)
        .filter(|(customer, _)| *customer < CUSTOMERS)
        .map(|(customer, amount)| (amount, customer))
        .collect();
    known.sort();
    let mut answer = Answer::default();
    known.into_iter().for_each(|(amount, customer)| answer.add(amount, customer));
    answer
}

/// Lets this process have so many addresses, and no core file.
fn limit_addresses() -> std::io::Result<()> {
    for (resource, bytes) in [(libc::RLIMIT_AS, ADDRESSES), (libc::RLIMIT_CORE, 0)] {
        let limit = libc::rlimit { rlim_cur: bytes as _, rlim_max: bytes as _ };
        // SAFETY: the limit is read during the call.
        if unsafe { libc::setrlimit(resource, &limit) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
