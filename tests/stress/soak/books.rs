//! What should be in the ledger.

#[cfg(target_os = "linux")]
use super::backend;
use crate::common::CHECKED;
use crate::watch;
use dogtag::{Service, Snapshot};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub struct Books {
    accounts: Mutex<Vec<Arc<Account>>>,
    pub operations: AtomicU64,
    pub services: AtomicU64,
    pub threads: AtomicU64,
    pub snapshots: AtomicU64,
    line: Mutex<String>,
}

/// What one service should have, and those above it; in the books as long as anything refers to
/// it.
pub struct Account {
    number: u64,
    parent: Option<Arc<Account>>,
    bytes: AtomicI64,
    /// Of pools only the bytes are known.
    blocks: AtomicI64,
    is_pools: bool,
}

/// A service, and its account.
#[derive(Clone)]
pub struct Owner {
    pub service: Service,
    pub account: Arc<Account>,
}

impl Books {
    /// A new service.
    pub fn register(&self, parent: Option<&Owner>, hard_limit: Option<u64>, is_pools: bool) -> Owner {
        let number = self.services.fetch_add(1, Relaxed);
        let mut builder = Service::builder(format!("soak {number}"));
        if let Some(parent) = parent {
            builder = builder.parent(&parent.service);
        }
        if let Some(bytes) = hard_limit {
            builder = builder.hard_limit(bytes).soft_limit(bytes / 2);
        }
        let account = Arc::new(Account {
            number,
            parent: parent.map(|parent| parent.account.clone()),
            bytes: AtomicI64::new(0),
            blocks: AtomicI64::new(0),
            is_pools,
        });
        self.accounts.lock().unwrap().push(account.clone());
        Owner { service: builder.register().unwrap(), account }
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
        accounts.retain(|account| Arc::strong_count(account) > 1 || account.bytes.load(SeqCst) > 0);
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
        let mut expect = |what: &str, found: i64, expected: i64| {
            if found != expected {
                differences.push(format!("{what}: {found} instead of {expected}"));
            }
        };
        let accounts = self.accounts.lock().unwrap();
        let mut families = HashMap::<u64, i64>::new();
        for account in accounts.iter() {
            let bytes = account.bytes.load(SeqCst);
            for above in std::iter::successors(Some(account), |account| account.parent.as_ref()) {
                *families.entry(above.number).or_default() += bytes;
            }
        }
        let mut rows: HashMap<_, _> = snapshot
            .rows
            .iter()
            .filter_map(|row| Some((row.name.strip_prefix("soak ")?.parse::<u64>().unwrap(), row)))
            .collect();
        for account in accounts.iter() {
            let row = rows.remove(&account.number).cloned().unwrap_or_default();
            let name = |figure| format!("{figure} of service {}", account.number);
            expect(&name("bytes"), row.usage.bytes() as i64, account.bytes.load(SeqCst));
            if !account.is_pools {
                expect(&name("blocks"), row.usage.blocks() as i64, account.blocks.load(SeqCst));
            }
            let family = families.get(&account.number).copied().unwrap_or(0);
            expect(&name("bytes with children"), row.usage_with_children.bytes() as i64, family);
        }
        for (number, row) in rows {
            expect(
                &format!("live of service {number}, of which there is nothing"),
                row.usage.blocks() as i64,
                0,
            );
        }
        let sum: dogtag::Usage = snapshot.rows.iter().map(|row| row.usage).sum();
        let (sum, totals) = (sum + snapshot.ended, snapshot.totals);
        expect("rows' allocated bytes", sum.allocated_bytes as i64, totals.allocated_bytes as i64);
        expect("rows' freed bytes", sum.freed_bytes as i64, totals.freed_bytes as i64);
        expect("rows' allocated blocks", sum.allocated_blocks as i64, totals.allocated_blocks as i64);
        expect("lost blocks", snapshot.lost.blocks as i64, 0);
        drop(accounts);
        // What is not a service's is known in sum. Nothing may be allocated or freed meanwhile.
        let totals = dogtag::totals();
        let kept_back = quarantined();
        let backend = crate::ALLOC.backend();
        let cookies = backend.allocated_cookies.load(SeqCst) - backend.freed_cookies.load(SeqCst);
        let (blocks, bytes) = (backend.live_blocks() as i64, (backend.live_bytes() - cookies) as i64);
        #[cfg(target_os = "linux")]
        let (blocks, bytes) = (blocks + backend::BLOCKS.load(SeqCst), bytes + backend::BYTES.load(SeqCst));
        expect("blocks in sum", totals.blocks() as i64, blocks - kept_back);
        if !CHECKED {
            expect("bytes in sum", totals.bytes() as i64, bytes);
        }
        differences
    }

    /// Bytes and blocks that services have.
    pub fn live(&self) -> (i64, i64) {
        let accounts = self.accounts.lock().unwrap();
        let sum = |figure: fn(&Account) -> &AtomicI64| {
            accounts.iter().map(|account| figure(account).load(SeqCst)).sum()
        };
        (sum(|account| &account.bytes), sum(|account| &account.blocks))
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

impl Account {
    /// What a service's pools hold.
    pub fn set(&self, bytes: usize) {
        self.bytes.store(bytes as i64, SeqCst);
    }
}

/// Where a block came from.
#[derive(Clone)]
pub enum Source {
    Global,
    #[cfg(target_os = "linux")]
    Window(Arc<dogtag::Dogtag<backend::Window>>),
}

impl Source {
    /// # Safety
    ///
    /// As of [`GlobalAlloc::alloc`].
    unsafe fn alloc(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the layout is not empty.
        unsafe {
            match self {
                Self::Global if is_zeroed => crate::ALLOC.alloc_zeroed(layout),
                Self::Global => crate::ALLOC.alloc(layout),
                #[cfg(target_os = "linux")]
                Self::Window(window) => window.alloc(layout),
            }
        }
    }
}

/// A block, in the books of its owner.
pub struct Block {
    address: usize,
    layout: Layout,
    account: Arc<Account>,
    source: Source,
}

impl Block {
    /// One of the owner's; `None` if a limit is in the way.
    pub fn new(owner: &Owner, layout: Layout, source: &Source, is_zeroed: bool) -> Option<Self> {
        // SAFETY: the layout is not empty.
        let block = owner.service.run(|| unsafe { source.alloc(layout, is_zeroed) });
        Self::of(block, layout, owner, source)
    }

    /// A block of the owner, whose service the calling thread is in; `None` if a limit is in the way.
    pub fn here(owner: &Owner, layout: Layout) -> Option<Self> {
        // SAFETY: the layout is not empty.
        let block = unsafe { Source::Global.alloc(layout, false) };
        Self::of(block, layout, owner, &Source::Global)
    }

    fn of(block: *mut u8, layout: Layout, owner: &Owner, source: &Source) -> Option<Self> {
        if block.is_null() {
            return None;
        }
        owner.account.count(layout.size() as i64, 1);
        let (address, account) = (block as usize, owner.account.clone());
        let block = Self { address, layout, account, source: source.clone() };
        block.fill();
        Some(block)
    }

    /// Has it be another owner's, and as large as that, if a limit allows for it.
    pub fn resize(&mut self, owner: &Owner, size: usize) {
        self.check();
        let mut above = std::iter::successors(Some(owner.service.clone()), Service::parent);
        // What does not grow stays whose it is where a limit has no space for it: nobody could say.
        let must_grow = above.any(|service| service.hard_limit().is_some());
        let size = if must_grow { self.layout.size() + size } else { size };
        // SAFETY: the block is live, and has that layout.
        let moved = owner.service.run(|| unsafe {
            let block = self.address as *mut u8;
            match &self.source {
                Source::Global => crate::ALLOC.realloc(block, self.layout, size),
                #[cfg(target_os = "linux")]
                Source::Window(window) => window.realloc(block, self.layout, size),
            }
        });
        if !moved.is_null() {
            self.account.count(-(self.layout.size() as i64), -1);
            owner.account.count(size as i64, 1);
            self.address = moved as usize;
            self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
            self.account = owner.account.clone();
            self.fill();
        }
    }

    /// Its number at both ends.
    fn fill(&self) {
        let block = self.address as *mut u8;
        // SAFETY: the block is live, and at least a byte long.
        unsafe {
            block.write(self.account.number as u8);
            block.add(self.layout.size() - 1).write(self.account.number as u8);
        }
    }

    fn check(&self) {
        let block = self.address as *const u8;
        // SAFETY: the block is live, at least a byte long, and `fill` has written to both ends.
        let ends = unsafe { [block.read(), block.add(self.layout.size() - 1).read()] };
        assert_eq!(ends, [self.account.number as u8; 2], "a block was overwritten");
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.check();
        // SAFETY: the block is live, and has that layout.
        unsafe {
            match &self.source {
                Source::Global => crate::ALLOC.dealloc(self.address as *mut u8, self.layout),
                #[cfg(target_os = "linux")]
                Source::Window(window) => window.dealloc(self.address as *mut u8, self.layout),
            }
        }
        self.account.count(-(self.layout.size() as i64), -1);
    }
}

impl Account {
    fn count(&self, bytes: i64, blocks: i64) {
        self.bytes.fetch_add(bytes, SeqCst);
        self.blocks.fetch_add(blocks, SeqCst);
    }
}
