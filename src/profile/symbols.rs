//! Names of the functions at return addresses.
//!
//! Debug information says which functions were inlined, and the files and lines. Where it has names without their paths,
//! as line tables do, the outermost function's is taken from the symbol table, and those of inlined ones
//! from the paths of their files.

use super::frame::{Frame, Functions};
use super::frames::Program;
use super::kept;
use super::mappings::{self, Mapping};
use super::own;
use super::sources::{self, Crates};
use super::symbol_table;
use crate::sys::resolve;
use std::collections::{BTreeMap, BTreeSet};
use std::ptr;

/// The functions at each address, innermost first.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub(super) struct Names(BTreeMap<usize, Functions>);

impl Names {
    /// Looks up the functions at return addresses, each address once, and those that are known from
    /// an earlier time not again. `then` is what was mapped when they were taken.
    /// Takes locks and allocates, so it is not for code inside an allocation.
    pub(super) fn look_up(addresses: impl Iterator<Item = usize>, then: &[Mapping]) -> Self {
        let _scope = own::enter();
        let now = mappings::all();
        let find = |address: usize, mappings: &[Mapping]| {
            mappings::find(mappings, address.wrapping_sub(1)).map(|place| mappings[place].clone())
        };
        let (mut names, mut missing) = (BTreeMap::new(), Vec::new());
        let (mut crates, listed) = kept::with(|kept| {
            kept.forget_others(&now);
            for address in addresses.collect::<BTreeSet<_>>() {
                if find(address, then) != find(address, &now) {
                    // Of a library that was closed, or of another process.
                    names.insert(
                        address,
                        vec![Frame { address, function: place(address, then), ..Frame::default() }].into(),
                    );
                } else if let Some(functions) = kept.get(address) {
                    names.insert(address, functions.clone());
                } else {
                    missing.push(address);
                }
            }
            let listed = kept.listed.get_or_insert_with(|| {
                // Has it list them.
                resolve::resolve(ptr::null_mut(), |_| {});
                now.clone()
            });
            (kept.crates.clone(), listed.clone())
        });
        if missing.is_empty() {
            return Self(names);
        }
        let found = look_up_anew(&missing, &now, &listed, &mut crates);
        kept::with(|kept| {
            kept.keep(&found, &now);
            kept.crates = crates;
        });
        names.extend(found);
        Self(names)
    }

    /// Returns the names of both; of an address that is in both, the first one's.
    pub(super) fn and(&self, other: &Self) -> Self {
        let mut names = other.0.clone();
        names.extend(self.0.iter().map(|(address, functions)| (*address, functions.clone())));
        Self(names)
    }

    /// Returns the functions at a return address, innermost first.
    pub(super) fn frames(&self, address: usize) -> &[Frame] {
        self.0.get(&address).map_or(&[], Functions::frames)
    }
}

#[cfg(test)]
impl FromIterator<(usize, Vec<Frame>)> for Names {
    fn from_iter<I: IntoIterator<Item = (usize, Vec<Frame>)>>(names: I) -> Self {
        Self(names.into_iter().map(|(address, frames)| (address, frames.into())).collect())
    }
}

/// Looks up the functions at return addresses that nothing is known of. `listed` are the files whose
/// debug information is read; of others, those that were opened since, symbol tables alone are.
fn look_up_anew(
    addresses: &[usize],
    now: &[Mapping],
    listed: &[Mapping],
    crates: &mut Crates,
) -> BTreeMap<usize, Functions> {
    let mut found: BTreeMap<usize, Vec<Frame>> = addresses
        .iter()
        .map(|address| {
            let place = mappings::find(now, address.wrapping_sub(1));
            let is_listed = place.is_none_or(|place| listed.contains(&now[place]));
            (*address, if is_listed { by_debug_information(*address) } else { Vec::new() })
        })
        .collect();
    // Debug information takes many times what the names do.
    resolve::clear_cache();
    by_symbol_tables(&mut found, now);
    for frames in found.values() {
        frames.last().into_iter().for_each(|outermost| crates.learn(outermost));
    }
    let is_in_program = |address: usize| {
        let file_of_code = mappings::find(now, address.wrapping_sub(1)).map(|place| &now[place].file);
        file_of_code.is_none_or(|file| *file == now[0].file)
    };
    let mut program = Program::new(false);
    crates.have_paths |= found.values().flatten().any(|frame| {
        let is_rust = frame.file.as_deref().is_some_and(sources::is_rust);
        is_rust && program.is_own(&frame.function, frame.file.as_deref(), true)
    });
    program.has_paths = crates.have_paths;
    found
        .into_iter()
        .map(|(address, mut frames)| {
            if frames.is_empty() {
                frames.push(Frame { address, function: place(address, now), ..Frame::default() });
            }
            for frame in &mut frames {
                if let Some(full) = crates.full_name(&frame.function, frame.file.as_deref()) {
                    frame.function = full;
                }
                frame.is_own = program.is_own(&frame.function, frame.file.as_deref(), is_in_program(address));
            }
            (address, frames.into())
        })
        .collect()
}

/// The functions at a return address, as far as debug information, or else the symbol table, has them.
fn by_debug_information(address: usize) -> Vec<Frame> {
    let mut found: Vec<Frame> = Vec::new();
    // The return address may be the next function's first.
    resolve::resolve(ptr::without_provenance_mut(address.wrapping_sub(1)), |symbol| {
        let Some(name) = symbol.name() else { return };
        let function = format!("{name:#}");
        let file = symbol.filename().map(|file| file.to_string_lossy().into_owned());
        if let Some(inner) = found.last_mut() {
            inner.is_inlined = true;
        }
        found.push(Frame { address, function, file, line: symbol.lineno(), ..Frame::default() });
    });
    found
}

/// Completes the names of outermost functions.
fn by_symbol_tables(found: &mut BTreeMap<usize, Vec<Frame>>, now: &[Mapping]) {
    let is_wanted = |frames: &[Frame]| {
        frames.last().is_none_or(|frame| {
            sources::is_bare(&frame.function) && frame.file.as_deref().is_none_or(sources::is_rust)
        })
    };
    for mapping in now {
        let wanted: Vec<usize> = found
            .range(mapping.start + 1..=mapping.limit)
            .filter(|(_, frames)| is_wanted(frames))
            .map(|(address, _)| address - 1)
            .collect();
        if wanted.is_empty() {
            continue;
        }
        for (place, function) in symbol_table::names(mapping, mapping.file == now[0].file, &wanted) {
            let address = place + 1;
            let Some(frames) = found.get_mut(&address) else { continue };
            match frames.last_mut() {
                None => frames.push(Frame { address, function, ..Frame::default() }),
                // C's name may be that of another one of the function's.
                Some(outermost) if !sources::is_bare(&function) => outermost.function = function,
                Some(_) => {}
            }
        }
    }
}

/// The place of an address in its file, in place of a name.
fn place(address: usize, mappings: &[Mapping]) -> String {
    match mappings::find(mappings, address.wrapping_sub(1)) {
        Some(place) => {
            let Mapping { start, offset, file, .. } = &mappings[place];
            let name = file.rsplit('/').next().unwrap_or_default();
            format!("{name}+{:#x}", address - start + offset)
        }
        None => format!("{address:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn outer(addresses: &mut Vec<usize>) {
        inlined(addresses);
        // So that the call above is not the last thing, which would be a jump.
        addresses.push(0);
    }

    #[inline(always)]
    fn inlined(addresses: &mut Vec<usize>) {
        backtrace::trace(|frame| {
            addresses.push(frame.ip() as usize);
            addresses.len() < 20
        });
    }

    #[test]
    fn functions_have_names_without_hashes_and_those_inlined_too() {
        let mut addresses = Vec::new();
        outer(&mut addresses);
        let names = Names::look_up(addresses.iter().copied(), &mappings::all());
        let stack: Vec<&Frame> = addresses.iter().flat_map(|address| names.frames(*address)).collect();
        let place =
            stack.iter().position(|frame| frame.function.ends_with("symbols::tests::inlined")).unwrap();
        let [inlined, outer] = stack[place..place + 2] else { unreachable!() };
        assert_eq!(outer.function, "dogtag::profile::symbols::tests::outer");
        assert!(inlined.is_inlined && !outer.is_inlined);
        assert_eq!(inlined.address, outer.address);
        for frame in [inlined, outer] {
            assert!(frame.file.as_ref().unwrap().ends_with("src/profile/symbols.rs"));
            assert!(frame.line.unwrap() > 100);
        }
    }

    #[test]
    fn what_has_no_name_has_its_place() {
        let mappings = [Mapping {
            start: 0x5000,
            limit: 0x6000,
            offset: 0x1000,
            file: "/lib/libx.so".to_owned(),
            build_id: String::new(),
        }];
        let names = Names::look_up([0x5011, 0x7001].into_iter(), &mappings);
        assert_eq!(names.frames(0x5011)[0].function, "libx.so+0x1011");
        assert_eq!(names.frames(0x7001)[0].function, "0x7001");
    }
}
