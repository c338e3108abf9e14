//! The program that is to be run: where it is, and whether the library can be preloaded into it.

use crate::failure::Failure;
use object::elf::FileHeader64;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader, Sym, SymbolTable};
use object::{Endianness, FileKind, Object, ReadCache, elf};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
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
    let cache = ReadCache::new(&file);
    match FileKind::parse(&cache) {
        Ok(FileKind::Elf64) => {}
        Ok(FileKind::Elf32) => {
            return Err(Finding::Obstacle(format!("{shown} is a 32-bit program, and the library is not")));
        }
        _ => return Ok(()),
    }
    let Ok(elf) = ElfFile64::<Endianness, _>::parse(&cache) else { return Ok(()) };
    inspect_elf(&elf, &file, path)
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

type Elf<'data, 'file> = ElfFile64<'data, Endianness, &'data ReadCache<&'file File>>;
type Symbols<'data, 'file> = SymbolTable<'data, FileHeader64<Endianness>, &'data ReadCache<&'file File>>;

fn inspect_elf(elf: &Elf<'_, '_>, file: &File, path: &Path) -> Result<(), Finding> {
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
    if defined(elf, elf.elf_dynamic_symbol_table(), file, &["malloc"]).is_some() {
        return Err(Finding::Doubt(format!(
            "{shown} has a malloc of its own: what it allocates is not counted"
        )));
    }
    if elf.section_by_name(".gopclntab").is_some() || elf.section_by_name(".note.go.buildid").is_some() {
        return Err(Finding::Doubt(format!(
            "{shown} is written in Go, which maps memory itself: only what C code allocates is counted"
        )));
    }
    let names: Vec<&str> = ALLOCATORS.iter().map(|(function, _)| *function).collect();
    match defined(elf, elf.elf_symbol_table(), file, &names) {
        Some(number) => Err(Finding::Doubt(format!(
            "{shown} has {} inside: what is allocated by that is not counted",
            ALLOCATORS[number].1
        ))),
        None => Ok(()),
    }
}

/// Returns the place of the first of these names that a table defines.
///
/// A large program has hundreds of thousands of symbols, whose names are not looked up one by one: their
/// section is searched for these.
fn defined(elf: &Elf<'_, '_>, symbols: &Symbols<'_, '_>, file: &File, names: &[&str]) -> Option<usize> {
    let endian = elf.endian();
    let section = elf.elf_section_table().section(symbols.string_section()).ok()?;
    let (start, length) = section.file_range(endian)?;
    let found = ends(file, start, length, names);
    let is_definition =
        |symbol: &elf::Sym64<Endianness>| !symbol.is_undefined(endian) && symbol.st_value(endian) != 0;
    let of = |symbol: &elf::Sym64<Endianness>| {
        found.iter().find(|(at, _)| *at == u64::from(symbol.st_name(endian))).map(|(_, number)| *number)
    };
    if found.is_empty() {
        None
    } else {
        symbols.iter().filter(|symbol| is_definition(symbol)).filter_map(of).min()
    }
}

/// Lists where these names are in a part of a file that is strings with a zero behind each, with the place of
/// the name: at the end of any string, since names share their ends.
fn ends(file: &File, start: u64, length: u64, names: &[&str]) -> Vec<(u64, usize)> {
    const PIECE: usize = 1 << 20;
    /// What is kept of a string that is longer than that.
    const LONGEST_NAME: usize = 64;

    let mut found = Vec::new();
    let mut piece = vec![0; PIECE];
    let (mut read, mut kept) = (0, 0);
    while read < length {
        let more = usize::try_from(length - read).map_or(PIECE - kept, |left| left.min(PIECE - kept));
        if file.read_exact_at(&mut piece[kept..kept + more], start + read).is_err() {
            break;
        }
        let (begin, end) = (read - kept as u64, kept + more);
        read += more as u64;
        let mut from = 0;
        while let Some(length) = piece[from..end].iter().position(|byte| *byte == 0) {
            let string = &piece[from..from + length];
            for (number, name) in
                names.iter().enumerate().filter(|(_, name)| string.ends_with(name.as_bytes()))
            {
                found.push((begin + (from + length - name.len()) as u64, number));
            }
            from += length + 1;
        }
        kept = end - from;
        if kept == PIECE {
            kept = LONGEST_NAME;
        }
        piece.copy_within(end - kept..end, 0);
    }
    found
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
    fn names_are_found_at_the_end_of_strings_wherever_a_piece_ends() {
        let path = env::temp_dir().join(format!("dogtag-strings-{}", std::process::id()));
        let names = ["je_malloc", "malloc"];
        // A piece is read up to the middle of a name, in front of it, and behind it.
        for before in (1 << 20) - 12..(1 << 20) + 2 {
            let mut content = vec![b'x'; 7];
            content.push(0);
            content.resize(7 + before, b'y');
            content.extend_from_slice(b"\0_je_malloc\0malloc_x\0malloc\0");
            fs::write(&path, &content).unwrap();
            let found = ends(&File::open(&path).unwrap(), 7, content.len() as u64 - 7, &names);
            let at = before as u64;
            assert_eq!(found, [(at + 2, 0), (at + 5, 1), (at + 21, 1)], "{before}");
        }
        assert_eq!(ends(&File::open(&path).unwrap(), 7, 1 << 30, &names), []);
        fs::remove_file(path).unwrap();
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
