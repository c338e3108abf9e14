//! What a program takes a block for that it gives back, and whether it is that.

use super::block::{BlockHeader, Family};
use super::settings::{Settings, Told};
use super::violation_kind::ViolationKind;
use std::alloc::Layout;

/// As far as the program says.
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
    /// Rust says both.
    #[inline(always)]
    pub(crate) fn layout(layout: Layout) -> Self {
        Self { family: None, size: Some(layout.size()), alignment: Some(layout.align()) }
    }

    /// Of a family's block, of which nothing else is said.
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

    /// What is wrong about it; `None` if the block is that, or the settings let it pass.
    #[inline(always)]
    pub(super) fn mismatch(&self, known: &BlockHeader) -> Option<ViolationKind> {
        let is_right = self.size.is_none_or(|size| size == known.layout().size())
            && self.alignment.is_none_or(|alignment| alignment == known.layout().align())
            && self.family.is_none_or(|family| family == known.family());
        if is_right { None } else { self.mismatch_told(known) }
    }

    #[cold]
    fn mismatch_told(&self, known: &BlockHeader) -> Option<ViolationKind> {
        let (settings, allocated) = (Settings::get(), known.family());
        match self.family.unwrap_or(allocated) {
            family if family == allocated => {
                let is_told = family == Family::Malloc || settings.new_delete_type;
                is_told.then_some(ViolationKind::LayoutMismatch)
            }
            family => {
                let is_told = match settings.alloc_dealloc {
                    Told::None => false,
                    Told::New => ![family, allocated].contains(&Family::Malloc),
                    Told::All => true,
                };
                // If it is not, the sizes are none of its business: C++ runtimes round theirs up.
                is_told.then_some(ViolationKind::AllocDeallocMismatch)
            }
        }
    }
}
