//! A backend that refuses what the calling thread has planned, and keeps books.

use crate::random::Random;
#[cfg(feature = "jemalloc")]
use dogtag::Jemalloc as Inner;
#[cfg(not(feature = "jemalloc"))]
use std::alloc::System as Inner;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

/// Which calls for memory are refused.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    None,
    /// Every nth of the thread's.
    Every(u64),
    /// One of so many, at random.
    OneIn(usize),
    All,
}

thread_local! {
    static PLAN: Cell<Plan> = const { Cell::new(Plan::None) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static NUMBERS: RefCell<Random> = const { RefCell::new(Random::new(0x2014_0605)) };
    static REFUSED: Cell<u32> = const { Cell::new(0) };
}

/// Does `work` by that plan, and says how often something was refused.
pub fn with<R>(plan: Plan, work: impl FnOnce() -> R) -> (R, u32) {
    struct Back;

    impl Drop for Back {
        fn drop(&mut self) {
            PLAN.set(Plan::None);
        }
    }

    REFUSED.set(0);
    PLAN.set(plan);
    let back = Back;
    let result = work();
    drop(back);
    (result, REFUSED.get())
}

fn refuses() -> bool {
    let refuses = match PLAN.get() {
        Plan::None => false,
        Plan::Every(nth) => {
            CALLS.set(CALLS.get() + 1);
            CALLS.get().is_multiple_of(nth)
        }
        Plan::OneIn(many) => NUMBERS.with_borrow_mut(|numbers| numbers.once_in(many)),
        Plan::All => true,
    };
    REFUSED.set(REFUSED.get() + u32::from(refuses));
    refuses
}

/// Bytes and blocks that a backend has given and not got back.
pub struct Books {
    bytes: AtomicI64,
    blocks: AtomicI64,
}

impl Books {
    pub const fn new() -> Self {
        Self { bytes: AtomicI64::new(0), blocks: AtomicI64::new(0) }
    }

    pub fn live(&self) -> (i64, i64) {
        (self.bytes.load(SeqCst), self.blocks.load(SeqCst))
    }

    fn count(&self, bytes: usize, sign: i64) {
        self.bytes.fetch_add(sign * bytes as i64, SeqCst);
        self.blocks.fetch_add(sign, SeqCst);
    }
}

/// With fields, so that all of its blocks have cookies.
pub struct Faulty<'books>(Option<&'books Books>);

impl Faulty<'static> {
    pub const UNBOOKED: Self = Self(None);
}

impl<'books> Faulty<'books> {
    pub fn new(books: &'books Books) -> Self {
        Self(Some(books))
    }

    fn books(&self) -> Option<&Books> {
        self.0
    }
}

/// Without, so that the owners of large blocks stand beside the heap. All have these books.
pub struct FaultyWithoutFields;

pub static BOOKS: Books = Books::new();

impl FaultyWithoutFields {
    fn books(&self) -> Option<&Books> {
        Some(&BOOKS)
    }
}

macro_rules! refuse_by_plan {
    ($backend:ty) => {
        // SAFETY: another backend does the work.
        unsafe impl GlobalAlloc for $backend {
            unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
                // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
                given(self.books(), layout.size(), || unsafe { Inner.alloc(layout) })
            }

            unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
                // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
                given(self.books(), layout.size(), || unsafe { Inner.alloc_zeroed(layout) })
            }

            unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
                if let Some(books) = self.books() {
                    books.count(layout.size(), -1);
                }
                // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
                unsafe { Inner.dealloc(block, layout) };
            }

            unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
                // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
                let moved = given(self.books(), size, || unsafe { Inner.realloc(block, layout, size) });
                if let Some(books) = self.books().filter(|_| !moved.is_null()) {
                    books.count(layout.size(), -1);
                }
                moved
            }
        }
    };
}

refuse_by_plan!(Faulty<'_>);
refuse_by_plan!(FaultyWithoutFields);

fn given(books: Option<&Books>, size: usize, give: impl FnOnce() -> *mut u8) -> *mut u8 {
    if refuses() {
        return ptr::null_mut();
    }
    let block = give();
    if let Some(books) = books.filter(|_| !block.is_null()) {
        books.count(size, 1);
    }
    block
}
