//! What a program consists of.

use arbitrary::Arbitrary;
use dogtag_fuzz::{Align, Size};

#[derive(Arbitrary, Debug)]
pub enum Operation {
    Allocate {
        is_beside: bool,
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
        is_beside: bool,
        size: Size,
        align: Align,
    },
    RefuseToResize {
        block: u8,
        size: Size,
    },
    /// No address space has so much.
    Impossible {
        is_beside: bool,
        less: u16,
        is_zeroed: bool,
    },
    Current,
    Snapshot,
}
