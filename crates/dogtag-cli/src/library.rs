//! The libraries inside this program, and the files that programs have preloaded.

use crate::failure::Failure;
use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{env, process};

/// Selects a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Counts, and takes profiles.
    Plain,
    /// Checks each block as well.
    Checked,
}

impl Library {
    const fn bytes(self) -> &'static [u8] {
        match self {
            Self::Plain => include_bytes!(concat!(env!("OUT_DIR"), "/PLAIN")),
            Self::Checked => include_bytes!(concat!(env!("OUT_DIR"), "/CHECKED")),
        }
    }

    /// Builds of another content have another name.
    const fn file_name(self) -> &'static str {
        match self {
            Self::Plain => {
                concat!("libdogtag-", env!("CARGO_PKG_VERSION"), "-", env!("DOGTAG_PLAIN_HASH"), ".so")
            }
            Self::Checked => {
                concat!(
                    "libdogtag-check-",
                    env!("CARGO_PKG_VERSION"),
                    "-",
                    env!("DOGTAG_CHECKED_HASH"),
                    ".so"
                )
            }
        }
    }

    /// Returns the path of the library's file, which is written if it is not there.
    ///
    /// It lies in the user's cache, where nobody else can change it; others may read it, since a program
    /// may go on as another user.
    pub fn path(self) -> Result<PathBuf, Failure> {
        if self.bytes().is_empty() {
            return Err(Failure::new(
                "this dogtag was built without its libraries: build it without DOGTAG_CLI_LIBRARIES=none",
            ));
        }
        let mut refusals = Vec::new();
        for folder in folders() {
            match make(&folder).and_then(|folder| self.in_folder(&folder)) {
                Ok(path) => return Ok(path),
                Err(error) => refusals.push(format!("{}: {error}", folder.display())),
            }
        }
        Err(Failure::new(format!("no place for the library that is preloaded: {}", refusals.join("; "))))
    }

    fn in_folder(self, folder: &Path) -> io::Result<PathBuf> {
        if folder.as_os_str().as_bytes().iter().any(|byte| byte.is_ascii_whitespace() || *byte == b':') {
            return Err(io::Error::other("LD_PRELOAD takes no path with a space or a colon"));
        }
        if is_noexec(folder)? {
            return Err(io::Error::other("the file system is mounted with noexec"));
        }
        let path = folder.join(self.file_name());
        if check_own(&path, false).is_ok() && fs::read(&path).is_ok_and(|found| found == self.bytes()) {
            return Ok(path);
        }
        // In one step, since another `dogtag` may be about to load it.
        let new = folder.join(format!("{}.{}", self.file_name(), process::id()));
        let _ = fs::remove_file(&new);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)
            .and_then(|mut file| file.write_all(self.bytes()))
            .and_then(|()| fs::rename(&new, &path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written.map(|()| path)
    }
}

/// Folders of the user's, the one that lasts longest first.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // SAFETY: asks for a number.
    let user = unsafe { libc::geteuid() };
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let own = [cache, variable("XDG_RUNTIME_DIR")].into_iter().flatten().map(|path| path.join("dogtag"));
    let temporary = [env::temp_dir(), "/var/tmp".into()].map(|path| path.join(format!("dogtag-{user}")));
    own.chain(temporary).collect()
}

/// Makes a folder, if it is not there, and returns its path without links, for whose every part another user
/// can put nothing else.
fn make(folder: &Path) -> io::Result<PathBuf> {
    // Nothing is made where others could exchange it.
    let present = folder.ancestors().find_map(|folder| fs::canonicalize(folder).ok());
    present.iter().flat_map(|present| present.ancestors()).try_for_each(check_parent)?;
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let folder = fs::canonicalize(folder)?;
    check_own(&folder, true)?;
    folder.ancestors().skip(1).try_for_each(check_parent)?;
    Ok(folder)
}

/// Returns an error if another user can exchange what is in a folder: one who owns it, or who may write to
/// it unless it is sticky.
fn check_parent(folder: &Path) -> io::Result<()> {
    let found = fs::metadata(folder)?;
    // SAFETY: asks for a number.
    let user = unsafe { libc::geteuid() };
    // In a user's namespace root's number is another one; whoever owns the root can exchange everything.
    let owners = [user, 0, fs::metadata("/")?.uid()];
    let is_open = found.mode() & 0o022 != 0 && found.mode() & libc::S_ISVTX == 0;
    if is_open || !owners.contains(&found.uid()) {
        return Err(io::Error::other(format!("others may exchange what is in {}", folder.display())));
    }
    Ok(())
}

/// Returns an error unless the file is the user's, and nobody else may write to it.
fn check_own(path: &Path, is_folder: bool) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    // SAFETY: asks for a number.
    let user = unsafe { libc::geteuid() };
    if found.is_dir() != is_folder || found.is_symlink() {
        return Err(io::Error::other("it is of another kind"));
    }
    if found.uid() != user || found.mode() & 0o022 != 0 {
        return Err(io::Error::other("others may write to it"));
    }
    Ok(())
}

fn is_noexec(folder: &Path) -> io::Result<bool> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: gets a C string and a place for the result, which is filled if the call returns 0.
    unsafe {
        if libc::statvfs(path.as_ptr(), found.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(found.assume_init().f_flag & libc::ST_NOEXEC != 0)
    }
}

/// Returns the value of `LD_PRELOAD` with a library in front of what is there already.
pub fn preload(library: &Path) -> OsString {
    let mut value = library.as_os_str().to_owned();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        value.push(":");
        value.push(others);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[test]
    fn nothing_is_made_where_others_could_exchange_it() {
        let place = env::temp_dir().join(format!("dogtag-library-{}", process::id()));
        let (parent, folder, link) = (place.join("parent"), place.join("parent/a/b"), place.join("link"));
        DirBuilder::new().recursive(true).mode(0o755).create(&parent).unwrap();
        symlink(&parent, &link).unwrap();
        let mode = |mode| fs::set_permissions(&parent, Permissions::from_mode(mode)).unwrap();
        let refused = |folder: &Path| {
            let error = make(folder).unwrap_err().to_string();
            assert!(error.ends_with("parent") && error.starts_with("others may exchange"), "{error}");
        };
        for open in [0o777, 0o775, 0o757] {
            mode(open);
            refused(&folder);
            refused(&link.join("a/b"));
            assert!(!parent.join("a").exists());
        }
        mode(0o1777);
        assert_eq!(make(&link.join("a/b")).unwrap(), fs::canonicalize(&folder).unwrap());
        mode(0o777);
        refused(&folder);
        mode(0o755);
        assert!(make(&folder).is_ok());
        // SAFETY: asks for a number.
        if unsafe { libc::geteuid() } == 0 {
            chown(&parent, Some(65_533), None).unwrap();
            refused(&folder);
        }
        fs::remove_dir_all(place).unwrap();
    }
}
