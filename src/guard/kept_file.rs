//! Files in which the system tells figures: opened once, read often, without an allocation.

use super::error::GuardError;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An open file. Each reading begins at the start, where the system writes the figures anew.
#[derive(Debug)]
pub(super) struct KeptFile(File);

/// The longest that is read: more than any of the files has.
const MOST: usize = 16 << 10;

impl KeptFile {
    pub(super) fn open(path: &Path) -> Result<Self, GuardError> {
        File::open(path).map(Self).map_err(|error| GuardError::Unreadable { path: path.to_owned(), error })
    }

    /// Hands what stands in the file to `parse`; what that cannot parse is an error.
    pub(super) fn read<T>(&self, parse: impl FnOnce(&[u8]) -> Option<T>) -> io::Result<T> {
        let mut buffer = [0_u8; MOST];
        let mut len = 0;
        // The system tells a page at a time, so where less comes, that is the end.
        while len < MOST {
            match self.0.read_at(&mut buffer[len..], len as u64) {
                Ok(more) => {
                    len += more;
                    if more < 2048 {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        parse(&buffer[..len]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Reads a file that there need not be: `None` if there is none.
    pub(super) fn read_once<T>(
        path: &Path,
        parse: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<(Self, T)>, GuardError> {
        let file = match Self::open(path) {
            Err(GuardError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            opened => opened?,
        };
        match file.read(parse) {
            Ok(read) => Ok(Some((file, read))),
            Err(error) => Err(GuardError::Unreadable { path: path.to_owned(), error }),
        }
    }
}

/// The number that a text begins with, after spaces.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

/// The number of a line that begins with `key`.
pub(super) fn line(text: &[u8], key: &[u8]) -> Option<u64> {
    text.split(|byte| *byte == b'\n').find_map(|line| number(line.strip_prefix(key)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The system tells such files a page at a time.
    #[cfg(target_os = "linux")]
    #[test]
    fn files_of_more_than_a_page_are_read_on() {
        let file = KeptFile::open(Path::new("/proc/self/smaps")).unwrap();
        for _ in 0..2 {
            let (starts_well, len) =
                file.read(|text| Some((text.first()?.is_ascii_hexdigit(), text.len()))).unwrap();
            assert!(starts_well && len > 5000, "{len}");
        }
    }

    #[test]
    fn numbers_are_found() {
        assert_eq!(number(b" 12 34"), Some(12));
        assert_eq!(number(b"18446744073709551615\n"), Some(u64::MAX));
        for none in [&b""[..], b"max\n", b"-1", b"18446744073709551616"] {
            assert_eq!(number(none), None, "{none:?}");
        }
        let text = b"file 7\ninactive_file 5\ntotal_inactive_file 6\n";
        assert_eq!(line(text, b"inactive_file "), Some(5));
        assert_eq!(line(text, b"total_inactive_file "), Some(6));
        assert_eq!(line(text, b"active_file "), None);
    }
}
