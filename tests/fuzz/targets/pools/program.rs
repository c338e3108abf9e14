//! What a program consists of.

use arbitrary::Arbitrary;
use dogtag_fuzz::{Align, Size};

#[derive(Arbitrary, Debug)]
pub struct Program {
    pub root: Settings,
    pub operations: Vec<Operation>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Settings {
    pub block_size: Option<u16>,
    pub max_small: Option<u16>,
    pub max_free: Option<u16>,
    pub limit: Option<u32>,
}

#[derive(Arbitrary, Debug)]
pub enum Operation {
    Child {
        parent: u8,
        is_lasting: bool,
        settings: Settings,
    },
    /// Memory that lasts until the pool is cleared.
    Keep {
        pool: u8,
        size: Size,
        align: Align,
        is_zeroed: bool,
    },
    Text {
        pool: u8,
        len: u8,
    },
    Value {
        pool: u8,
    },
    Cleanup {
        pool: u8,
        is_pre: bool,
        end: End,
    },
    Clear {
        pool: u8,
        keeps_all: bool,
    },
    Destroy {
        pool: u8,
    },
    /// As collections do.
    Allocate {
        pool: u8,
        size: Size,
        align: Align,
        is_zeroed: bool,
    },
    Resize {
        block: u8,
        size: Size,
        align: Align,
        is_zeroed: bool,
    },
    Free {
        block: u8,
    },
    /// As much as fits into a pool's first block, or a little less or more.
    Fill {
        pool: u8,
        distance: i8,
    },
    GrowToFill {
        block: u8,
        distance: i8,
    },
    Impossible {
        pool: u8,
        less: u16,
        is_zeroed: bool,
    },
    HardLimit {
        bytes: Option<u32>,
    },
}

/// What becomes of a cleanup.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
pub enum End {
    Runs,
    Panics,
    IsCancelled,
    RunsAtOnce,
}
