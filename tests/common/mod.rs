//! A backend that keeps books of its own, and can refuse to serve.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

#[path = "../sampled/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "not every test binary has another one")]
mod sampled;

#[cfg(feature = "jemalloc")]
use dogtag::Jemalloc as Inner;
use sampled::is_every_block_sampled;
#[cfg(not(feature = "jemalloc"))]
use std::alloc::System as Inner;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// Whether freed blocks are kept back, and much else stands around a block.
pub const CHECKED: bool = cfg!(feature = "memory-check");

/// Bytes of the backend's memory around a block of [`Counting`]'s.
pub fn around(layout: Layout) -> u64 {
    if CHECKED { (before(layout) + tail(layout)) as u64 } else { every_cookie() }
}

/// Checked blocks from 16 of these on have their pages alone, and one more in front.
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };

fn has_own_pages(layout: Layout) -> bool {
    layout.size() >= 16 * PAGE
}

/// The bytes in front of a checked block.
pub fn before(layout: Layout) -> usize {
    layout.align().max(if has_own_pages(layout) { PAGE } else { 64 })
}

/// The bytes behind a checked block that are its guard: 32 or more, up to jemalloc's size class, or to the end of a
/// page of its own.
pub fn tail(layout: Layout) -> usize {
    let inner = layout.size() + before(layout);
    let least = inner + if layout.size() < 512 { 32 } else { 64 };
    if has_own_pages(layout) {
        return least.next_multiple_of(PAGE) - inner;
    }
    let spacing = if least <= 128 { 16 } else { least.next_power_of_two() / 8 };
    (least.next_multiple_of(spacing) - inner).min(256)
}

/// The same of [`ZeroSized`]'s, whose large blocks have no cookie.
pub fn around_zero_sized(layout: Layout) -> u64 {
    if !CHECKED && layout.size() >= LARGE { 0 } else { around(layout) }
}

/// From this size on blocks of a backend without fields have no cookie.
pub const LARGE: usize = 4096;

/// Whether the books know which bytes that the backend was asked for are cookies. Not where each may
/// have six: then too many sizes look larger than they are.
pub fn knows_cookies() -> bool {
    !CHECKED && !is_every_block_sampled()
}

/// Bytes of a cookie: the long one, where every block is sampled.
fn every_cookie() -> u64 {
    if is_every_block_sampled() { 6 } else { 2 }
}

/// The cookie of a block of [`ZeroSized`]'s, for which it was asked for so many
/// bytes. Those of 4094 and 4095 look larger than they are.
fn cookie(outer: usize) -> u64 {
    if !CHECKED && outer < LARGE { every_cookie() } else { 0 }
}

/// Bytes and blocks that are freed but that the backend has not got back.
pub fn quarantined() -> (u64, u64) {
    dogtag::snapshot().quarantine.map_or((0, 0), |quarantine| (quarantine.bytes, quarantine.blocks))
}

/// The default backend with books of its own, to hold the ledger against.
pub struct Counting(Books);

/// The same without fields; all instances share the books.
pub struct ZeroSized;

/// The same for an owner table: no block has a cookie, and the books are its own.
pub struct Unpadded;

static BOOKS: Books = Books::new();
static UNPADDED: Books = Books::new();

pub struct Books {
    pub allocated_bytes: AtomicU64,
    pub allocated_blocks: AtomicU64,
    pub freed_bytes: AtomicU64,
    pub freed_blocks: AtomicU64,
    pub allocated_cookies: AtomicU64,
    pub freed_cookies: AtomicU64,
    pub zeroed_calls: AtomicU64,
    pub realloc_calls: AtomicU64,
    pub refuses: AtomicBool,
}

impl Counting {
    pub const fn new() -> Self {
        Self(Books::new())
    }
}

impl Deref for Counting {
    type Target = Books;

    fn deref(&self) -> &Books {
        &self.0
    }
}

impl Deref for ZeroSized {
    type Target = Books;

    fn deref(&self) -> &Books {
        &BOOKS
    }
}

impl Deref for Unpadded {
    type Target = Books;

    fn deref(&self) -> &Books {
        &UNPADDED
    }
}

impl Books {
    const fn new() -> Self {
        Self {
            allocated_bytes: AtomicU64::new(0),
            allocated_blocks: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            freed_blocks: AtomicU64::new(0),
            allocated_cookies: AtomicU64::new(0),
            freed_cookies: AtomicU64::new(0),
            zeroed_calls: AtomicU64::new(0),
            realloc_calls: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
        }
    }

    pub fn live_bytes(&self) -> u64 {
        self.allocated_bytes.load(SeqCst) - self.freed_bytes.load(SeqCst)
    }

    pub fn live_blocks(&self) -> u64 {
        self.allocated_blocks.load(SeqCst) - self.freed_blocks.load(SeqCst)
    }

    fn count(&self, block: *mut u8, size: usize, cookie: u64) -> *mut u8 {
        if !block.is_null() {
            self.allocated_bytes.fetch_add(size as u64, SeqCst);
            self.allocated_blocks.fetch_add(1, SeqCst);
            self.allocated_cookies.fetch_add(cookie, SeqCst);
        }
        block
    }

    fn uncount(&self, size: usize, cookie: u64) {
        self.freed_bytes.fetch_add(size as u64, SeqCst);
        self.freed_blocks.fetch_add(1, SeqCst);
        self.freed_cookies.fetch_add(cookie, SeqCst);
    }
}

// Without destructors, so that signal handlers may use them at any time.
thread_local! {
    static IS_ENTERED: Cell<bool> = const { Cell::new(false) };
    static AT_NEXT_ENTRY: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Whether the calling thread is in a backend.
pub fn is_entered() -> bool {
    IS_ENTERED.get()
}

/// Has the calling thread do something when it next enters a backend, once; or nothing any more.
pub fn at_next_entry(work: Option<fn()>) {
    AT_NEXT_ENTRY.set(work);
}

/// While the thread is in a backend.
struct Entered(bool);

impl Entered {
    fn new() -> Self {
        let entered = Self(IS_ENTERED.replace(true));
        if let Some(work) = AT_NEXT_ENTRY.take() {
            work();
        }
        entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        IS_ENTERED.set(self.0);
    }
}

macro_rules! keep_books {
    ($backend:ty, $cookie:expr) => {
        // SAFETY: the default backend does the work.
        unsafe impl GlobalAlloc for $backend {
            unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
                let _entered = Entered::new();
                if self.refuses.load(SeqCst) {
                    return std::ptr::null_mut();
                }
                // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
                self.count(unsafe { Inner.alloc(layout) }, layout.size(), $cookie(layout.size()))
            }

            unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
                let _entered = Entered::new();
                self.zeroed_calls.fetch_add(1, SeqCst);
                if self.refuses.load(SeqCst) {
                    return std::ptr::null_mut();
                }
                // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
                self.count(unsafe { Inner.alloc_zeroed(layout) }, layout.size(), $cookie(layout.size()))
            }

            unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
                let _entered = Entered::new();
                self.uncount(layout.size(), $cookie(layout.size()));
                // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
                unsafe { Inner.dealloc(block, layout) };
            }

            unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
                let _entered = Entered::new();
                self.realloc_calls.fetch_add(1, SeqCst);
                if self.refuses.load(SeqCst) {
                    return std::ptr::null_mut();
                }
                // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
                let block = unsafe { Inner.realloc(block, layout, new_size) };
                if !block.is_null() {
                    self.uncount(layout.size(), $cookie(layout.size()));
                }
                self.count(block, new_size, $cookie(new_size))
            }
        }
    };
}

keep_books!(Counting, cookie);
keep_books!(ZeroSized, cookie);
keep_books!(Unpadded, |_| 0);

/// Pending once, so that a task can be moved, without the queue that tokio's
/// own `yield_now` keeps and grows.
pub async fn elsewhere() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
