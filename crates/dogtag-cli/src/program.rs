//! The program that is to be run: where it is, and whether the library can be preloaded into it.

use crate::failure::Failure;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, Object, ObjectSymbol, ReadCache, elf};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, io};

/// A program, with what is known of it before it runs.
#[derive(Debug)]
pub struct Program {
    pub path: PathBuf,
    /// Why nothing of it can be counted, if so.
    pub obstacle: Option<String>,
    /// Why less may be counted than it allocates.
    pub doubt: Option<String>,
}

impl Program {
    /// Finds a program as a shell does, and looks at it.
    pub fn find(name: &OsStr) -> Result<Self, Failure> {
        let path = look_up(name)?;
        let (obstacle, doubt) = match inspect(&path, 0) {
            Ok(()) => (None, None),
            Err(Finding::Obstacle(why)) => (Some(why), None),
            Err(Finding::Doubt(why)) => (None, Some(why)),
        };
        Ok(Self { path, obstacle, doubt })
    }
}

fn look_up(name: &OsStr) -> Result<PathBuf, Failure> {
    let shown = name.display();
    let candidates: Vec<PathBuf> = if name.as_bytes().contains(&b'/') {
        vec![name.into()]
    } else {
        let folders = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
        env::split_paths(&folders).map(|folder| folder.join(name)).collect()
    };
    let mut refusal = None;
    for path in candidates {
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => refusal = refusal.or(Some((path, error))),
        }
    }
    Err(match refusal {
        Some((path, error)) => {
            Failure::with_status(126, format!("{} cannot be run: {error}", path.display()))
        }
        None => Failure::with_status(127, format!("there is no program {shown}")),
    })
}

fn executable(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: gets a C string, and only looks the file up.
    match unsafe { libc::access(path.as_ptr(), libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

enum Finding {
    Obstacle(String),
    Doubt(String),
}

/// What cannot be read is no finding: the system says what is wrong with it.
fn inspect(path: &Path, depth: u32) -> Result<(), Finding> {
    let shown = path.display();
    let Ok(mut file) = File::open(path) else { return Ok(()) };
    if file.metadata().is_ok_and(|found| gains_rights(path, &found)) {
        return Err(Finding::Obstacle(format!(
            "{shown} runs with more rights than yours (setuid), so nothing is preloaded into it"
        )));
    }
    let mut beginning = Vec::new();
    let _ = file.by_ref().take(256).read_to_end(&mut beginning);
    if let Some(line) = beginning.strip_prefix(b"#!") {
        return match interpreter(line) {
            Some(path) if depth < 4 => inspect(&path, depth + 1),
            _ => Ok(()),
        };
    }
    let cache = ReadCache::new(file);
    match FileKind::parse(&cache) {
        Ok(FileKind::Elf64) => {}
        Ok(FileKind::Elf32) => {
            return Err(Finding::Obstacle(format!("{shown} is a 32-bit program, and the library is not")));
        }
        _ => return Ok(()),
    }
    let Ok(elf) = ElfFile64::<Endianness, _>::parse(&cache) else { return Ok(()) };
    inspect_elf(&elf, path)
}

/// The program that runs a script whose first line goes on so.
fn interpreter(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let path = Path::new(OsStr::from_bytes(words.next()?));
    if path.file_name() == Some(OsStr::new("env"))
        && let Some(name) = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='))
    {
        return look_up(OsStr::from_bytes(name)).ok();
    }
    Some(path.to_owned())
}

fn inspect_elf<'data>(
    elf: &ElfFile64<'data, Endianness, &'data ReadCache<File>>,
    path: &Path,
) -> Result<(), Finding> {
    let shown = path.display();
    let endian = elf.endian();
    let loader = elf.elf_program_headers().iter().find(|header| header.p_type(endian) == elf::PT_INTERP);
    let Some(loader) = loader else {
        return Err(Finding::Obstacle(format!(
            "{shown} is linked statically, so nothing can be preloaded into it"
        )));
    };
    if loader.data(endian, elf.data()).is_ok_and(|name| name.windows(7).any(|part| part == b"ld-musl")) {
        return Err(Finding::Obstacle(format!("{shown} is linked with musl, and the library with glibc")));
    }
    if elf.elf_header().e_type(endian) == elf::ET_REL {
        return Ok(());
    }
    let defines =
        |name: &str| elf.dynamic_symbols().any(|symbol| symbol.is_definition() && symbol.name() == Ok(name));
    if defines("malloc") {
        return Err(Finding::Doubt(format!(
            "{shown} has a malloc of its own: what it allocates is not counted"
        )));
    }
    if elf.section_by_name(".gopclntab").is_some() || elf.section_by_name(".note.go.buildid").is_some() {
        return Err(Finding::Doubt(format!(
            "{shown} is written in Go, which maps memory itself: only what C code allocates is counted"
        )));
    }
    let own = elf.symbols().filter(ObjectSymbol::is_definition).find_map(|symbol| {
        let name = symbol.name().ok()?;
        ALLOCATORS.iter().find(|(function, _)| *function == name).map(|(_, allocator)| *allocator)
    });
    match own {
        Some(allocator) => Err(Finding::Doubt(format!(
            "{shown} has {allocator} inside: what is allocated by that is not counted"
        ))),
        None => Ok(()),
    }
}

/// Functions that only a program has that brings an allocator along.
const ALLOCATORS: &[(&str, &str)] = &[
    ("_rjem_malloc", "jemalloc"),
    ("_rjem_mallocx", "jemalloc"),
    ("je_malloc", "jemalloc"),
    ("je_mallocx", "jemalloc"),
    ("mi_malloc", "mimalloc"),
    ("mi_malloc_aligned", "mimalloc"),
    ("tc_malloc", "tcmalloc"),
    ("rpmalloc", "rpmalloc"),
    ("sn_malloc", "snmalloc"),
];

/// Whether the system gives the program more rights than its caller's.
fn gains_rights(path: &Path, found: &fs::Metadata) -> bool {
    // SAFETY: both ask for a number.
    let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
    let (mode, owner) = (found.mode(), found.uid());
    let other_group = mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0 && found.gid() != group;
    mode & libc::S_ISUID != 0 && owner != user || other_group || user != 0 && has_capabilities(path)
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: gets C strings, and no place: it returns the length that it would need.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_name_what_runs_them() {
        let path = |line: &str| interpreter(line.as_bytes());
        assert_eq!(path("/bin/sh\nexit"), Some("/bin/sh".into()));
        assert_eq!(path(" /bin/sh -e -x"), Some("/bin/sh".into()));
        assert_eq!(path("/usr/bin/env -S A=b sh -e\n").unwrap().file_name(), Some(OsStr::new("sh")));
        assert_eq!(path("\n/bin/sh"), None);
    }

    #[test]
    fn programs_are_found_as_shells_find_them() {
        assert!(look_up(OsStr::new("sh")).unwrap().ends_with("sh"));
        assert_eq!(look_up(OsStr::new("no-such-program")).unwrap_err().status, 127);
        assert_eq!(look_up(OsStr::new("/no/such/program")).unwrap_err().status, 127);
        assert_eq!(look_up(OsStr::new("/")).unwrap_err().status, 126);
        assert_eq!(look_up(OsStr::new("/etc/passwd")).unwrap_err().status, 126);
    }
}
