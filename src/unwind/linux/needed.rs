//! Tells which modules are never unloaded: the program, the library that dogtag is in, and all that these need.

use super::loader::{Found, Wait, each_module};
use std::collections::HashSet;
use std::ffi::{CStr, c_char};
use std::ptr;

/// What a module says of itself.
struct Description {
    base: usize,
    /// As others name it.
    names: Vec<Vec<u8>>,
    /// The names of what it needs.
    needs: Vec<Vec<u8>>,
    is_root: bool,
}

/// The modules that stay, by the address that each was loaded to. `None` where the list could not be read
/// without waiting.
pub(super) fn find(wait: Wait) -> Option<HashSet<usize>> {
    let mut modules = Vec::new();
    let is_read = each_module(wait, |found, _| {
        modules.push(describe(found, modules.is_empty()));
        true
    });
    if !is_read {
        return None;
    }
    // musl unloads nothing.
    if cfg!(target_env = "musl") {
        return Some(modules.iter().map(|module| module.base).collect());
    }
    let mut stays = HashSet::new();
    let mut next: Vec<&Description> = modules.iter().filter(|module| module.is_root).collect();
    while let Some(module) = next.pop() {
        if stays.insert(module.base) {
            // Another library of the same name may be unloaded; the loader has the needed one first.
            let first = |need: &_| modules.iter().find(|other| other.names.contains(need));
            next.extend(module.needs.iter().filter_map(first));
        }
    }
    Some(stays)
}

fn describe(found: &Found<'_>, is_program: bool) -> Description {
    let here = (find as fn(Wait) -> Option<HashSet<usize>>) as usize;
    let has_dogtag = found.segments.iter().any(|segment| {
        let start = found.address_of(segment);
        segment.p_type == libc::PT_LOAD && here >= start && here - start < segment.p_memsz as usize
    });
    let mut module = Description {
        base: found.base,
        names: Vec::new(),
        needs: Vec::new(),
        is_root: is_program || has_dogtag,
    };
    // SAFETY: the loader's name of it, which ends with a zero.
    if let Some(name) = unsafe { text(found.name) } {
        module.names.push(name.rsplit(|byte| *byte == b'/').next().unwrap_or(name).to_vec());
    }
    read_dynamic(found, &mut module);
    module
}

/// Reads the dynamic section, for the loader.
fn read_dynamic(found: &Found<'_>, module: &mut Description) {
    const NEEDED: i64 = 1;
    const STRINGS: i64 = 5;
    const NAME: i64 = 14;
    const ENTRY: usize = 16;

    let Some(dynamic) = found.segment(libc::PT_DYNAMIC) else { return };
    let count = dynamic.p_memsz as usize / ENTRY;
    let entries = ptr::with_exposed_provenance::<[i64; 2]>(found.address_of(dynamic));
    // SAFETY: the loader has mapped it.
    let entries = unsafe { std::slice::from_raw_parts(entries, count) };
    let entries = || entries.iter().take_while(|[tag, _]| *tag != 0);
    let Some([_, strings]) = entries().find(|[tag, _]| *tag == STRINGS) else { return };
    // Most loaders have made it an address; some leave what is in the file.
    let strings = *strings as usize;
    let strings = if strings < found.base { found.base + strings } else { strings };
    for [tag, value] in entries() {
        let names = match *tag {
            NEEDED => &mut module.needs,
            NAME => &mut module.names,
            _ => continue,
        };
        let name = ptr::with_exposed_provenance(strings.wrapping_add(*value as usize));
        // SAFETY: in the module's table of strings, as it says itself.
        names.extend(unsafe { text(name) }.map(<[u8]>::to_vec));
    }
}

/// # Safety
///
/// A C string that stays, or null.
unsafe fn text<'a>(name: *const c_char) -> Option<&'a [u8]> {
    if name.is_null() {
        return None;
    }
    // SAFETY: the caller's promise: it ends with a zero and stays.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    (!name.is_empty()).then_some(name)
}
