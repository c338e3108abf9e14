//! What a program says of a block that it gives back, compared with the block's header.

use super::block::{BlockHeader, Family};
use super::settings::{Reported, Settings};
use super::violation_kind::ViolationKind;
use std::alloc::Layout;

/// What the program says of the block, as far as it does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claim {
    /// Whose block it is.
    pub family: Option<Family>,
    /// Its size.
    pub size: Option<usize>,
    /// Its alignment.
    pub alignment: Option<usize>,
}

impl Claim {
    /// Makes the claim of a Rust layout, which has both.
    #[inline(always)]
    pub(crate) fn layout(layout: Layout) -> Self {
        Self { family: None, size: Some(layout.size()), alignment: Some(layout.align()) }
    }

    /// Makes the claim of a family's function that says nothing else.
    #[inline(always)]
    pub fn of(family: Family) -> Self {
        Self { family: Some(family), ..Self::default() }
    }

    /// The layout, with what is not said taken from the block. `None` if nothing is said.
    pub(super) fn given(&self, known: Option<Layout>) -> Option<Layout> {
        if self.size.is_none() && self.alignment.is_none() {
            return None;
        }
        let size = self.size.or(known.map(|known| known.size()))?;
        let alignment = self.alignment.or(known.map(|known| known.align()))?;
        Layout::from_size_align(size, alignment).ok()
    }

    /// Compares the claim with the header; `None` if they agree, or if the settings let it pass.
    #[inline(always)]
    pub(super) fn mismatch(&self, known: &BlockHeader) -> Option<ViolationKind> {
        let is_right = self.size.is_none_or(|size| size == known.layout().size())
            && self.alignment.is_none_or(|alignment| alignment == known.layout().align())
            && self.family.is_none_or(|family| family == known.family());
        // Not all of both: the hot path keeps them in registers.
        if is_right { None } else { reported_mismatch(self.family, known.family()) }
    }
}

/// What is reported of a block that is not what the program says, by which family's function it frees the
/// block if it does say that.
#[cold]
#[inline(never)]
fn reported_mismatch(family: Option<Family>, allocated: Family) -> Option<ViolationKind> {
    let settings = Settings::get();
    match family.unwrap_or(allocated) {
        family if family == allocated => {
            let is_reported = family == Family::Malloc || settings.new_delete_type;
            is_reported.then_some(ViolationKind::LayoutMismatch)
        }
        family => {
            let is_reported = match settings.alloc_dealloc {
                Reported::None => false,
                Reported::New => ![family, allocated].contains(&Family::Malloc),
                Reported::All => true,
            };
            // If it is not, the sizes are none of its business: C++ runtimes round theirs up.
            is_reported.then_some(ViolationKind::AllocDeallocMismatch)
        }
    }
}
