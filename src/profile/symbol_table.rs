//! The names of functions in a file's symbol table, which has their whole paths where debug information does not.

use super::mappings::Mapping;
use backtrace::SymbolName;
use object::read::{Object, ObjectSegment, ObjectSymbol, ReadCache};
use object::{File, SymbolKind};
use std::collections::HashMap;
use std::fmt::Write;

/// Returns the functions at addresses in a mapped file, as far as its symbol table has them, demangled
/// and without hashes. They are no return addresses here.
///
/// Only the parts that are needed are read. A file that is another one by now, by its build id, says nothing.
pub(super) fn names(mapping: &Mapping, is_program: bool, addresses: &[usize]) -> HashMap<usize, String> {
    // The program's file may be gone, or another one; this is the one that runs.
    let path = if is_program { "/proc/self/exe" } else { &mapping.file };
    let Ok(file) = std::fs::File::open(path) else { return HashMap::new() };
    read(file, mapping, addresses).unwrap_or_default()
}

fn read(file: std::fs::File, mapping: &Mapping, addresses: &[usize]) -> Option<HashMap<usize, String>> {
    let file = ReadCache::new(file);
    let file = File::parse(&file).ok()?;
    let mut build_id = String::new();
    for byte in file.build_id().ok()?.unwrap_or_default() {
        let _ = write!(build_id, "{byte:02x}");
    }
    if build_id != mapping.build_id {
        return None;
    }
    let page = |address: u64| address & !4095;
    let segment = file.segments().find(|segment| {
        segment.permissions().executable() && page(segment.file_range().0) == mapping.offset as u64
    })?;
    let start = page(segment.address());
    // By where they are in the file.
    let mut wanted: Vec<(u64, usize)> = addresses
        .iter()
        .map(|address| (start + address.wrapping_sub(mapping.start) as u64, *address))
        .collect();
    wanted.sort_unstable();
    let mut names = HashMap::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        let is_function = symbol.kind() == SymbolKind::Text && symbol.is_definition();
        if !is_function || names.len() == wanted.len() {
            continue;
        }
        let (begin, end) = (symbol.address(), symbol.address().saturating_add(symbol.size()));
        let first = wanted.partition_point(|(place, _)| *place < begin);
        for (_, address) in wanted[first..].iter().take_while(|(place, _)| *place < end) {
            names
                .entry(*address)
                .or_insert_with(|| format!("{:#}", SymbolName::new(symbol.name_bytes().unwrap_or_default())));
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::mappings;

    #[inline(never)]
    fn here() -> usize {
        std::hint::black_box(here as fn() -> usize as usize + 1)
    }

    #[test]
    fn functions_of_the_program_and_of_libraries_are_found() {
        let mappings = mappings::all();
        let of = |address: usize| {
            let place = mappings::find(&mappings, address).unwrap();
            names(&mappings[place], place == 0, &[address, 1])
        };
        let found = of(here());
        assert_eq!(found, HashMap::from([(here(), "dogtag::profile::symbol_table::tests::here".to_owned())]));
        let getpid = libc::getpid as *const () as usize;
        // Of several names of one function it is one.
        let found = of(getpid + 1);
        assert!(found[&(getpid + 1)].contains("getpid"), "{found:?}");
    }

    #[test]
    fn another_file_says_nothing() {
        let mappings = mappings::all();
        let place = mappings::find(&mappings, here()).unwrap();
        let other = Mapping { build_id: "0123".to_owned(), ..mappings[place].clone() };
        assert_eq!(names(&other, true, &[here()]), HashMap::new());
        let none = Mapping { file: "/nowhere".to_owned(), ..mappings[place].clone() };
        assert_eq!(names(&none, false, &[here()]), HashMap::new());
        let text = Mapping { file: "/proc/self/maps".to_owned(), ..mappings[place].clone() };
        assert_eq!(names(&text, false, &[here()]), HashMap::new());
    }
}
