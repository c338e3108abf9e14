//! The program's and the libraries' code in memory, with the build ids by which others find their
//! symbols.

/// Code of one file that is mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub(super) struct Mapping {
    pub(super) start: usize,
    pub(super) limit: usize,
    pub(super) offset: usize,
    pub(super) file: String,
    /// In hexadecimal digits; empty if the file has none.
    pub(super) build_id: String,
}

impl Mapping {
    pub(super) fn contains(&self, address: usize) -> bool {
        (self.start..self.limit).contains(&address)
    }
}

/// Returns the index of the mapping that holds the address.
pub(super) fn find(mappings: &[Mapping], address: usize) -> Option<usize> {
    mappings.iter().position(|mapping| mapping.contains(address))
}

/// Returns all that is mapped now, the program first. (Empty on systems other than Linux.)
#[cfg(not(target_os = "linux"))]
pub(super) fn all() -> Vec<Mapping> {
    Vec::new()
}

/// Returns all that is mapped now, the program first. (Empty on systems other than Linux.)
#[cfg(target_os = "linux")]
pub(super) fn all() -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    // SAFETY: the callback gets `found`, which lives until the call has returned and is borrowed by
    // nobody else.
    unsafe { crate::sys::loader::each_module(linux::note, (&raw mut found).cast()) };
    found
}

#[cfg(target_os = "linux")]
mod linux {
    use super::Mapping;
    use std::ffi::{CStr, c_int, c_void};
    use std::slice;

    const PAGE: usize = 4096;

    /// Adds the code of one object.
    ///
    /// # Safety
    ///
    /// For `dl_iterate_phdr`, with a pointer to a `Vec<Mapping>`.
    pub(super) unsafe extern "C" fn note(
        object: *mut libc::dl_phdr_info,
        _size: usize,
        found: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader describes an object here that stays until this function returns, and
        // `found` is the vector that `all` passed.
        let (object, found) = unsafe { (&*object, &mut *found.cast::<Vec<Mapping>>()) };
        if object.dlpi_phdr.is_null() {
            return 0;
        }
        // SAFETY: the loader keeps so many program headers of the object there.
        let headers = unsafe { slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let base = object.dlpi_addr as usize;
        let file = if object.dlpi_name.is_null() {
            String::new()
        } else {
            // SAFETY: the loader ends names with a 0.
            unsafe { CStr::from_ptr(object.dlpi_name) }.to_string_lossy().into_owned()
        };
        // The program has no name here.
        let file = if file.is_empty() {
            std::fs::read_link("/proc/self/exe").unwrap_or_default().to_string_lossy().into_owned()
        } else {
            file
        };
        let build_id = headers
            .iter()
            .filter(|header| header.p_type == libc::PT_NOTE)
            .find_map(|header| {
                let notes = std::ptr::with_exposed_provenance(base.wrapping_add(header.p_vaddr as usize));
                // SAFETY: segments of notes are part of what the loader has mapped, and readable.
                build_id(unsafe { slice::from_raw_parts(notes, header.p_memsz as usize) })
            })
            .unwrap_or_default();
        for header in headers {
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 {
                let start = base.wrapping_add(header.p_vaddr as usize);
                let end = start.wrapping_add(header.p_memsz as usize);
                found.push(Mapping {
                    start: start & !(PAGE - 1),
                    limit: end.next_multiple_of(PAGE),
                    offset: header.p_offset as usize & !(PAGE - 1),
                    file: file.clone(),
                    build_id: build_id.clone(),
                });
            }
        }
        0
    }

    /// Returns the build id among the notes of a segment.
    pub(super) fn build_id(mut notes: &[u8]) -> Option<String> {
        const NT_GNU_BUILD_ID: usize = 3;

        let word = |notes: &[u8], at: usize| {
            let bytes: [u8; 4] = notes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_ne_bytes(bytes) as usize)
        };
        loop {
            let (name_length, length) = (word(notes, 0)?, word(notes, 4)?);
            let (kind, name) = (word(notes, 8)?, notes.get(12..12 + name_length)?);
            let begin = 12 + name_length.next_multiple_of(4);
            let description = notes.get(begin..begin + length)?;
            if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
                return Some(description.iter().map(|byte| format!("{byte:02x}")).collect());
            }
            notes = notes.get(begin + length.next_multiple_of(4)..)?;
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_first_and_addresses_are_found() {
        let mappings = all();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let here = the_program_is_first_and_addresses_are_found as *const () as usize;
        let mine = &mappings[find(&mappings, here).unwrap()];
        assert_eq!(mine.file, program.to_str().unwrap());
        assert_eq!(mappings[0].file, mine.file);
        let libc = &mappings[find(&mappings, libc::getpid as *const () as usize).unwrap()];
        assert_ne!(libc.file, mine.file);
        assert!(libc.build_id.len() >= 16 && libc.build_id.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_eq!(find(&mappings, 1), None);

        // As the kernel says.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for mapping in [mine, libc] {
            let line = format!("{:x}-{:x} r-xp {:08x}", mapping.start, mapping.limit, mapping.offset);
            assert!(maps.contains(&line), "{line} is not in\n{maps}");
        }
    }

    #[test]
    fn build_ids_are_found_among_other_notes() {
        let note = |kind: u32, name: &[u8], description: &[u8]| {
            let mut note = Vec::new();
            for number in [name.len() as u32, description.len() as u32, kind] {
                note.extend(number.to_ne_bytes());
            }
            for part in [name, description] {
                note.extend(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let notes = [note(3, b"Go\0", b"abcde"), note(1, b"GNU\0", b"abc"), note(3, b"GNU\0", b"\x01\xab")];
        assert_eq!(linux::build_id(&notes.concat()).as_deref(), Some("01ab"));
        assert_eq!(linux::build_id(&notes[0]), None);
        // A note that is cut off, or says that it is longer than the segment.
        assert_eq!(linux::build_id(&notes[2][..13]), None);
        assert_eq!(linux::build_id(&[0xff; 12]), None);
    }
}
