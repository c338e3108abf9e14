//! Names of the functions at return addresses.

use super::frame::Frame;
use super::frames;
use super::mappings::{self, Mapping};
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::Scope;
use std::collections::BTreeMap;
use std::ptr;

/// The functions at each address, innermost first.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub(super) struct Names(BTreeMap<usize, Vec<Frame>>);

impl Names {
    /// Looks up the functions at return addresses, each address once. Takes locks and allocates, so
    /// it is not for code inside an allocation.
    pub(super) fn look_up(addresses: impl Iterator<Item = usize>, mappings: &[Mapping]) -> Self {
        // Nobody's memory, whatever the limit of the service that asks.
        let _scope = Scope::enter(&UNATTRIBUTED);
        let program = frames::program();
        let names = Self::look_up_with(addresses, |address| functions(address, &program, mappings));
        // Debug information takes many times what the names do.
        backtrace::clear_symbol_cache();
        names
    }

    fn look_up_with(
        addresses: impl Iterator<Item = usize>,
        mut functions: impl FnMut(usize) -> Vec<Frame>,
    ) -> Self {
        let mut names = BTreeMap::new();
        for address in addresses {
            names.entry(address).or_insert_with(|| functions(address));
        }
        Self(names)
    }

    /// Returns the names of both; of an address that is in both, the first one's.
    pub(super) fn and(&self, other: &Self) -> Self {
        let mut names = other.0.clone();
        names.extend(self.0.iter().map(|(address, frames)| (*address, frames.clone())));
        Self(names)
    }

    /// Returns the functions at a return address, innermost first.
    pub(super) fn frames(&self, address: usize) -> &[Frame] {
        self.0.get(&address).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
impl FromIterator<(usize, Vec<Frame>)> for Names {
    fn from_iter<I: IntoIterator<Item = (usize, Vec<Frame>)>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

fn functions(address: usize, program: &str, mappings: &[Mapping]) -> Vec<Frame> {
    let mut found: Vec<Frame> = Vec::new();
    // The return address may be the next function's first.
    backtrace::resolve(ptr::without_provenance_mut(address.wrapping_sub(1)), |symbol| {
        let Some(name) = symbol.name() else { return };
        let function = format!("{name:#}");
        let file = symbol.filename().map(|file| file.to_string_lossy().into_owned());
        if let Some(inner) = found.last_mut() {
            inner.is_inlined = true;
        }
        let is_own = frames::is_own(&function, file.as_deref(), program);
        found.push(Frame { address, function, file, line: symbol.lineno(), is_inlined: false, is_own });
    });
    if found.is_empty() {
        let function = match mappings::find(mappings, address.wrapping_sub(1)) {
            Some(place) => {
                let Mapping { start, offset, file, .. } = &mappings[place];
                let name = file.rsplit('/').next().unwrap_or_default();
                format!("{name}+{:#x}", address - start + offset)
            }
            None => format!("{address:#x}"),
        };
        found.push(Frame { address, function, ..Frame::default() });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn each_address_is_looked_up_once() {
        let mut times = HashMap::new();
        let names = Names::look_up_with([7, 9, 7, 7, 8, 9].into_iter(), |address| {
            *times.entry(address).or_insert(0) += 1;
            vec![Frame { address, function: format!("f{address}"), ..Frame::default() }]
        });
        assert_eq!(times, HashMap::from([(7, 1), (8, 1), (9, 1)]));
        assert_eq!(names.frames(9)[0].function, "f9");
        assert_eq!(names.frames(10), []);
    }

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
