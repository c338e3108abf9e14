//! The model of a service: what it has allocated and freed, what its limits deny, and who keeps it.

use super::memory::{Memory, Refusal};
use super::{Mode, aside, ensure};
use dogtag::{Service, Usage};
use std::alloc::Layout;
use std::cell::Cell;
use std::ops::{Deref, RangeInclusive};
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex};

/// Without a limit.
pub const NONE: u64 = u64::MAX;

/// How far each thread may get past a limit while others allocate, too.
pub const GRANT: i64 = 64 << 10;
/// Threads of any test that allocate at the same time in services with limits.
const MOST_THREADS: i64 = 8;

/// One service, from its beginning until nothing is left of it. By any thread at any time, so what
/// is free-running needs no lock; what is exact in turn only says so.
pub struct Account {
    pub name: String,
    pub handle: u32,
    pub parent: Option<Arc<Account>>,
    /// Whether one thread alone counts here.
    is_own: bool,
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
    /// The most that the family held.
    most: AtomicI64,
    /// In turn: the most that was live since the peak was reset, and the most when it was read.
    peak: AtomicU64,
    peak_read: AtomicU64,
    /// A bit for each thread that has allocated here.
    threads: AtomicU64,
    /// Threads that are in it, and scopes that go back to it.
    scopes: AtomicI64,
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
    pub account: Arc<Account>,
    _token: Arc<()>,
}

impl Held {
    pub fn new(service: Service, account: Arc<Account>) -> Self {
        let token = Arc::clone(&account.token);
        Self { service, account, _token: token }
    }
}

/// Whose a block is.
pub trait Owner: Clone + Deref<Target = Account> {}

impl<O: Clone + Deref<Target = Account>> Owner for O {}

thread_local! {
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// Gives the calling thread a number, by which peaks know how many have allocated.
pub fn number_thread(number: u64) {
    THREAD.set(number);
}

impl Account {
    pub fn new(name: String, handle: u32, parent: Option<Arc<Self>>, hard: Option<u64>) -> Self {
        let parent_token = Mutex::new(parent.as_ref().map(|parent| Arc::clone(&parent.token)));
        let hard = hard.unwrap_or(NONE);
        let is_limited = hard != NONE || parent.as_ref().is_some_and(|parent| parent.is_limited.load(SeqCst));
        Self {
            name,
            handle,
            parent,
            is_own: false,
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
            most: AtomicI64::new(0),
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

    /// One thread's part of a service without limits. No locked instruction counts there, which
    /// would keep the threads in order.
    pub fn of_one_thread(handle: u32) -> Self {
        Self { is_own: true, ..Self::new(String::new(), handle, None, None) }
    }

    /// The model of a service that has done something before.
    pub fn of(service: &Service) -> Self {
        let account = Self::new(service.name().to_owned(), service.handle(), None, service.hard_limit());
        let usage = service.usage();
        account.charge(usage.allocated_bytes, usage.allocated_blocks);
        account.refund(usage.freed_bytes, usage.freed_blocks);
        account.denied.store(usage.denied, Relaxed);
        account.change_family(usage.bytes() as i64);
        account.reset_peak();
        account
    }

    /// This one and those above it.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |account| account.parent.as_deref())
    }

    pub fn is_in_family_of(&self, above: &Self) -> bool {
        self.chain().any(|account| std::ptr::eq(account, above))
    }

    /// Whether a limit of it or of those above was ever set.
    pub fn was_limited(&self) -> bool {
        self.chain().any(|account| account.is_limited.load(SeqCst))
    }

    /// Before a limit is set.
    pub fn will_be_limited(&self) {
        self.is_limited.store(true, SeqCst);
    }

    pub fn set_hard(&self, bytes: Option<u64>) {
        self.highest.fetch_max(bytes.unwrap_or(NONE), SeqCst);
        self.hard.store(bytes.unwrap_or(NONE), SeqCst);
    }

    pub fn set_soft(&self, bytes: Option<u64>) {
        self.soft.store(bytes.unwrap_or(NONE), SeqCst);
    }

    fn add(&self, count: &AtomicU64, more: u64) {
        if self.is_own {
            count.store(count.load(Relaxed) + more, Relaxed);
        } else {
            count.fetch_add(more, Relaxed);
        }
    }

    /// Counts blocks that the calling thread has allocated.
    pub fn charge(&self, bytes: u64, blocks: u64) {
        self.add(&self.allocated_bytes, bytes);
        self.add(&self.allocated_blocks, blocks);
        if self.is_own {
            return;
        }
        if blocks > 0 {
            self.threads.fetch_or(1 << (THREAD.get() % 64), Relaxed);
        }
        let live = self.allocated_bytes.load(Relaxed).saturating_sub(self.freed_bytes.load(Relaxed));
        self.peak.fetch_max(live, Relaxed);
    }

    /// Counts blocks that were freed, whoever has done so.
    pub fn refund(&self, bytes: u64, blocks: u64) {
        self.add(&self.freed_bytes, bytes);
        self.add(&self.freed_blocks, blocks);
    }

    fn change_family(&self, bytes: i64) {
        if self.is_own {
            return;
        }
        let held = self.family.fetch_add(bytes, SeqCst) + bytes;
        let highest = self.highest.load(SeqCst);
        if bytes > 0 {
            self.most.fetch_max(held, SeqCst);
            let most = highest.min(i64::MAX as u64) as i64;
            let most = most.saturating_add(MOST_THREADS * GRANT);
            ensure!(held <= most, "{} holds {held} bytes, its limit was never above {highest}", self.name);
        }
    }

    /// What is about to be given back, or is about to change.
    pub fn expect_less(&self, bytes: u64) {
        self.chain().for_each(|account| account.change_family(-(bytes as i64)));
    }

    /// What is there now, or again.
    pub fn find_more(&self, bytes: u64) {
        self.chain().for_each(|account| account.change_family(bytes as i64));
    }

    /// A thread is in the service, or a scope goes back to it.
    pub fn enters(&self) {
        if !self.is_own {
            self.scopes.fetch_add(1, SeqCst);
        }
    }

    pub fn leaves(&self) {
        if !self.is_own {
            self.scopes.fetch_sub(1, SeqCst);
        }
    }

    /// A block is had.
    pub fn gets(&self, bytes: usize) {
        self.charge(bytes as u64, 1);
        self.find_more(bytes as u64);
    }

    /// A block is freed by `work`.
    pub fn gives<R>(&self, bytes: usize, work: impl FnOnce() -> R) -> R {
        self.expect_less(bytes as u64);
        let result = work();
        self.refund(bytes as u64, 1);
        result
    }

    /// A block of this service's is about to become another one's, of another size. Those who have both
    /// the old and the new one have no less than the smaller of them meanwhile.
    pub(super) fn will_change(&self, to: &Self, old: usize, new: usize) {
        self.chain().for_each(|account| account.change_family(-account.difference(to, old, new)));
    }

    /// It has done so.
    pub(super) fn changed(&self, to: &Self, old: usize, new: usize) {
        self.refund(old as u64, 1);
        to.charge(new as u64, 1);
        to.chain().for_each(|account| account.change_family(account.difference(self, new, old)));
    }

    /// It has not.
    pub(super) fn unchanged(&self, to: &Self, old: usize, new: usize) {
        self.chain().for_each(|account| account.change_family(account.difference(to, old, new)));
    }

    /// By how much a block of so many bytes, below this one, is more than another service's.
    fn difference(&self, other: &Self, bytes: usize, others: usize) -> i64 {
        let others = if other.is_in_family_of(self) { others } else { 0 };
        bytes.saturating_sub(others) as i64
    }

    /// What is live of a service of which nothing else is known.
    pub fn set_live(&self, bytes: usize) {
        let (live, bytes) = (self.usage().bytes(), bytes as u64);
        self.expect_less(live);
        self.refund(live, 0);
        self.charge(bytes, 0);
        self.find_more(bytes);
    }

    /// Whether a block is denied that takes another one's place; where nobody else does anything.
    pub fn denies(&self, size: usize, replaced: Option<(&Self, usize)>) -> bool {
        self.chain().any(|account| {
            let hard = account.hard.load(SeqCst);
            let more = match replaced {
                Some((owner, old)) => account.difference(owner, size, old) as u64,
                None => size as u64,
            };
            hard != NONE && more > 0 && account.family.load(SeqCst) as u64 + more > hard
        })
    }

    /// Counts a null, which has to be a limit's doing, or the memory's.
    pub fn was_denied(&self, memory: &impl Memory, layout: Layout, mode: Mode, is_expected: bool) {
        match mode {
            Mode::Alone if !is_expected => return aside(|| memory.check_refusal(layout)),
            Mode::Among if memory.may_refuse() != Refusal::Nothing => {
                self.doubtful.fetch_add(1, SeqCst);
                return;
            }
            Mode::Among => ensure!(self.was_limited(), "{layout:?} was not had"),
            Mode::Alone => {}
        }
        self.denied.fetch_add(1, SeqCst);
    }

    /// In turn: what may still be allocated.
    pub fn headroom(&self) -> Option<u64> {
        let left = |account: &Self| {
            let hard = account.hard.load(SeqCst);
            (hard != NONE).then(|| hard.saturating_sub(account.family.load(SeqCst) as u64))
        };
        self.chain().filter_map(left).min()
    }

    /// While nobody does anything: what it and all below it hold.
    pub fn family(&self) -> i64 {
        self.family.load(SeqCst)
    }

    /// The most that it and all below it held at once, and no more than that.
    pub fn most(&self) -> i64 {
        self.most.load(SeqCst)
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

/// Whether a usage is that of these services, but for the peak and doubtful denials.
pub fn expect<'a>(
    what: &str,
    found: Usage,
    services: impl IntoIterator<Item = &'a Account>,
) -> Result<(), String> {
    let (mut expected, mut doubtful) = (Usage::default(), 0);
    for account in services {
        expected += account.usage();
        doubtful += account.doubtful.load(SeqCst);
    }
    let is_denied = (expected.denied..=expected.denied + doubtful).contains(&found.denied);
    let mut comparable = without_peak(found);
    comparable.denied = expected.denied;
    if is_denied && expected == comparable {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, not {expected:?}, with {doubtful} doubtful denials"))
}

/// The figures that are known at any time: services have their peaks when they will.
pub fn without_peak(mut usage: Usage) -> Usage {
    usage.peak_bytes = 0;
    usage
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scopes, clones) = (self.scopes.load(SeqCst), Arc::strong_count(&self.token) - 1);
        let Self { name, handle, is_retired, has_ended, .. } = self;
        write!(f, "{name} ({handle:#x}): {clones} clones, {scopes} scopes, ")?;
        write!(f, "retired {is_retired:?}, ended {has_ended:?}, {:?}", self.usage())
    }
}
