//! A window's place in the registry's list, and its name.

use std::cell::Cell;
use std::ptr::NonNull;

/// A link of the list, and a name. Of windows, as `T`.
pub(crate) struct Entry<T> {
    /// Read and written under the registry's lock only.
    pub(crate) next: Cell<Option<NonNull<T>>>,
    pub(crate) name: Name,
}

#[derive(Clone, Copy)]
pub(crate) struct Name {
    bytes: [u8; MAX_NAME_LEN],
    len: usize,
}

const MAX_NAME_LEN: usize = 64;

impl<T> Entry<T> {
    pub(crate) fn new(name: &str) -> Self {
        Self { next: Cell::new(None), name: Name::new(name) }
    }
}

impl Name {
    /// Copies as much of the name as fits, in whole characters.
    fn new(name: &str) -> Self {
        let mut len = name.len().min(MAX_NAME_LEN);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let mut bytes = [0; MAX_NAME_LEN];
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self { bytes, len }
    }

    pub(crate) fn to_text(self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.len]).into_owned()
    }
}
