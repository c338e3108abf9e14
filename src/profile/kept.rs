//! Names that were looked up, kept for the next profile.
//!
//! To look names up takes debug information apart, which costs many times what names do. So the names at an
//! address stay known while its program or library stays where it is. They are bounded: beyond [`MOST`] all are
//! forgotten.

use super::frame::{Frame, Functions};
use super::mappings::{self, Mapping};
use super::sources::Crates;
use crate::sync::{Mutex, MutexGuard};
use crate::sys::fork::{self, ForkHook, ForkOrder, Held, at_load};
use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

/// Bytes of names that are kept: 16 MiB.
const MOST: usize = 16 << 20;

/// What is known from one lookup to the next.
#[derive(Debug, Default)]
pub(super) struct Kept {
    modules: Vec<(Mapping, HashMap<usize, Functions>)>,
    /// What all the names take, about.
    bytes: usize,
    pub(super) crates: Crates,
    /// The files that `backtrace` knows: it lists them once.
    pub(super) listed: Option<Vec<Mapping>>,
}

impl Kept {
    /// Forgets the names in files that are not mapped any more, or elsewhere.
    pub(super) fn forget_others(&mut self, now: &[Mapping]) {
        let is_gone = |mapping: &Mapping| !now.contains(mapping);
        for (_, names) in self.modules.extract_if(.., |(mapping, _)| is_gone(mapping)) {
            self.bytes -= names.values().map(size).sum::<usize>();
        }
    }

    /// Returns the functions at a return address.
    pub(super) fn get(&self, address: usize) -> Option<&Functions> {
        let is_of = |(mapping, _): &&(Mapping, _)| mapping.contains(address.wrapping_sub(1));
        self.modules.iter().find(is_of)?.1.get(&address)
    }

    /// Keeps names, of what is mapped now.
    pub(super) fn keep(&mut self, names: &BTreeMap<usize, Functions>, now: &[Mapping]) {
        for (address, functions) in names {
            let Some(mapping) = mappings::find(now, address.wrapping_sub(1)).map(|place| &now[place]) else {
                continue;
            };
            // Without a build id, another file at the same place would look the same. The program stays.
            if mapping.build_id.is_empty() && mapping.file != now[0].file {
                continue;
            }
            let size = size(functions);
            if size > MOST {
                continue;
            }
            if self.bytes + size > MOST {
                self.modules.clear();
                self.bytes = 0;
            }
            let place = self.modules.iter().position(|(known, _)| known == mapping).unwrap_or_else(|| {
                self.modules.push((mapping.clone(), HashMap::new()));
                self.modules.len() - 1
            });
            if self.modules[place].1.insert(*address, functions.clone()).is_none() {
                self.bytes += size;
            }
        }
    }

    #[cfg(test)]
    fn addresses(&self) -> usize {
        self.modules.iter().map(|(_, names)| names.len()).sum()
    }
}

fn size(functions: &Functions) -> usize {
    let of_frame = |frame: &Frame| {
        size_of::<Frame>() + frame.function.len() + frame.file.as_ref().map_or(0, String::len)
    };
    // And the entry.
    size_of::<(usize, Functions)>() + functions.frames().iter().map(of_frame).sum::<usize>()
}

static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

/// Calls `with` with what is kept. Nothing in it may look names up, since others wait meanwhile.
pub(super) fn with<R>(with: impl FnOnce(&mut Kept) -> R) -> R {
    with_locked(lock(), with)
}

fn with_locked<R>(mut kept: MutexGuard<'static, Option<Kept>>, with: impl FnOnce(&mut Kept) -> R) -> R {
    with(kept.get_or_insert_default())
}

fn lock() -> MutexGuard<'static, Option<Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn register() {
    fork::register_fork_hook(&HOOK);
}

at_load!(register);

static HOOK: ForkHook = ForkHook { order: ForkOrder::Names, before, in_parent: after, in_child: after };
static HELD: Held<MutexGuard<'static, Option<Kept>>> = Held::new();

fn before() {
    // SAFETY: this is the hook's `before`.
    unsafe { HELD.keep(lock()) };
}

fn after() {
    // SAFETY: this is the hook's `in_parent` and `in_child`.
    drop(unsafe { HELD.take() });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: usize, build_id: &str) -> Mapping {
        Mapping {
            start,
            limit: start + 0x1000,
            offset: 0,
            file: "/lib/x.so".to_owned(),
            build_id: build_id.to_owned(),
        }
    }

    fn names(addresses: impl IntoIterator<Item = usize>, length: usize) -> BTreeMap<usize, Functions> {
        let frame = |address| Frame { address, function: "f".repeat(length), ..Frame::default() };
        addresses.into_iter().map(|address| (address, vec![frame(address)].into())).collect()
    }

    #[test]
    fn names_are_forgotten_with_their_library() {
        let program = Mapping { file: "/bin/program".to_owned(), ..mapping(0x1000, "") };
        let now = [program.clone(), mapping(0x2000, "01"), mapping(0x4000, "")];
        let mut kept = Kept::default();
        // Of nobody's code, and of a file that cannot be told from another one, nothing is kept.
        kept.keep(&names([0x1001, 0x2001, 0x2002, 0x3002, 0x4002], 3), &now);
        assert_eq!(kept.addresses(), 3);
        kept.forget_others(&now);
        assert_eq!(kept.get(0x2002).unwrap().frames()[0].function, "fff");
        assert!(kept.get(0x3002).is_none() && kept.get(0x4002).is_none());
        // Another library where the one was.
        kept.forget_others(&[program.clone(), mapping(0x2000, "02")]);
        assert!(kept.get(0x2002).is_none() && kept.get(0x1001).is_some());
        kept.forget_others(&[]);
        assert_eq!((kept.addresses(), kept.bytes), (0, 0));
    }

    #[test]
    fn they_are_bounded() {
        let now = [mapping(0, "01")];
        let mut kept = Kept::default();
        kept.keep(&names([1, 2, 3], MOST / 4), &now);
        assert_eq!(kept.addresses(), 3);
        // Known already.
        kept.keep(&names([1, 2, 3], MOST / 4), &now);
        assert_eq!(kept.addresses(), 3);
        kept.keep(&names([4, 5], MOST / 4), &now);
        assert!(kept.addresses() == 2 && kept.bytes < MOST, "{}", kept.bytes);
        assert!(kept.get(5).is_some());
        // More than all.
        kept.keep(&names([6], MOST), &now);
        assert!(kept.bytes < MOST);
    }
}
