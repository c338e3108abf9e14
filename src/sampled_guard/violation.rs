//! What was done to a guarded block, and how it is told.

use super::pool::{MET, PoolSlot};
use super::who::Who;
use crate::format::{Amount, Position};
use crate::sync::Ordering;
use crate::sys::resolve;
use std::fmt;

/// Names what was done to a block, or with a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something past the end of a live block was accessed, or written.
    Overrun,
    /// Something in front of a live block was.
    Underrun,
    UseAfterFree,
    DoubleFree,
    /// A pointer into the middle of a block, or near one, was freed.
    InvalidFree,
    LayoutMismatch,
    /// There never was a block.
    WildAccess,
}

impl Kind {
    pub(super) const ALL: [Self; 7] = [
        Self::Overrun,
        Self::Underrun,
        Self::UseAfterFree,
        Self::DoubleFree,
        Self::InvalidFree,
        Self::LayoutMismatch,
        Self::WildAccess,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overrun => "overrun",
            Self::Underrun => "underrun",
            Self::UseAfterFree => "use after free",
            Self::DoubleFree => "double free",
            Self::InvalidFree => "invalid free",
            Self::LayoutMismatch => "layout mismatch",
            Self::WildAccess => "wild access",
        })
    }
}

/// How it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The program read there.
    Read,
    /// The program wrote there.
    Write,
    /// It did one or the other.
    Access,
    /// The block, or what is taken for one, was freed.
    Dealloc,
    /// It was resized.
    Realloc,
    /// Its size was asked for.
    UsableSize,
}

impl Found {
    pub(super) const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::Access, Self::Dealloc, Self::Realloc, Self::UsableSize];

    fn did(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "wrote to",
            _ => "accessed",
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "a read",
            Self::Write => "a write",
            Self::Access => "an access",
            Self::Dealloc => "dealloc",
            Self::Realloc => "realloc",
            Self::UsableSize => "malloc_usable_size",
        })
    }
}

/// A violation, which nothing changes while it is told.
#[derive(Clone, Copy)]
pub(super) struct Violation {
    pub(super) kind: Kind,
    pub(super) found: Found,
    /// What was accessed, or freed.
    pub(super) address: usize,
    /// Bytes from the block's beginning to the wrong one.
    pub(super) offset: isize,
    pub(super) slot: PoolSlot,
}

impl Violation {
    pub(super) fn size(&self) -> usize {
        self.slot.entry.size.load(Ordering::Relaxed)
    }

    pub(super) fn has_block(&self) -> bool {
        self.kind != Kind::WildAccess
    }

    /// Who freed the block, if it was freed.
    pub(super) fn freed(&self) -> Option<&'static Who> {
        let is_freed = matches!(self.kind, Kind::UseAfterFree | Kind::DoubleFree);
        is_freed.then_some(&self.slot.entry.freed)
    }

    fn is_fault(&self) -> bool {
        matches!(self.found, Found::Read | Found::Write | Found::Access)
    }

    fn headline(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = Amount(self.size());
        let did = if self.is_fault() { self.found.did() } else { "wrote to" };
        // "wrote to" memory, but "wrote" past something.
        let moved = if did == "wrote to" { "wrote" } else { did };
        match self.kind {
            Kind::Overrun => write!(f, "something {moved} past the end of a block of {size}"),
            Kind::Underrun => write!(f, "something {moved} in front of a block of {size}"),
            Kind::UseAfterFree => write!(f, "something {did} a block of {size} after it was freed"),
            Kind::DoubleFree => f.write_str("a block that is freed already is freed again"),
            Kind::InvalidFree => f.write_str("a pointer is freed that is no block's beginning"),
            Kind::LayoutMismatch => f.write_str("a block is given back with another layout than it has"),
            Kind::WildAccess => {
                write!(f, "something {did} a place for guarded blocks where there was none yet")
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = self.slot.entry;
        write!(f, "dogtag: {}: ", self.kind)?;
        self.headline(f)?;
        writeln!(f)?;
        let block = entry.block.load(Ordering::Relaxed);
        if self.address != block || !self.has_block() {
            writeln!(f, "  pointer    {:#x}", self.address)?;
        }
        if self.has_block() {
            let align = entry.align.load(Ordering::Relaxed);
            writeln!(f, "  block      {block:#x}, {} aligned to {align}", Amount(self.size()))?;
            writeln!(f, "  allocated  by {}", entry.allocated)?;
            if let Some(freed) = self.freed() {
                writeln!(f, "  freed      by {freed}")?;
            }
        }
        writeln!(f, "  met        by {MET}, in {}", self.found)?;
        if self.has_block() && (self.is_fault() || self.offset != 0) {
            let position = Position { offset: self.offset, size: Some(self.size()) };
            writeln!(f, "  wrong      {position}")?;
        }
        Ok(())
    }
}

/// Writes the call stacks of a violation: with the functions' names, or as bare addresses, which need
/// neither memory nor locks.
pub(super) struct Stacks {
    pub(super) violation: Violation,
    pub(super) names: bool,
}

impl fmt::Display for Stacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allocated = self.violation.has_block().then_some(&self.violation.slot.entry.allocated);
        let whos = [("allocated", allocated), ("freed", self.violation.freed()), ("met", Some(&MET))];
        for (what, who) in whos {
            let Some(who) = who.filter(|who| who.frames().next().is_some()) else { continue };
            writeln!(f, "  {what} at")?;
            if self.names {
                resolve::write_stack(f, who.frames())?;
            } else {
                who.frames().try_for_each(|frame| writeln!(f, "        {frame:#x}"))?;
            }
        }
        Ok(())
    }
}
