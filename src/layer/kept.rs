//! Hidden spans that are kept when they are closed, for the next one of their callsite.
//!
//! Where all spans of a callsite run in one service, a hidden one is like the next. It stands in the
//! registry with all that the layer has put there, and stays when it is closed. To make the next
//! one is to take it, and no thread that remembers it has to forget it. Its clones are counted here.
//!
//! One that has got another service ([`Service::attach`]) is not as the others: it is closed in earnest.

use super::token::Token;
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::{Scope, Service, gate};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A hidden span that is kept. It is never freed, and used again for others when its subscriber is gone.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The span's number and token, as long as its service is its callsite's; otherwise 0.
    span: AtomicU64,
    generation: AtomicU64,
    /// The number of its callsite.
    callsite: AtomicUsize,
    clones: AtomicUsize,
}

/// Those whose spans are closed in earnest.
static UNUSED: Mutex<Vec<&'static Kept>> = Mutex::new(Vec::new());

impl Kept {
    /// Begins to keep a span, of which there is one clone.
    pub(super) fn begin(callsite: usize, token: Token) -> &'static Self {
        let unused = {
            let _gate = gate();
            UNUSED.lock().unwrap_or_else(PoisonError::into_inner).pop()
        };
        let kept = unused.unwrap_or_else(|| Box::leak(Box::default()));
        kept.callsite.store(callsite, Ordering::Relaxed);
        kept.clones.store(1, Ordering::Relaxed);
        kept.span.store(token.span(), Ordering::Relaxed);
        kept.generation.store(token.generation(), Ordering::Release);
        kept
    }

    /// Gives it up, with its span.
    pub(super) fn end(&'static self) {
        self.change();
        let _apart = Scope::enter(&UNATTRIBUTED);
        let _gate = gate();
        UNUSED.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// Notes that its service is not its callsite's any more.
    pub(super) fn change(&self) {
        self.generation.store(0, Ordering::Release);
    }

    /// Whether its service is its callsite's.
    pub(super) fn is_unchanged(&self) -> bool {
        self.generation.load(Ordering::Acquire) != 0
    }

    /// Whether it is still what a thread remembers of it.
    #[inline]
    pub(super) fn is(&self, token: Token) -> bool {
        self.generation.load(Ordering::Acquire) == token.generation()
    }

    pub(super) fn callsite(&self) -> usize {
        self.callsite.load(Ordering::Relaxed)
    }

    /// Counts one more clone.
    pub(super) fn retain(&self) {
        self.clones.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one clone less. Returns whether it was the last one.
    pub(super) fn release(&self) -> bool {
        // Nobody else has one, who could clone it meanwhile.
        if self.clones.load(Ordering::Acquire) == 1 {
            self.clones.store(0, Ordering::Relaxed);
            return true;
        }
        let less = |clones: usize| clones.checked_sub(1);
        self.clones.fetch_update(Ordering::AcqRel, Ordering::Acquire, less) == Ok(1)
    }
}

/// The spans that are kept of a callsite, and those of them that are closed.
#[derive(Debug)]
pub(super) struct OfCallsite {
    service: Service,
    closed: [Closed; 8],
    others: Mutex<Vec<&'static Kept>>,
}

/// One that threads have closed which look here first.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Closed(AtomicPtr<Kept>);

impl OfCallsite {
    /// So many are kept, beside one of each part of the threads.
    const MOST: usize = 1024;

    pub(super) fn new(service: Service) -> Self {
        Self { service, closed: Default::default(), others: Mutex::default() }
    }

    /// The service that they run in.
    #[inline]
    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    /// Takes one that is closed. Its clone is the caller's.
    #[inline]
    pub(super) fn take(&self, thread: usize) -> Option<(&'static Kept, Token)> {
        let first = self.first(thread).swap(ptr::null_mut(), Ordering::Acquire);
        // SAFETY: nothing but references that live for ever is put there.
        let kept = unsafe { first.as_ref() }.or_else(|| self.take_another())?;
        kept.clones.store(1, Ordering::Relaxed);
        let (span, generation) = (&kept.span, &kept.generation);
        Some((kept, Token::of(span.load(Ordering::Relaxed), generation.load(Ordering::Relaxed))))
    }

    #[cold]
    fn take_another(&self) -> Option<&'static Kept> {
        let _gate = gate();
        self.others.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Puts one back that is closed. `false` if there is one already where the thread looks first.
    #[inline]
    pub(super) fn put(&self, thread: usize, kept: &'static Kept) -> bool {
        let pointer = ptr::from_ref(kept).cast_mut();
        let exchanged = self.first(thread).compare_exchange(
            ptr::null_mut(),
            pointer,
            Ordering::Release,
            Ordering::Relaxed,
        );
        exchanged.is_ok()
    }

    /// Puts one back that is closed, beside the first ones. `false` if there are enough of them.
    #[cold]
    pub(super) fn put_another(&self, kept: &'static Kept) -> bool {
        let _apart = Scope::enter(&UNATTRIBUTED);
        let _gate = gate();
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let has_place = others.len() < Self::MOST;
        if has_place {
            others.push(kept);
        }
        has_place
    }

    #[inline]
    fn first(&self, thread: usize) -> &AtomicPtr<Kept> {
        &self.closed[thread % self.closed.len()].0
    }
}

impl Drop for OfCallsite {
    fn drop(&mut self) {
        // Those that are not closed stay where they are, as whoever forgets spans has it.
        let others = std::mem::take(self.others.get_mut().unwrap_or_else(PoisonError::into_inner));
        others.into_iter().for_each(Kept::end);
        while let Some((kept, _)) = (0..self.closed.len()).find_map(|thread| self.take(thread)) {
            kept.end();
        }
    }
}
