//! Tenants of one process, each with a limit on its memory, and their queries.
//!
//! Each tenant runs queries, every one a service of its own below it: they build
//! an index over generated orders, join it with itself, and sort what they find.
//! One of the tenants asks for far too much. It is denied, reports it and goes on
//! with less; the others do not notice.
//!
//! `cargo run --release --example tenants`

use dogtag::{Dogtag, Service};
use std::collections::{BTreeMap, TryReserveError};
use std::error::Error;
use std::fmt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const MIB: u64 = 1 << 20;
const QUERIES: usize = 4;

/// Name, hard limit, and how many orders each query looks at.
const TENANTS: [(&str, u64, usize); 3] =
    [("acorn", 24 * MIB, 20_000), ("birch", 32 * MIB, 30_000), ("greedy", 16 * MIB, 300_000)];

fn main() -> Result<(), Box<dyn Error>> {
    let announced: &AtomicUsize = Box::leak(Box::default());
    let tenants: Vec<(Service, usize)> = TENANTS
        .iter()
        .map(|(name, limit, orders)| {
            let tenant = Service::builder(name)
                .hard_limit(*limit)
                .soft_limit(limit / 4 * 3)
                .on_soft_limit(|tenant| {
                    announced.fetch_add(1, Ordering::Relaxed);
                    eprintln!("{} uses more than three quarters of its memory", tenant.name());
                })
                .register()?;
            Ok((tenant, *orders))
        })
        .collect::<Result<_, dogtag::RegisterError>>()?;

    // All queries are at their largest at once, so that the table shows it.
    let (full, shown) =
        (&Barrier::new(TENANTS.len() * QUERIES + 1), &Barrier::new(TENANTS.len() * QUERIES + 1));
    let (outcomes, table) = thread::scope(|threads| {
        let mut running = Vec::new();
        for (tenant, orders) in &tenants {
            for number in 0..QUERIES {
                let query =
                    Service::builder(format!("{}/query {number}", tenant.name())).parent(tenant).register();
                let run = move || {
                    let query = query?;
                    let outcome = query.run(|| run_query(number as u64, *orders, full, shown));
                    Ok::<_, dogtag::RegisterError>((tenant, number, outcome))
                };
                running.push(threads.spawn(run));
            }
        }
        full.wait();
        let table = format!("{:#}", dogtag::snapshot());
        shown.wait();
        let outcomes: Vec<_> =
            running.into_iter().map(|query| query.join().expect("no query panics")).collect();
        (outcomes, table)
    });

    println!("While all queries run:\n\n{table}");
    for outcome in outcomes {
        let (tenant, number, outcome) = outcome?;
        println!("{} query {number}: {outcome}", tenant.name());
    }

    println!("\nAfterwards:\n\n{:#}", dogtag::snapshot());
    check(&tenants)
}

/// What a query found.
struct Outcome {
    orders: usize,
    pairs: usize,
    /// What it was refused, if it had to do with less.
    refused: Option<TryReserveError>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} orders, {} pairs of the same customer", self.orders, self.pairs)?;
        match &self.refused {
            Some(error) => write!(f, "; had to do with less: {error}"),
            None => Ok(()),
        }
    }
}

struct Order {
    customer: u32,
    amount: u32,
    note: String,
}

fn run_query(seed: u64, wanted: usize, full: &Barrier, shown: &Barrier) -> Outcome {
    let mut random = seed + 1;
    let mut orders: Vec<Order> = Vec::new();
    let mut refused = None;
    // Where much is asked for, it is asked for with a `try_`: what is refused is an
    // error then, and not the end of the process.
    let mut wanted = wanted;
    while let Err(error) = orders.try_reserve_exact(wanted) {
        refused = Some(error);
        wanted /= 2;
    }
    for _ in 0..wanted {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (customer, amount) = ((random >> 40) as u32 % 1000, (random >> 33) as u32 % 10_000);
        let mut note = String::new();
        if let Err(error) = note.try_reserve_exact(40) {
            refused = Some(error);
            break;
        }
        note.extend(std::iter::repeat_n('.', (amount % 40) as usize));
        orders.push(Order { customer, amount, note });
    }
    // The rest needs some memory, so some of the orders are given up.
    if refused.is_some() {
        orders.truncate(orders.len() / 2);
        orders.shrink_to_fit();
    }
    full.wait();
    shown.wait();

    let mut by_customer: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for order in orders.iter().filter(|order| order.note.len() > 10) {
        by_customer.entry(order.customer).or_default().push(order.amount);
    }
    let pairs = by_customer.values().map(|amounts| amounts.len() * amounts.len().saturating_sub(1) / 2).sum();
    Outcome { orders: orders.len(), pairs, refused }
}

/// Whoever kept within limits was not denied anything, and nobody holds anything
/// when all is done.
fn check(tenants: &[(Service, usize)]) -> Result<(), Box<dyn Error>> {
    for (tenant, _) in tenants {
        let usage = tenant.usage_with_children();
        let is_greedy = tenant.name() == "greedy";
        if (usage.denied > 0) != is_greedy {
            return Err(format!("{} was denied {} allocations", tenant.name(), usage.denied).into());
        }
        if usage.bytes() != 0 {
            return Err(format!("{} still holds {} bytes", tenant.name(), usage.bytes()).into());
        }
    }
    println!(
        "The greedy one was denied {} allocations; the others, none.",
        tenants[2].0.usage_with_children().denied
    );
    Ok(())
}
