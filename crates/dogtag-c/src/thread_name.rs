//! A thread's name as the kernel has it, without a call to ask for it, which a sandbox may not let
//! through.

use dogtag::__private::sys::FoldedName;
use std::ffi::{CStr, c_char};
use std::num::NonZeroU8;

/// A thread's name: up to 15 bytes of any value but zero. The kernel cuts a longer name, also in the
/// middle of a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadName {
    bytes: [u8; LENGTH],
    /// The length plus one, so that all zeros mean no name.
    end: NonZeroU8,
}

const LENGTH: usize = 15;

impl ThreadName {
    /// Cuts a name after 15 bytes.
    fn cut(name: &[u8]) -> Self {
        let mut bytes = [0; LENGTH];
        let length = name.len().min(LENGTH);
        bytes[..length].copy_from_slice(&name[..length]);
        Self { bytes, end: NonZeroU8::MIN.saturating_add(length as u8) }
    }

    /// Reads a name, and cuts it as the kernel does.
    ///
    /// # Safety
    ///
    /// Up to a zero, or 15 bytes, must be readable.
    pub(crate) unsafe fn from_ptr(name: *const c_char) -> Self {
        // SAFETY: up to a zero, or 15 bytes, are readable, and `strnlen` ends there.
        unsafe { Self::cut(std::slice::from_raw_parts(name.cast(), libc::strnlen(name, LENGTH))) }
    }

    /// Returns the name of a program's first thread: the last part of the path that was executed.
    pub(crate) fn of_program() -> Self {
        // SAFETY: the number is from the kernel: 0, or the address of a C string on the first thread's
        // stack, which stays for as long as the process.
        let path = unsafe {
            let path = libc::getauxval(libc::AT_EXECFN) as *const c_char;
            if path.is_null() { c"" } else { CStr::from_ptr(path) }
        };
        let path = path.to_bytes();
        if path.starts_with(b"/dev/fd/") {
            // Executed by a descriptor: the kernel has the file's own name, if it is a newer one.
            let mut name = [0; LENGTH + 1];
            // SAFETY: the kernel writes no more than 16 bytes, a zero among them.
            unsafe {
                if libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) == 0 {
                    return Self::from_ptr(name.as_ptr());
                }
            }
        }
        Self::cut(path.rsplit(|&byte| byte == b'/').next().unwrap_or_default())
    }

    /// Encodes the name as two words, which are not both zero.
    pub(crate) fn to_words(self) -> [u64; 2] {
        let mut bytes = self.padded();
        bytes[LENGTH] = self.end.get();
        let word = u128::from_ne_bytes(bytes);
        [word as u64, (word >> 64) as u64]
    }

    /// Decodes the name of two words; `None` of zeros.
    pub(crate) fn from_words([low, high]: [u64; 2]) -> Option<Self> {
        let [bytes @ .., end] = (u128::from(high) << 64 | u128::from(low)).to_ne_bytes();
        Some(Self { bytes, end: NonZeroU8::new(end.min(LENGTH as u8 + 1))? })
    }

    /// Returns the name with zeros behind it.
    pub(crate) fn padded(&self) -> [u8; LENGTH + 1] {
        let mut padded = [0; LENGTH + 1];
        padded[..self.bytes().len()].copy_from_slice(self.bytes());
        padded
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.end.get()) - 1]
    }

    /// Returns the name of the service that a thread of this name allocates as.
    pub(crate) fn service(&self) -> FoldedName {
        FoldedName::of_thread(self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_cut_as_the_kernel_does() {
        // SAFETY: a C string.
        let name = |text: &CStr| unsafe { ThreadName::from_ptr(text.as_ptr()) };
        assert_eq!(ThreadName::from_words([0, 0]), None);
        assert_eq!(ThreadName::from_words(name(c"").to_words()), Some(name(c"")));
        assert_eq!(name(c"").bytes(), b"");
        assert_eq!(name(c"").service().as_str(), "");
        assert_eq!(name(c"0123456789abcdef").bytes(), b"0123456789abcde");
        assert_eq!(name(c"\xe9\xe9").service().as_str(), "\u{FFFD}\u{FFFD}");
        // Seven of two bytes each, and half of the eighth.
        assert_eq!(name(c"éééééééé").service().as_str(), "ééééééé\u{FFFD}");
        assert_eq!(name(c"worker-17").service().as_str(), "worker-*");
        assert_eq!(name(c"17").service().as_str(), "*");
        assert_eq!(name(c"0123456789abcde9").service().as_str(), "0123456789abcde");
        assert_eq!(
            name(c"\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe99").service().as_str().len(),
            43
        );
        assert_eq!(name(c"a/\n\t").service().as_str(), "a/\n\t");
    }

    proptest! {
        #[test]
        fn any_bytes_are_the_text_that_std_makes_of_them(bytes in prop::collection::vec(1_u8.., 0..30)) {
            let name = ThreadName::cut(&bytes);
            prop_assert_eq!(name.bytes(), &bytes[..bytes.len().min(15)]);
            prop_assert_eq!(ThreadName::from_words(name.to_words()), Some(name));
            let text = name.service();
            let whole = String::from_utf8_lossy(name.bytes());
            match whole.trim_end_matches(|last: char| last.is_ascii_digit()) {
                without if without.len() < whole.len() => prop_assert_eq!(text.as_str(), format!("{without}*")),
                all => prop_assert_eq!(text.as_str(), all),
            }
        }
    }
}
