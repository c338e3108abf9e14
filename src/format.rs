//! How figures are written in tables.

mod frame;

pub use frame::frame;
use std::fmt;

/// A name that cannot break the table: control characters escaped, and cut
/// where it is longer than anybody reads.
pub(crate) fn printable(name: &str) -> String {
    printable_up_to(name, 40)
}

/// A name that cannot break the table, of up to so many characters.
pub(crate) fn printable_up_to(name: &str, longest: usize) -> String {
    // A few more than are shown, since what is longer is cut.
    let escaped: String = name
        .chars()
        .take(longest + 1)
        .flat_map(|c| if is_control(c) { c.escape_debug().collect() } else { vec![c] })
        .collect();
    if escaped.chars().count() <= longest {
        return escaped;
    }
    escaped.chars().take(longest - 1).chain(['…']).collect()
}

/// As much of a text's beginning as fits so many bytes, in whole characters.
pub(crate) fn beginning(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A thread's name as the name of a service, on the stack: digits at its end are one `*`, so that
/// numbered threads share a service, and what is not UTF-8 is U+FFFD.
#[derive(Clone, Copy, Debug)]
pub struct FoldedName {
    bytes: [u8; Self::CAPACITY],
    length: usize,
}

impl FoldedName {
    /// A multiple of 8. Of the 15 bytes of a thread's name each may become three.
    pub(crate) const CAPACITY: usize = 48;

    /// A short name as it is.
    pub(crate) const fn of(name: &str) -> Self {
        let mut folded = Self { bytes: [0; _], length: 0 };
        while folded.length < name.len() {
            folded.bytes[folded.length] = name.as_bytes()[folded.length];
            folded.length += 1;
        }
        folded
    }

    /// Folds a thread's name, which ends at a zero or after 15 bytes.
    pub fn of_thread(name: &[u8]) -> Self {
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = &name[..name.len().min(15)];
        let end = name.iter().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |last| last + 1);
        let mut folded = Self { bytes: [0; _], length: 0 };
        for chunk in name[..end].utf8_chunks() {
            folded.push(chunk.valid());
            if !chunk.invalid().is_empty() {
                folded.push("\u{FFFD}");
            }
        }
        if end < name.len() {
            folded.push("*");
        }
        folded
    }

    fn push(&mut self, text: &str) {
        let end = self.length + text.len();
        // Never more than three bytes for each of the name, so it fits.
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(text.as_bytes());
            self.length = end;
        }
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        // Whole texts only.
        str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }

    /// The name, with zeros behind it.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        self.bytes.chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
    }

    /// A number that no other name has, as good as certainly, and that is not 0 (FNV-1a).
    pub(crate) fn hash(&self) -> u64 {
        let hash = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.bytes[..self.length].iter().fold(0xcbf2_9ce4_8422_2325, hash).max(1)
    }
}

/// A number of bytes, as settings have it: with K, M or G behind it for KiB, MiB and GiB.
#[cfg(any(feature = "memory-check", feature = "profile"))]
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Also those that end a line, or turn the direction in which it is written, with all that stands
/// behind them in it.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes as people read them.
#[derive(Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

        let mut value = self.0 as f64;
        let mut unit = 0;
        // What would be printed as 1024.0 of a unit is 1.0 of the next.
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {}", UNITS[unit]) }
    }
}

/// A whole number with its thousands apart.
pub(crate) struct Grouped(pub(crate) u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A part of a whole, in percent.
pub(crate) struct Share {
    pub(crate) part: u64,
    pub(crate) whole: u64,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = if self.whole == 0 { 0.0 } else { self.part as f64 / self.whole as f64 };
        write!(f, "{:.1} %", share * 100.0)
    }
}

/// Writes a number of bytes in words, in the singular for one.
#[cfg(any(feature = "memory-check", feature = "sampled-guard"))]
pub(crate) struct Amount(pub(crate) usize);

#[cfg(any(feature = "memory-check", feature = "sampled-guard"))]
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 byte"),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

/// Describes in words where a byte is, counted from the beginning of a block.
#[cfg(any(feature = "memory-check", feature = "sampled-guard"))]
pub(crate) struct Position {
    pub(crate) offset: isize,
    /// The block's, if it is known.
    pub(crate) size: Option<usize>,
}

#[cfg(any(feature = "memory-check", feature = "sampled-guard"))]
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, size } = *self;
        write!(f, "byte {offset}")?;
        match size.map(|size| offset - size as isize) {
            _ if offset < 0 => write!(f, ", {} in front of the block", Amount(offset.unsigned_abs())),
            Some(0) => f.write_str(", the first one past the end"),
            Some(past @ 1..) => write!(f, ", {} past the end", Amount(past as usize)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_change_their_unit_where_people_would() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(printable(&"x".repeat(41)), "x".repeat(39) + "…");
        assert_eq!(printable(&"x".repeat(40)), "x".repeat(40));
        assert_eq!(printable(&"\n".repeat(41)), "\\n".repeat(19) + "\\…");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        for (bytes, text) in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (4, "aé"), (6, "aé名"), (9, "aé名")]
        {
            assert_eq!(beginning("aé名", bytes), text);
        }
    }

    #[test]
    fn names_stay_in_their_line() {
        assert_eq!(printable("a\u{1b}[2J\r\u{85}b"), "a\\u{1b}[2J\\r\\u{85}b");
        assert_eq!(printable("a\u{2028}b\u{202e}c\u{2066}"), "a\\u{2028}b\\u{202e}c\\u{2066}");
        // Those that words are written with are none.
        assert_eq!(printable("क्\u{200d}ष é\u{301} 名前 \"it's\""), "क्\u{200d}ष é\u{301} 名前 \"it's\"");
    }
}
