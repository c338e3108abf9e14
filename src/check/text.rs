//! A short text that owns its bytes without an allocation: reports may neither allocate nor borrow
//! from a service that ends meanwhile.

use std::fmt;

/// Holds up to [`LENGTH`] bytes of UTF-8; a longer text is cut.
#[derive(Clone, Copy)]
pub(crate) struct Text {
    bytes: [u8; LENGTH],
    length: u8,
}

const LENGTH: usize = 64;

impl Text {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut text = Self::default();
        for chunk in bytes.utf8_chunks() {
            text.push(chunk.valid());
        }
        text
    }

    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }

    fn push(&mut self, text: &str) {
        for c in text.chars() {
            let length = usize::from(self.length);
            let end = length + c.len_utf8();
            if end > LENGTH {
                return;
            }
            c.encode_utf8(&mut self.bytes[length..end]);
            self.length = end as u8;
        }
    }
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; LENGTH], length: 0 }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut new = Self::default();
        new.push(text);
        new
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(Text::from("auth").as_str(), "auth");
        assert_eq!(Text::from("x".repeat(63).as_str()).as_str().len(), 63);
        let long = "x".repeat(63) + "é";
        assert_eq!(Text::from(long.as_str()).as_str(), "x".repeat(63));
        assert_eq!(Text::from_bytes(b"a\xffb").as_str(), "ab");
    }
}
