//! The model of a service: what it has allocated and freed, and who keeps it.

use super::program::THREADS;
use super::world::ensure;
use dogtag::{Service, Usage};
use std::ops::RangeInclusive;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex};

/// Without a limit.
pub const NONE: u64 = u64::MAX;

/// How far each thread may get past a limit while others allocate, too.
const GRANT: i64 = 64 << 10;
/// Those that run errands besides.
const MOST_THREADS: i64 = 2 * THREADS as i64;

/// One service, from its beginning until nothing is left of it. By any thread at any time, so what
/// is free-running needs no lock; what is exact in turn only says so.
pub struct Known {
    pub name: String,
    pub handle: u32,
    pub parent: Option<Arc<Known>>,
    allocated_bytes: AtomicU64,
    allocated_blocks: AtomicU64,
    freed_bytes: AtomicU64,
    freed_blocks: AtomicU64,
    pub denied: AtomicU64,
    /// Denials that there may have been besides.
    pub doubtful: AtomicU64,
    pub hard: AtomicU64,
    pub soft: AtomicU64,
    /// The highest hard limit that it has had; counts from before it is set.
    highest: AtomicU64,
    /// Whether it was ever limited, so that the announcer may have held it for a moment.
    pub is_limited: AtomicBool,
    /// What it and all below it hold, and no less: what is freed is taken off before, what is
    /// allocated is added after.
    family: AtomicI64,
    /// In turn: the most that was live since the peak was reset, and the most when it was read.
    peak: AtomicU64,
    peak_read: AtomicU64,
    /// A bit for each thread that has allocated here.
    threads: AtomicU64,
    /// Threads that are in it, and scopes that go back to it.
    pub scopes: AtomicI64,
    /// Each clone of the service has a clone of this.
    token: Arc<()>,
    /// The clone of the parent that this one has until it ends.
    parent_token: Mutex<Option<Arc<()>>>,
    pub is_retired: AtomicBool,
    pub has_ended: AtomicBool,
}

/// A clone of a service, with its model. The clone goes first.
#[derive(Clone)]
pub struct Held {
    pub service: Service,
    pub known: Arc<Known>,
    _token: Arc<()>,
}

impl Held {
    pub fn new(service: Service, known: Arc<Known>) -> Self {
        let token = Arc::clone(&known.token);
        Self { service, known, _token: token }
    }
}

impl Known {
    pub fn new(name: String, handle: u32, parent: Option<Arc<Self>>, hard: Option<u64>) -> Self {
        let parent_token = Mutex::new(parent.as_ref().map(|parent| Arc::clone(&parent.token)));
        let hard = hard.unwrap_or(NONE);
        let is_limited = hard != NONE || parent.as_ref().is_some_and(|parent| parent.is_limited.load(SeqCst));
        Self {
            name,
            handle,
            parent,
            allocated_bytes: AtomicU64::new(0),
            allocated_blocks: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            freed_blocks: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            doubtful: AtomicU64::new(0),
            hard: AtomicU64::new(hard),
            soft: AtomicU64::new(NONE),
            highest: AtomicU64::new(hard),
            is_limited: AtomicBool::new(is_limited),
            family: AtomicI64::new(0),
            peak: AtomicU64::new(0),
            peak_read: AtomicU64::new(0),
            threads: AtomicU64::new(0),
            scopes: AtomicI64::new(0),
            token: Arc::new(()),
            parent_token,
            is_retired: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        }
    }

    /// This one and those above it.
    pub fn chain(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |known| known.parent.as_ref())
    }

    pub fn is_in_family_of(self: &Arc<Self>, above: &Arc<Self>) -> bool {
        self.chain().any(|known| Arc::ptr_eq(known, above))
    }

    /// Before a limit is set.
    pub fn will_be_limited(&self) {
        self.is_limited.store(true, SeqCst);
    }

    pub fn set_hard(&self, bytes: Option<u64>) {
        self.highest.fetch_max(bytes.unwrap_or(NONE), SeqCst);
        self.hard.store(bytes.unwrap_or(NONE), SeqCst);
    }

    /// What is about to be given back, or is about to change.
    pub fn expect_less(self: &Arc<Self>, bytes: u64) {
        self.chain().for_each(|known| _ = known.family.fetch_sub(bytes as i64, SeqCst));
    }

    /// What is there now, or again.
    pub fn find_more(self: &Arc<Self>, bytes: u64) {
        for known in self.chain() {
            let held = known.family.fetch_add(bytes as i64, SeqCst) + bytes as i64;
            let highest = known.highest.load(SeqCst);
            if bytes > 0 && highest != NONE {
                let most = (highest as i64).saturating_add(MOST_THREADS * GRANT);
                ensure!(
                    held <= most,
                    "{} holds {held} bytes, its limit was never above {highest}",
                    known.name
                );
            }
        }
    }

    /// Counts blocks that were allocated, by a thread of that number.
    pub fn charge(&self, bytes: u64, blocks: u64, thread: u64) {
        self.allocated_bytes.fetch_add(bytes, Relaxed);
        self.allocated_blocks.fetch_add(blocks, Relaxed);
        if blocks > 0 {
            self.threads.fetch_or(1 << (thread % 64), Relaxed);
        }
        let live = self.allocated_bytes.load(Relaxed).saturating_sub(self.freed_bytes.load(Relaxed));
        self.peak.fetch_max(live, Relaxed);
    }

    pub fn refund(&self, bytes: u64, blocks: u64) {
        self.freed_bytes.fetch_add(bytes, Relaxed);
        self.freed_blocks.fetch_add(blocks, Relaxed);
    }

    /// Whether a block is denied that takes another one's place; where nobody else does anything.
    pub fn denies(self: &Arc<Self>, size: usize, replaced: Option<(&Arc<Self>, usize)>) -> bool {
        self.chain().any(|known| {
            let hard = known.hard.load(SeqCst);
            let (more, replaced) = match replaced {
                Some((owner, old)) if owner.is_in_family_of(known) => (size.saturating_sub(old), old),
                _ => (size, 0),
            };
            // What is replaced was taken off before.
            let held = known.family.load(SeqCst) as u64 + replaced as u64;
            hard != NONE && more > 0 && held + more as u64 > hard
        })
    }

    /// In turn: what may still be allocated.
    pub fn headroom(self: &Arc<Self>) -> Option<u64> {
        let left = |known: &Arc<Self>| {
            let hard = known.hard.load(SeqCst);
            (hard != NONE).then(|| hard.saturating_sub(known.family.load(SeqCst) as u64))
        };
        self.chain().filter_map(left).min()
    }

    /// Without the peak, and as few denials as there can have been.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        usage.allocated_bytes = self.allocated_bytes.load(Relaxed);
        usage.allocated_blocks = self.allocated_blocks.load(Relaxed);
        usage.freed_bytes = self.freed_bytes.load(Relaxed);
        usage.freed_blocks = self.freed_blocks.load(Relaxed);
        usage.denied = self.denied.load(Relaxed);
        usage
    }

    /// Where nobody else does anything: what a peak may be. Its reading is noted.
    pub fn peaks(&self) -> RangeInclusive<u64> {
        let live = self.usage().bytes();
        let read = self.peak_read.fetch_max(live, Relaxed).max(live);
        let most = self.peak.load(Relaxed);
        let uncertain = u64::from(self.threads.load(Relaxed).count_ones()) << 20;
        read.max(most.saturating_sub(uncertain))..=most
    }

    pub fn reset_peak(&self) {
        let live = self.usage().bytes();
        self.peak.store(live, Relaxed);
        self.peak_read.store(live, Relaxed);
    }

    pub fn has_clones(&self) -> bool {
        Arc::strong_count(&self.token) > 1
    }

    /// Whether nothing keeps it.
    pub fn is_quiet(&self) -> bool {
        let usage = self.usage();
        !self.has_clones()
            && self.scopes.load(SeqCst) == 0
            && (usage.allocated_bytes, usage.allocated_blocks) == (usage.freed_bytes, usage.freed_blocks)
    }

    /// It ends, and so its parent may.
    pub fn end(&self) {
        self.has_ended.store(true, SeqCst);
        self.parent_token.lock().unwrap().take();
    }
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scopes, clones) = (self.scopes.load(SeqCst), Arc::strong_count(&self.token) - 1);
        let Self { name, handle, is_retired, has_ended, .. } = self;
        write!(f, "{name} ({handle:#x}): {clones} clones, {scopes} scopes, ")?;
        write!(f, "retired {is_retired:?}, ended {has_ended:?}, {:?}", self.usage())
    }
}
