//! Violations, as data and as reports.

use super::access_context::AccessContext;
use super::block::{BlockHeader, Family, HEAD, Tag};
use super::claim::Claim;
use super::hexdump::Hexdump;
use super::settings::Settings;
use super::violation_kind::{Operation, ViolationKind};
use crate::format::{Amount, Position};
use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;

/// Describes what was done to a block, by whom, and how it was found.
///
/// `Display` writes the report: a line that says what happened, what is known
/// of the block, and a hexdump with wrong bytes in brackets. The
/// alternate form (`{:#}`) adds the call stacks with the functions' names,
/// which allocates and takes locks; the plain form does neither.
///
/// ```
/// use dogtag::check::{self, Reaction};
///
/// check::set_handler(|violation| {
///     let owner = violation.allocated().map_or("unknown", |context| context.service());
///     eprintln!("{} of a block of {owner}, found by {}", violation.kind(), violation.met());
///     Reaction::Abort
/// });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Violation {
    kind: ViolationKind,
    operation: Operation,
    address: usize,
    block: Option<usize>,
    layout: Option<Layout>,
    claim: Claim,
    given: Option<Layout>,
    family: Option<Family>,
    allocated: Option<AccessContext>,
    freed: Option<AccessContext>,
    met: AccessContext,
    first_wrong: Option<isize>,
    accessed: Option<(isize, usize)>,
    evidence: Hexdump,
}

impl Violation {
    /// Returns what was done.
    #[must_use]
    pub const fn kind(&self) -> ViolationKind {
        self.kind
    }

    /// Returns the operation that found the violation.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// Returns the address that the operation was called with: the block's, or for an
    /// [`InvalidFree`](ViolationKind::InvalidFree) the pointer that was to be freed, or for a
    /// [`RegionInUse`](ViolationKind::RegionInUse) the region's first byte; for an
    /// [`Access`](Operation::Access) the address that was read or written.
    #[must_use]
    pub const fn address(&self) -> usize {
        self.address
    }

    /// Returns the address of the block; of the nearest one for a [`WildWrite`](ViolationKind::WildWrite) or a
    /// [`WildRead`](ViolationKind::WildRead). `None` if the pointer is in no block, or there is none near.
    #[must_use]
    pub const fn block(&self) -> Option<usize> {
        self.block
    }

    /// Returns the size and the alignment that the block was requested with;
    /// `None` if there is no block, or if they have been overwritten.
    #[must_use]
    pub const fn layout(&self) -> Option<Layout> {
        self.layout
    }

    /// Returns the size and the alignment that the free or the reallocation gave; `None` if it gave
    /// neither. (C++ gives one or both; the other one is as it was requested.)
    #[must_use]
    pub const fn given(&self) -> Option<Layout> {
        self.given
    }

    /// Returns who allocated the block: its service owns the block. `None` if the pointer is in no
    /// block, or if the header has been overwritten.
    #[must_use]
    pub const fn allocated(&self) -> Option<&AccessContext> {
        self.allocated.as_ref()
    }

    /// Returns who freed the block; `None` while it is live.
    #[must_use]
    pub const fn freed(&self) -> Option<&AccessContext> {
        self.freed.as_ref()
    }

    /// Returns who found the violation.
    #[must_use]
    pub const fn met(&self) -> &AccessContext {
        &self.met
    }

    /// Returns the position of the wrong byte nearest to the block, in bytes from the block's beginning;
    /// for a [`WriteAfterFree`](ViolationKind::WriteAfterFree), the position of the block's first
    /// wrong byte.
    #[must_use]
    pub const fn first_wrong(&self) -> Option<isize> {
        self.first_wrong
    }

    /// Returns which bytes a function of C's was told to read or write, such as `memcpy`: the position of
    /// the first one, in bytes from the block's beginning, and their number. `None` if it was found
    /// otherwise.
    #[must_use]
    pub const fn accessed(&self) -> Option<(isize, usize)> {
        self.accessed
    }

    /// Makes a violation without the call stack of the thread that found it: for that the unwinder
    /// takes the loader's lock, and a thread that has the lock may be waiting for the pinned block.
    pub(super) fn new(kind: ViolationKind, operation: Operation, address: usize) -> Self {
        Self {
            kind,
            operation,
            address,
            block: None,
            layout: None,
            claim: Claim::default(),
            given: None,
            family: None,
            allocated: None,
            freed: None,
            met: AccessContext::now(false),
            first_wrong: None,
            accessed: None,
            evidence: Hexdump::NONE,
        }
    }

    /// Adds the call stack of the calling thread, which found the violation. Nothing may be pinned.
    pub(super) fn with_backtrace(mut self) -> Self {
        self.met = AccessContext::now(true);
        self
    }

    /// Sets the call stack of the thread that made the access: its number in the
    /// [depot](super::stack_depot), 0 for none.
    pub(super) fn met_at(mut self, trace: u32) -> Self {
        self.met = AccessContext::at(trace);
        self
    }

    fn is_wild(&self) -> bool {
        matches!(self.kind, ViolationKind::WildWrite | ViolationKind::WildRead)
    }

    /// How far the address is from the block; 0 within it.
    pub(super) fn distance(&self) -> usize {
        let (block, size) = (self.block.unwrap_or(0), self.layout.map_or(0, |layout| layout.size()));
        match self.address.checked_sub(block) {
            Some(offset) => offset.saturating_sub(size),
            None => block - self.address,
        }
    }

    pub(super) fn with_access(mut self, first: isize, length: usize) -> Self {
        self.accessed = Some((first, length));
        self
    }

    pub(super) fn claimed(mut self, claim: Claim) -> Self {
        self.claim = claim;
        self.given = claim.given(None);
        self
    }

    /// Adds what is known of the block. `tag` is the one that it should have.
    ///
    /// # Safety
    ///
    /// As for [`BlockHeader::read`].
    pub(super) unsafe fn about(
        mut self,
        block: NonNull<u8>,
        header: Option<&BlockHeader>,
        tag: Tag,
        first_wrong: Option<isize>,
    ) -> Self {
        self.block = Some(block.addr().get());
        self.first_wrong = first_wrong;
        if let Some(header) = header {
            self.layout = Some(header.layout());
            self.given = self.claim.given(self.layout);
            self.family = Some(header.family());
            self.allocated = Some(AccessContext::of(header.allocated()));
            if tag == Tag::Freed {
                self.freed = Some(AccessContext::of(header.freed()));
            }
        }
        let around = match (first_wrong, header) {
            (Some(offset), _) => Some(offset),
            // Not a guard, then: what stands before it.
            (None, None) => Some(-(HEAD as isize)),
            (None, Some(_)) => None,
        };
        if let Some(around) = around {
            let filled = Settings::get().fill.freed().filter(|_| tag == Tag::Freed);
            // SAFETY: the block is a checking allocator's, not given back, and the caller's alone or
            // pinned; the layout is from its header, which was believed.
            self.evidence = unsafe { Hexdump::around(around, block, header, filled) };
        }
        self
    }

    /// Writes the report without the call stacks.
    fn report(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dogtag: {}: ", self.kind)?;
        let size = self.layout.map(|layout| Amount(layout.size()));
        match (self.kind, size) {
            (ViolationKind::Overrun, Some(size)) => {
                writeln!(f, "something wrote past the end of a block of {size}")?
            }
            (ViolationKind::Overrun, None) => writeln!(f, "something wrote past the end of a block")?,
            (ViolationKind::Underrun, Some(size)) => {
                writeln!(f, "something wrote in front of a block of {size}")?
            }
            (ViolationKind::Underrun, None) => {
                writeln!(f, "something wrote in front of a block, and over what is known of it")?;
            }
            (ViolationKind::DoubleFree, _) => writeln!(f, "a block that is freed already is freed again")?,
            (ViolationKind::WriteAfterFree, Some(size)) => {
                writeln!(f, "something wrote to a block of {size} after it was freed")?;
            }
            (ViolationKind::WriteAfterFree, None) => {
                writeln!(f, "something wrote to a block after it was freed, and over what is known of it")?
            }
            (ViolationKind::LayoutMismatch, _) => {
                writeln!(f, "a block is given back with another layout than it has")?;
            }
            (ViolationKind::InvalidFree, Some(_)) if self.block == Some(self.address) => {
                writeln!(f, "a block is freed through another allocator than it came from")?;
            }
            (ViolationKind::InvalidFree, Some(_)) => {
                writeln!(f, "a pointer into the middle of a block is freed")?
            }
            (ViolationKind::InvalidFree, None) => writeln!(
                f,
                "a pointer is freed that was never handed out, or whose block was freed long ago"
            )?,
            (ViolationKind::AllocDeallocMismatch, _) => {
                let allocates = self.family.map_or("another function", Family::allocates);
                let frees = match (self.claim.family, self.operation) {
                    (Some(Family::Malloc), Operation::Realloc) => "realloc",
                    (family, _) => family.map_or("this one", Family::frees),
                };
                writeln!(f, "a block of {allocates} is given back by {frees}")?;
            }
            (ViolationKind::BadUsableSize, _) if self.freed.is_some() => {
                writeln!(f, "the size of a block is asked for that is freed already")?;
            }
            (ViolationKind::BadUsableSize, Some(_)) if self.block == Some(self.address) => {
                writeln!(f, "the size of a block is asked for that is another allocator's")?;
            }
            (ViolationKind::BadUsableSize, Some(_)) => {
                writeln!(f, "the size of a block is asked for by a pointer into the middle of it")?;
            }
            (ViolationKind::BadUsableSize, None) => writeln!(
                f,
                "the size of a block is asked for by a pointer that was never handed out, or whose block \
                 was freed long ago"
            )?,
            (ViolationKind::Overread, Some(size)) => {
                writeln!(f, "something read outside of a block of {size}")?;
            }
            (ViolationKind::Overread, None) => writeln!(f, "something read outside of a block")?,
            (ViolationKind::ReadAfterFree, Some(size)) => {
                writeln!(f, "something read a block of {size} after it was freed")?;
            }
            (ViolationKind::ReadAfterFree, None) => writeln!(f, "something read a block after it was freed")?,
            (ViolationKind::WildWrite, _) => {
                writeln!(f, "something wrote to memory of the heap that holds no block")?;
            }
            (ViolationKind::WildRead, _) => {
                writeln!(f, "something read memory of the heap that holds no block")?;
            }
            (ViolationKind::RegionInUse, _) => {
                writeln!(f, "a mapped region is dropped while blocks in it are live")?
            }
        }
        if self.block != Some(self.address) {
            write!(f, "  pointer    {:#x}", self.address)?;
            match self.block {
                Some(block) if self.is_wild() => {
                    let side = if self.address < block { "in front" } else { "past the end" };
                    write!(f, ", {} {side} of the nearest block", Amount(self.distance()))?;
                }
                Some(block) if self.address >= block => {
                    write!(f, ", {} into the block", Amount(self.address - block))?;
                }
                Some(block) => write!(f, ", {} in front of the block", Amount(block - self.address))?,
                None => {}
            }
            writeln!(f)?;
        }
        if let Some(block) = self.block {
            write!(f, "  block      {block:#x}")?;
            match self.layout {
                Some(layout) => writeln!(f, ", {}", Layouted(layout))?,
                None => writeln!(f)?,
            }
        }
        if let Some(given) = self.given
            && self.layout != Some(given)
        {
            writeln!(f, "  taken for  {}", Layouted(given))?;
        }
        let line = |f: &mut fmt::Formatter<'_>, what: &str, context: &AccessContext| {
            writeln!(f, "  {what:<10} by {context}")
        };
        if let Some(allocated) = &self.allocated {
            line(f, "allocated", allocated)?;
        }
        if let Some(freed) = &self.freed {
            line(f, "freed", freed)?;
        }
        writeln!(f, "  met        by {}, in {}", self.met, self.operation)?;
        if let Some((first, length)) = self.accessed {
            writeln!(f, "  access     to {}, from byte {first} on", Amount(length))?;
        }
        if let Some(offset) = self.first_wrong {
            writeln!(
                f,
                "  wrong      {}",
                Position { offset, size: self.layout.map(|layout| layout.size()) }
            )?;
        }
        write!(f, "{}", self.evidence)
    }

    /// Writes the call stacks: with the functions' names, or as bare addresses, which
    /// need neither memory nor locks.
    pub(super) fn backtraces(&self, f: &mut fmt::Formatter<'_>, names: bool) -> fmt::Result {
        let contexts = [
            ("allocated", self.allocated.as_ref()),
            ("freed", self.freed.as_ref()),
            ("met", Some(&self.met)),
        ];
        for (what, context) in contexts {
            let Some(backtrace) = context.and_then(AccessContext::backtrace) else { continue };
            writeln!(f, "  {what} at")?;
            if names {
                write!(f, "{backtrace}")?;
            } else {
                backtrace.each_address().try_for_each(|address| writeln!(f, "        {address:#x}"))?;
            }
        }
        Ok(())
    }

    pub(super) fn has_backtraces(&self) -> bool {
        self.met.backtrace().is_some() || self.allocated.is_some_and(|context| context.backtrace().is_some())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report(f)?;
        if f.alternate() { self.backtraces(f, true) } else { Ok(()) }
    }
}

struct Layouted(Layout);

impl fmt::Display for Layouted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} aligned to {}", Amount(self.0.size()), self.0.align())
    }
}
