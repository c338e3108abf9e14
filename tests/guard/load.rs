//! Queries at work: some that keep to what they need, and one that grows.
#![allow(dead_code, reason = "the bench uses what the tests do not")]

use dogtag::guard::Cancelled;
use dogtag::{InServiceExt, Service};
use std::future::Future;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub const MIB: usize = 1 << 20;

/// A query, which a guard may cancel.
pub fn query(name: &str) -> Service {
    Service::builder(name).cancellable(0).register().unwrap()
}

/// What a query's task returns.
pub type Outcome<T> = Result<T, Cancelled>;

/// Has a future run as a task of that query.
pub fn spawn<T: Send + 'static>(
    query: &Service,
    work: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<Outcome<T>> {
    tokio::spawn(work.in_service(query).or_cancelled())
}

/// Memory that is in memory.
pub fn block(bytes: usize) -> Vec<u8> {
    black_box(vec![1_u8; bytes])
}

/// The rows that queries have sorted: those that count, and others.
pub static SORTED: AtomicU64 = AtomicU64::new(0);
pub static NOT_COUNTED: AtomicU64 = AtomicU64::new(0);

/// A query that sorts what it holds, so many times: some milliseconds of work each, between which others may
/// run. Returns how many rows it has sorted, which are counted there as well.
pub async fn sorts(rows: usize, times: usize, counter: &'static AtomicU64) -> usize {
    let mut sorted = 0;
    let mut seed = rows as u64;
    for _ in 0..times {
        let mut table: Vec<u64> = (0..rows)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed
            })
            .collect();
        for part in table.chunks_mut(20_000) {
            part.sort_unstable();
            counter.fetch_add(part.len() as u64, Relaxed);
            tokio::task::yield_now().await;
        }
        sorted += black_box(table).len();
    }
    sorted
}

/// A query that grows by that many bytes a second, block by block. `is_enough` is asked after each, with what
/// it holds; then it holds that, and waits.
pub async fn grows(block_bytes: usize, a_second: u64, mut is_enough: impl FnMut(usize) -> bool) {
    /// At once, where it had to wait for its turn.
    const MOST: usize = 4 * MIB;

    let began = Instant::now();
    let mut blocks = Vec::new();
    loop {
        let bytes = blocks.len() * block_bytes;
        let due = (began.elapsed().as_secs_f64() * a_second as f64) as usize;
        let batch = due.saturating_sub(bytes).min(MOST) / block_bytes;
        for _ in 0..batch {
            blocks.push(block(block_bytes));
            if is_enough(blocks.len() * block_bytes) {
                return std::future::pending().await;
            }
        }
        // Others may run; and it is not faster than that.
        if batch * block_bytes < MOST {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// A query that works as one that [grows](grows), in memory that it has.
pub async fn writes(block_bytes: usize, a_second: u64) {
    let mut blocks: Vec<_> = (0..4 * MIB / block_bytes).map(|_| block(block_bytes)).collect();
    let mut written = 0;
    let began = Instant::now();
    loop {
        let due = (began.elapsed().as_secs_f64() * a_second as f64) as usize;
        let batch = (due.saturating_sub(written) / block_bytes).min(blocks.len());
        for block in &mut blocks[..batch] {
            black_box(block).fill(1);
            written += block_bytes;
        }
        if batch < blocks.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}
