//! A hexdump of what was found, with the wrong bytes in brackets.

use super::block::{self, BlockHeader, GUARD, HEAD};
use super::zero_sized;
use std::fmt;
use std::ptr::NonNull;

/// The bytes around the first wrong one.
#[derive(Clone, Copy)]
pub(super) struct Hexdump {
    /// Where they begin, from the block's beginning.
    start: isize,
    length: usize,
    bytes: [u8; WINDOW],
    /// A bit for each of them that is not what it should be.
    wrong: u64,
}

const ROW: isize = 16;
const WINDOW: usize = 64;

impl Hexdump {
    pub(super) const NONE: Self = Self { start: 0, length: 0, bytes: [0; WINDOW], wrong: 0 };

    /// # Safety
    ///
    /// As for [`BlockHeader::read`]; `filled` is what the block is filled with.
    pub(super) unsafe fn around(
        offset: isize,
        block: NonNull<u8>,
        header: Option<&BlockHeader>,
        filled: Option<u8>,
    ) -> Self {
        let (end, head) = match header {
            Some(header) => (header.layout().size() + header.tail(), header.offset()),
            // As much as every block has that can be read.
            None => (if zero_sized::has(block.addr().get()) { 0 } else { GUARD }, HEAD),
        };
        let first = -(head.min(isize::MAX as usize) as isize);
        let start = (offset.div_euclid(ROW) * ROW - ROW).max(first);
        let end = (start + WINDOW as isize).min(end as isize);
        let mut evidence = Self { start, length: (end - start).max(0) as usize, ..Self::NONE };
        for (index, offset) in (start..end).enumerate() {
            // SAFETY: within the memory that was requested for the block. The
            // program may be writing there, rightly or not: hence volatile.
            let byte = unsafe { block.offset(offset).read_volatile() };
            evidence.bytes[index] = byte;
            if block::meant(block, header, filled, offset).is_some_and(|meant| meant != byte) {
                evidence.wrong |= 1 << index;
            }
        }
        evidence
    }
}

impl fmt::Debug for Hexdump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?} from byte {}", &self.bytes[..self.length], self.start)
    }
}

impl fmt::Display for Hexdump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = |index: usize| index < self.length && self.wrong >> index & 1 != 0;
        for row in (0..self.length).step_by(ROW as usize) {
            write!(f, "  {:>+9} ", self.start + row as isize)?;
            for index in row..row + ROW as usize {
                // A bracket stands in the gap between two bytes.
                let gap = match (index > row && wrong(index - 1), wrong(index)) {
                    (false, true) => '[',
                    (true, false) => ']',
                    _ => ' ',
                };
                match self.bytes[..self.length].get(index) {
                    Some(byte) => write!(f, "{gap}{byte:02x}")?,
                    None => write!(f, "{gap}  ")?,
                }
            }
            let last = row + ROW as usize - 1;
            write!(f, "{} ", if wrong(last) { ']' } else { ' ' })?;
            for &byte in &self.bytes[row..self.length.min(row + ROW as usize)] {
                write!(f, "{}", if byte.is_ascii_graphic() { byte as char } else { '.' })?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
