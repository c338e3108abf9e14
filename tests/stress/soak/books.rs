//! What should be in the ledger.

#[cfg(target_os = "linux")]
use super::backend;
use crate::common::knows_cookies;
use crate::engine::Mode;
use crate::engine::account::{Account, Held, expect};
use crate::engine::block::{self, Owned};
use crate::engine::memory::Memory;
use crate::watch;
use dogtag::{Service, Snapshot};
use std::alloc::Layout;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub struct Books {
    /// As long as anything refers to them. Of pools only the live bytes are known.
    accounts: Mutex<Vec<(Arc<Account>, IsPools)>>,
    pub operations: AtomicU64,
    pub services: AtomicU64,
    pub threads: AtomicU64,
    pub snapshots: AtomicU64,
    line: Mutex<String>,
}

type IsPools = bool;

impl Books {
    /// A new service.
    pub fn register(&self, parent: Option<&Held>, hard_limit: Option<u64>, is_pools: IsPools) -> Held {
        let number = self.services.fetch_add(1, Relaxed);
        let mut builder = Service::builder(format!("soak {number}"));
        if let Some(parent) = parent {
            builder = builder.parent(&parent.service);
        }
        if let Some(bytes) = hard_limit {
            builder = builder.hard_limit(bytes).soft_limit(bytes / 2);
        }
        let service = builder.register().unwrap();
        let parent = parent.map(|parent| Arc::clone(&parent.account));
        let account = Account::new(service.name().to_owned(), service.handle(), parent, hard_limit);
        let held = Held::new(service, Arc::new(account));
        self.accounts.lock().unwrap().push((Arc::clone(&held.account), is_pools));
        held
    }

    /// Panics if the ledger says anything else. While nobody works.
    pub fn compare(&self) {
        // Dogtag's own thread may still be about to let go of a service.
        let snapshot = watch::eventually(|| {
            let snapshot = dogtag::snapshot();
            let differences = self.differences(&snapshot);
            if differences.is_empty() { Ok(snapshot) } else { Err(format!("{differences:?}\n{snapshot}")) }
        });
        let mut accounts = self.accounts.lock().unwrap();
        accounts.retain(|(account, _)| Arc::strong_count(account) > 1 || account.usage().bytes() > 0);
        accounts.shrink_to_fit();
        drop(accounts);
        let quarantine = snapshot
            .quarantine
            .map_or(String::new(), |quarantine| format!(", {} in quarantine", quarantine.blocks));
        let totals = snapshot.totals;
        let [operations, services, threads, snapshots] =
            [&self.operations, &self.services, &self.threads, &self.snapshots]
                .map(|count| count.load(Relaxed));
        *self.line.lock().unwrap() = format!(
            "{operations} operations, {services} services, {threads} threads, {snapshots} snapshots; \
             {} services live with {} bytes in {} blocks{quarantine}",
            snapshot.rows.len(),
            totals.bytes(),
            totals.blocks(),
        );
    }

    fn differences(&self, snapshot: &Snapshot) -> Vec<String> {
        let mut differences = Vec::new();
        let mut expect_figure = |what: &str, found: i64, expected: i64| {
            if found != expected {
                differences.push(format!("{what}: {found} instead of {expected}"));
            }
        };
        let accounts = self.accounts.lock().unwrap();
        let rows = snapshot.rows.iter().filter(|row| row.name.starts_with("soak "));
        let mut rows: HashMap<_, _> = rows.map(|row| (&*row.name, row)).collect();
        let mut others = Vec::new();
        for (account, is_pools) in accounts.iter() {
            let (name, usage) = (&*account.name, account.usage());
            let Some(row) = rows.remove(name) else {
                expect_figure(&format!("blocks of {name}, which has ended"), 0, usage.blocks() as i64);
                continue;
            };
            if *is_pools {
                expect_figure(&format!("bytes of {name}"), row.usage.bytes() as i64, usage.bytes() as i64);
            } else {
                others.extend(expect(name, row.usage, [&**account]).err());
            }
            let family = row.usage_with_children.bytes() as i64;
            expect_figure(&format!("bytes of {name} with children"), family, account.family());
        }
        for (name, row) in rows {
            expect_figure(
                &format!("live of {name}, of which there is nothing"),
                row.usage.blocks() as i64,
                0,
            );
        }
        let sum: dogtag::Usage = snapshot.rows.iter().map(|row| row.usage).sum();
        let (sum, totals) = (sum + snapshot.ended, snapshot.totals);
        expect_figure("rows' allocated bytes", sum.allocated_bytes as i64, totals.allocated_bytes as i64);
        expect_figure("rows' freed bytes", sum.freed_bytes as i64, totals.freed_bytes as i64);
        expect_figure("rows' allocated blocks", sum.allocated_blocks as i64, totals.allocated_blocks as i64);
        expect_figure("lost blocks", snapshot.lost.blocks as i64, 0);
        drop(accounts);
        // What is not a service's is known in sum. Nothing may be allocated or freed meanwhile.
        let totals = dogtag::totals();
        let kept_back = quarantined();
        let backend = crate::ALLOC.backend();
        let [allocated, freed] =
            [&backend.allocated_cookies, &backend.freed_cookies].map(|it| it.load(SeqCst));
        // Where sampled ones are longer, they are not known.
        let cookies = allocated.wrapping_sub(freed) as i64;
        let (blocks, bytes) = (backend.live_blocks() as i64, backend.live_bytes() as i64 - cookies);
        #[cfg(target_os = "linux")]
        let (blocks, bytes) = (blocks + backend::BLOCKS.load(SeqCst), bytes + backend::BYTES.load(SeqCst));
        expect_figure("blocks in sum", totals.blocks() as i64, blocks - kept_back);
        if knows_cookies() && !cfg!(feature = "profile") {
            expect_figure("bytes in sum", totals.bytes() as i64, bytes);
        }
        differences.append(&mut others);
        differences
    }

    /// Bytes and blocks that services have.
    pub fn live(&self) -> (i64, i64) {
        let accounts = self.accounts.lock().unwrap();
        let sum: dogtag::Usage = accounts.iter().map(|(account, _)| account.usage()).sum();
        (sum.bytes() as i64, sum.blocks() as i64)
    }

    pub fn line(&self) -> String {
        self.line.lock().unwrap().clone()
    }
}

/// Blocks that are freed but that no backend has got back; they and all others are looked at.
fn quarantined() -> i64 {
    #[cfg(feature = "memory-check")]
    {
        let verified = dogtag::check::verify();
        assert_eq!(verified.violations, 0);
        verified.quarantined_blocks as i64
    }
    #[cfg(not(feature = "memory-check"))]
    0
}

/// Where a block came from.
#[derive(Clone)]
pub enum Source {
    Global,
    #[cfg(target_os = "linux")]
    Window(Arc<dogtag::Dogtag<backend::Window>>),
}

impl Memory for Source {
    const ENDS: usize = 64;

    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the layout is not empty.
        unsafe {
            match self {
                Self::Global => (&crate::ALLOC).allocate(layout, is_zeroed),
                #[cfg(target_os = "linux")]
                Self::Window(window) => (&**window).allocate(layout, is_zeroed),
            }
        }
    }

    unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the block is live, of that layout, and from there; the new size is not 0.
        unsafe {
            match self {
                Self::Global => (&crate::ALLOC).reallocate(block, old, new, is_zeroed),
                #[cfg(target_os = "linux")]
                Self::Window(window) => (&**window).reallocate(block, old, new, is_zeroed),
            }
        }
    }

    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is live, of that layout, and from there.
        unsafe {
            match self {
                Self::Global => (&crate::ALLOC).free(block, layout),
                #[cfg(target_os = "linux")]
                Self::Window(window) => (&**window).free(block, layout),
            }
        }
    }
}

/// A block, which is freed when it is dropped.
pub type Block = Owned<Source, Arc<Account>>;

/// A block of the owner, whose service the calling thread is in; `None` if a limit is in the way.
pub fn allocate(owner: &Held, layout: Layout, source: Source, is_zeroed: bool) -> Option<Block> {
    let account = Arc::clone(&owner.account);
    block::Block::allocate(source, account, layout, is_zeroed, Mode::Among).map(Owned::new)
}

/// Has a block be another owner's, and as large as that, if a limit allows for it.
pub fn resize(block: &mut Block, owner: &Held, size: usize) {
    let block = block.block();
    let must_grow = !block.is_clear_whose(&owner.account, size, Mode::Among);
    let size = if must_grow { block.size() + size } else { size };
    let layout = Layout::from_size_align(size, block.piece.layout.align()).unwrap();
    owner.service.run(|| block.resize(&owner.account, layout, false, Mode::Among));
}
