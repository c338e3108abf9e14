//! Queries that are cancelled one after the other: how soon at a budget, and what is left of many.

use crate::load::{MIB, SORTED, block, grows, query, sorts, spawn};
use crate::process::Resident;
use crate::{A_SECOND, OTHERS, again, guard, row, runtime};
use dogtag::Service;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// One query with a budget: milliseconds from passing it to the error. When that is there, all is freed.
pub fn budget(is_busy: bool) -> Vec<f64> {
    const BUDGET: usize = 64 * MIB;

    let runtime = runtime();
    let stops = Arc::new(AtomicBool::new(false));
    runtime.block_on(async {
        let mut tasks = Vec::new();
        let mut spins = Vec::new();
        if is_busy {
            let others = (0..OTHERS).map(|i| query(&format!("query {i}")));
            tasks.extend(others.map(|query| spawn(&query, sorts(250_000, 1_000_000, &SORTED))));
            for _ in 0..2 {
                let stops = Arc::clone(&stops);
                spins.push(std::thread::spawn(move || while !stops.load(Relaxed) {}));
            }
        }
        let mut times = Vec::new();
        for i in 0..20 {
            let runaway =
                Service::builder(format!("runaway {i}")).cancel_at(BUDGET as u64).register().unwrap();
            let passed: Arc<Mutex<Option<Instant>>> = Arc::default();
            let watches = {
                let passed = Arc::clone(&passed);
                move |bytes| {
                    // (With what its list of blocks takes.)
                    if bytes >= BUDGET {
                        passed.lock().unwrap().get_or_insert_with(Instant::now);
                    }
                    false
                }
            };
            let outcome = spawn(&runaway, grows(256 << 10, A_SECOND, watches)).await.unwrap();
            let now = Instant::now();
            assert!(outcome.is_err() && runaway.usage().bytes() < 1 << 16);
            let passed = passed.lock().unwrap().expect("it is cancelled when it has passed the budget");
            times.push((now - passed).as_secs_f64() * 1e3);
        }
        stops.store(true, Relaxed);
        spins.into_iter().for_each(|thread| thread.join().unwrap());
        tasks.iter().for_each(|task| task.abort());
        times
    })
}

pub fn the_budget(runs: usize) -> bool {
    println!("\na query with a budget of 64 MiB passes it, at 1 GiB/s; 20 times in each of {runs} runs");
    let mut is_well = true;
    for (task, name) in [("budget idle", "idle"), ("budget busy", "busy: 7 others, and 2 threads that spin")]
    {
        let times: Vec<Vec<f64>> =
            (0..runs).filter_map(|_| again(task)).flatten().map(|time| vec![time]).collect();
        is_well &= times.len() == 20 * runs;
        row(&format!("  from passing it to Err, and all freed, ms ({name})"), &times, 0);
    }
    is_well
}

/// Bytes and services that are left of so many cancelled queries, and by how many KiB RSS has grown in the
/// second half of them.
pub fn drift(queries: usize) -> Vec<f64> {
    let runtime = runtime();
    let _guard = guard();
    let resident = Resident::new();
    let one = |i: usize| {
        let query = query(&format!("query {i}"));
        let outcome = runtime.block_on(async {
            let work = async {
                let _rows: Vec<_> = (0..100).map(|row| block(row * 10 + 1)).collect();
                std::future::pending::<()>().await;
            };
            let task = spawn(&query, work);
            tokio::task::yield_now().await;
            assert!(query.cancel("enough"));
            task.await.unwrap()
        });
        assert!(outcome.is_err());
    };
    // Whatever is kept for the next one.
    (0..100).for_each(one);
    let figures = || {
        let snapshot = dogtag::snapshot();
        (snapshot.rows.len() as f64, dogtag::totals().bytes() as f64, resident.bytes() as f64 / 1024.0)
    };
    (0..queries / 2).for_each(one);
    let before = figures();
    (queries / 2..queries).for_each(one);
    let after = figures();
    vec![after.1 - before.1, after.0 - before.0, after.2 - before.2]
}

pub fn the_drift(queries: usize) -> bool {
    println!("\n{queries} queries that are cancelled one after the other, under a guard");
    let Some(left) = again(&format!("drift {queries}")) else { return false };
    println!(
        "  bytes, services, KiB of RSS that the second half leaves behind      {} / {} / {}",
        left[0], left[1], left[2]
    );
    left[1] == 0.0 && left[0].abs() < 4096.0
}
