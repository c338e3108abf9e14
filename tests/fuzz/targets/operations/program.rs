//! What a program consists of.

use arbitrary::{Arbitrary, Unstructured};
use dogtag_fuzz::{Align, Size};

/// Where the owner of a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind it, whatever its size.
    Behind,
    /// If it is large, beside the heap.
    Beside,
    /// In a table by the page.
    Table,
}

impl<'a> Arbitrary<'a> for Place {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u8::arbitrary(input)? % 4 {
            1 => Self::Beside,
            3 => Self::Table,
            _ => Self::Behind,
        })
    }
}

#[derive(Arbitrary, Debug)]
pub enum Operation {
    Allocate {
        place: Place,
        size: Size,
        align: Align,
        is_zeroed: bool,
    },
    Resize {
        block: u8,
        size: Size,
    },
    Free {
        block: u8,
    },
    FreeOnAnotherThread {
        block: u8,
    },
    Register {
        parent: Option<u8>,
        handle: Option<u32>,
        hard: Option<u32>,
        soft: Option<u32>,
    },
    Drop {
        service: u8,
    },
    Enter {
        service: u8,
    },
    Leave {
        scope: u8,
    },
    HardLimit {
        service: u8,
        bytes: Option<u32>,
    },
    SoftLimit {
        service: u8,
        bytes: Option<u32>,
    },
    ResetPeak {
        service: u8,
    },
    /// The backends have nothing left for the next allocation.
    Refuse {
        place: Place,
        size: Size,
        align: Align,
    },
    RefuseToResize {
        block: u8,
        size: Size,
    },
    /// No address space has so much.
    Impossible {
        place: Place,
        less: u16,
        is_zeroed: bool,
    },
    Current,
    Snapshot,
}
