//! Paths of files with numbers in them.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Returns the path with numbers in place of `%` and their letter.
pub fn numbered(path: &OsStr, numbers: &[(u8, u32)]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [byte, after @ ..] = rest {
        let number = after.first().and_then(|letter| numbers.iter().find(|(known, _)| known == letter));
        if let (b'%', Some((_, number))) = (byte, number) {
            bytes.extend_from_slice(number.to_string().as_bytes());
            rest = &after[1..];
        } else {
            bytes.push(*byte);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

/// Returns why a file cannot be written, as far as can be known before.
///
/// # Errors
///
/// The system's reason.
pub fn check(path: &Path) -> io::Result<()> {
    let written = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(_) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.parent().unwrap_or(path),
        Err(error) => return Err(error),
    };
    let written = CString::new(written.as_os_str().as_bytes())?;
    // SAFETY: gets a C string, and only looks the file up.
    match unsafe { libc::access(written.as_ptr(), libc::W_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_the_place_of_their_letters() {
        let numbers = [(b'p', 17), (b'n', 0)];
        for (path, expected) in
            [("a/%p.%n", "a/17.0"), ("%%p%", "%17%"), ("%x", "%x"), ("", ""), ("é%p", "é17")]
        {
            assert_eq!(numbered(OsStr::new(path), &numbers), Path::new(expected));
        }
    }

    #[test]
    fn files_that_cannot_be_written_are_known_before() {
        assert!(check(&std::env::temp_dir().join("dogtag-not-there")).is_ok());
        assert!(check(Path::new("/dev/full")).is_ok());
        assert_eq!(check(Path::new("/")).unwrap_err().raw_os_error(), Some(libc::EISDIR));
        let nowhere = check(Path::new("/nowhere/report")).unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
        assert!(check(Path::new("a\0b")).is_err());
    }
}
