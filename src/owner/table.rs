//! Owners by the page: a table beside the heap, and nothing behind a block.
//!
//! The blocks of a page mostly have one owner, so it is noted once.
//!
//! ```text
//! ROOT ──▶ leaf, for 4 GiB of addresses
//!          ├─ entries:  4 bytes for each 4 KiB: nobody; one owner's mark; or mixed, and whose it was alone
//!          └─ part, for 128 MiB of them
//!             ├─ granules: 2 bytes for each 16 bytes, and as many for what begins between two such:
//!             │            of a mixed page, the mark of the block that begins there; 0 is the former owner
//!             └─ wide ──▶  4 bytes for each 8 bytes: a long slot or a sample, where the granule is the escape
//! ```
//!
//! `ROOT` has distances and not addresses, from a leaf that nobody writes: so zeros are that one, and a look asks nothing
//! on the way to the entry. A leaf is for the addresses that 32 bits tell apart, so that an entry's number is one shift.
//!
//! An allocation in a page that is its owner's already writes nothing. Otherwise it moves the entry,
//! by compare-and-swap, *nobody → one owner → mixed*, and never back; in a mixed page each allocation writes
//! the granule at which its block begins. Long slots and samples have mixed pages only. A free reads the
//! entry, which serves a whole page, and its granule if the page is mixed.
//!
//! Why each free reads what was noted, whatever other threads do meanwhile, without a fence or a
//! lock on the hot path:
//!
//! - *An entry changes twice at most*, and one that says that its page is mixed says whose it was before, too.
//! - *A block that was allocated in a page of its owner alone* has written nothing. If the page is mixed by
//!   another thread, before or after that, the block's granule is 0, since none but a block that begins
//!   there writes it; so the former owner is found, which is the block's. If an older block there had
//!   written it, the page was mixed while that one was live; it was freed before this one was allocated,
//!   and the backend, which hands the memory on from thread to thread, makes all that visible which its
//!   former owner had seen: so this allocation has found the page mixed.
//! - *A granule is one block's*: blocks begin at different multiples of 8 bytes, and it is written and
//!   read between the block's allocation in the backend and its free.
//! - *A part is mapped before the first entry of its pages is written.* Who finds a page mixed, and its part missing
//!   all the same, has not been told of it; so whoever allocated the block was not either, and has written nothing.
//!
//! A page that the backend gives back to the system, or fills with other blocks, keeps its entry: at worst
//! it becomes mixed without need.
//!
//! Leaves and parts are mapped when they are first needed, and touched a page at a time. Where the system refuses
//! one, which is asked again once a second, the block is the unattributed service's, and so is, from then on, each page of these
//! 128 MiB before it becomes mixed: a part that is mapped later begins so. A part has all that its pages
//! may need, but for wide owners: a block for whose there is no memory is noted as the unattributed service's.
//! After a fork the child has a copy, in which each entry is whole.

use super::slot::{Mark, Named, Slot};
use crate::sync::{AtomicBool, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, shared};
use crate::sys;
use std::ptr;

/// What an entry stands for.
const PAGE: usize = if cfg!(dogtag_loom) { 32 } else { 4096 };
/// Blocks begin at multiples of this.
const ALIGN: usize = 8;
/// Bytes of the address space that a part is for. It is mapped as 32 MiB and a little.
const PART: usize = if cfg!(dogtag_loom) { PAGE } else { 128 << 20 };
const GRANULES: usize = PART / (2 * ALIGN);
/// Bytes of the address space that a leaf is for. It is mapped as 4 MiB and a little.
const LEAF: usize = if cfg!(dogtag_loom) { PAGE } else { 4 << 30 };
const PAGES: usize = LEAF / PAGE;
const PARTS: usize = LEAF / PART;
/// Bits of an address that a process has, unless it asks for more; above them some
/// systems have tags.
const ADDRESS_BITS: u32 = 48;
const LEAVES: usize = if cfg!(dogtag_loom) { 1 } else { (1 << ADDRESS_BITS) / LEAF };

/// Neither this is a slot's mark, nor the next one.
const NOBODY: u16 = 0;
const MIXED: u16 = 0xffff;

/// Of one that says that a page is mixed, above that: the former owner, or [`NOBODY`].
const FORMER: u32 = u16::BITS;
/// A granule whose owner stands in the wide table.
const ESCAPE: u16 = Mark::LONG.short();
const UNATTRIBUTED: Mark = Slot::UNATTRIBUTED.mark();

#[repr(C)]
struct Leaf {
    /// Zero, the bits of a mark, or [`MIXED`].
    entries: Entries,
    parts: Parts,
}

struct Part {
    granules: [Granules; 2],
    wide: AtomicPtr<Wide>,
}

struct Entries([AtomicU32; PAGES]);
struct Parts([AtomicPtr<Part>; PARTS]);
struct Granules([AtomicU16; GRANULES]);
struct Wide([AtomicU32; PART / ALIGN]);

/// The first is where all the others are counted from, so that the hot path needs one address.
#[repr(C)]
struct Root {
    /// Where there is no leaf: a leaf without an entry.
    none: Leaf,
    /// Where the system has refused one: another such.
    refused: Leaf,
    leaves: [Distance; LEAVES],
}

/// How far a leaf is from [`Root::none`].
struct Distance(AtomicUsize);

shared! {
    static ROOT: Root = Root::new();

    static IS_USED: AtomicBool = AtomicBool::new(false);

    /// When the system was asked again for what it had refused, in milliseconds.
    static ASKED_AGAIN: AtomicU64 = AtomicU64::new(0);
}

/// Stands for what [`Found`] says.
const fn refused<T>() -> *mut T {
    ptr::without_provenance_mut(1)
}

/// The same.
const fn unasked<T>() -> *mut T {
    ptr::without_provenance_mut(2)
}

/// Whether some instance has its owners here.
pub(super) fn is_used() -> bool {
    IS_USED.load(Ordering::Relaxed)
}

/// What is seen of a block's owner at first.
#[derive(Clone, Copy)]
pub(super) struct Sight {
    leaf: &'static Leaf,
    entry: u32,
}

impl Sight {
    #[inline(always)]
    pub(super) fn of(block: *const u8) -> Self {
        let leaf = leaf(block);
        Self { leaf, entry: leaf.entries.of(block).load(Ordering::Relaxed) }
    }

    /// The mark of the owner if all of the page is its; otherwise none that a cell has.
    #[inline(always)]
    pub(super) fn mark_of_page(self) -> Mark {
        Mark::from_bits(self.entry)
    }

    /// The mark of the block's owner; none that a cell has if its slot is a long one, the block
    /// is sampled, or there was no memory to note its owner.
    #[inline(always)]
    pub(super) fn mark(self, block: *const u8) -> Mark {
        Mark::from_short(self.short(block))
    }

    /// Notes the owner of a new block by its mark, if its slot is a short one and the page is mixed.
    #[inline(always)]
    pub(super) fn write_in_mixed(self, block: *mut u8, mark: Mark) -> bool {
        if !is_mixed(self.entry) {
            return false;
        }
        let Some(part) = part(self.leaf, block) else { return false };
        part.granule(block).store(mark.short(), Ordering::Relaxed);
        true
    }

    /// What the table says of the block. It was written before the block was handed out.
    #[inline(always)]
    fn short(self, block: *const u8) -> u16 {
        if !is_mixed(self.entry) {
            return self.entry as u16;
        }
        match part(self.leaf, block).map_or(0, |part| part.granule(block).load(Ordering::Relaxed)) {
            0 => (self.entry >> FORMER) as u16,
            mark => mark,
        }
    }
}

/// The mark of a block's owner, as [`Sight::mark`].
#[inline(always)]
pub(super) fn read_mark(block: *const u8) -> Mark {
    Sight::of(block).mark(block)
}

/// The owner of a block, or its sample. Of what is no block of ours: any, or `None`.
pub(super) fn read(block: *const u8) -> Option<Named> {
    let sight = Sight::of(block);
    match sight.short(block) {
        NOBODY => Some(Slot::UNATTRIBUTED.into()),
        ESCAPE => {
            let wide = known(part(sight.leaf, block)?.wide.load(Ordering::Acquire))?;
            Named::of_tagged(wide.of(block).load(Ordering::Relaxed))
        }
        mark => Named::of_mark(Mark::from_short(mark)),
    }
}

/// Notes the owner of a block by its mark, if its slot is a short one. `false` if the system gives
/// no memory for it; then the block is the unattributed service's.
#[inline]
pub(super) fn write_short(block: *mut u8, mark: Mark) -> bool {
    let Some((leaf, part)) = leaf_and_part(block) else { return false };
    leaf.note(part, block, mark);
    true
}

/// Notes the owner of a block. `false` as for [`write_short`].
pub(super) fn write(block: *mut u8, named: Named) -> bool {
    if named.is_short() {
        return write_short(block, named.mark());
    }
    let Some((leaf, part)) = leaf_and_part(block) else { return false };
    let wide = known(part.wide.load(Ordering::Acquire)).or_else(|| map(&part.wide, |_: &Wide| ()));
    let Some(wide) = wide else {
        leaf.note(part, block, UNATTRIBUTED);
        return false;
    };
    wide.of(block).store(named.tagged(), Ordering::Relaxed);
    leaf.note(part, block, Mark::LONG);
    true
}

impl Leaf {
    /// Notes a short mark, or the escape.
    #[inline]
    fn note(&self, part: &Part, block: *mut u8, mark: Mark) {
        let entry = self.entries.of(block);
        let mut found = entry.load(Ordering::Relaxed);
        while !is_mixed(found) {
            if found == mark.bits() {
                return;
            }
            let is_first = found == u32::from(NOBODY) && mark.short() != ESCAPE;
            let new = if is_first { mark.bits() } else { found << FORMER | u32::from(MIXED) };
            match entry.compare_exchange(found, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if is_first => return,
                Ok(_) => break,
                Err(other) => found = other,
            }
        }
        part.granule(block).store(mark.short(), Ordering::Relaxed);
    }

    /// Makes all pages of a part the unattributed service's that are nobody's.
    fn fill(&self, block: *const u8) {
        let first = block.addr() / PART * PART;
        for page in (first..first + PART).step_by(PAGE) {
            // Blocks without owners are anywhere. But in the page of address 0 is none: null is nobody's.
            if page != 0 || cfg!(dogtag_loom) {
                let (entry, nobody) = (self.entries.of(ptr::without_provenance(page)), u32::from(NOBODY));
                let _ =
                    entry.compare_exchange(nobody, UNATTRIBUTED.bits(), Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }
}

impl Part {
    #[inline(always)]
    fn granule(&self, block: *const u8) -> &AtomicU16 {
        let address = block.addr();
        &self.granules[address / ALIGN % 2].0[address / (2 * ALIGN) % GRANULES]
    }
}

/// Whether an entry says that its page is mixed.
#[inline(always)]
const fn is_mixed(entry: u32) -> bool {
    entry as u16 == MIXED
}

impl Entries {
    #[inline(always)]
    fn of(&self, block: *const u8) -> &AtomicU32 {
        &self.0[block.addr() / PAGE % PAGES]
    }
}

impl Wide {
    fn of(&self, block: *const u8) -> &AtomicU32 {
        &self.0[block.addr() / ALIGN % self.0.len()]
    }
}

impl Parts {
    #[inline(always)]
    fn of(&self, block: *const u8) -> &AtomicPtr<Part> {
        &self.0[block.addr() / PART % PARTS]
    }
}

/// The leaf of a block: one without an entry if it has none.
#[inline(always)]
fn leaf(block: *const u8) -> &'static Leaf {
    distance(block).leaf()
}

#[inline(always)]
fn distance(block: *const u8) -> &'static Distance {
    &ROOT.leaves[block.addr() / LEAF % LEAVES]
}

#[inline(always)]
fn part(leaf: &Leaf, block: *const u8) -> Option<&'static Part> {
    known(leaf.parts.of(block).load(Ordering::Acquire))
}

/// Where the owner of a new block is noted. `None` if the system gives no memory for it.
#[inline]
fn leaf_and_part(block: *const u8) -> Option<(&'static Leaf, &'static Part)> {
    let mapped = distance(block).mapped().or_else(|| map_leaf(block));
    let leaf = mapped?;
    Some((leaf, part(leaf, block).or_else(|| map_part(leaf, block))?))
}

/// What stands in a place, or is read from there.
#[inline(always)]
fn known<T>(found: *mut T) -> Option<&'static T> {
    // SAFETY: what is neither null nor `refused` nor `unasked` is mapped, and never unmapped.
    if found.addr() > unasked::<T>().addr() { Some(unsafe { &*found }) } else { None }
}

#[cold]
#[inline(never)]
fn map_leaf(block: *const u8) -> Option<&'static Leaf> {
    IS_USED.store(true, Ordering::Relaxed);
    map(distance(block), |fresh: &Leaf| {
        fresh.parts.0.iter().for_each(|part| part.store(unasked(), Ordering::Relaxed));
    })
}

#[cold]
#[inline(never)]
fn map_part(leaf: &Leaf, block: *const u8) -> Option<&'static Part> {
    map(leaf.parts.of(block), |_: &Part| leaf.fill(block))
}

/// Where something is mapped, or was refused.
trait Place<T> {
    fn found(&self) -> Found<T>;

    /// Puts in its place what `found` says, if that was not done since.
    fn replace(&self, found: Found<T>, new: Found<T>) -> Result<(), Found<T>>;
}

enum Found<T: 'static> {
    Nothing,
    /// The system has refused memory, and some block has no owner for that.
    Refused,
    /// Some block may have no owner, since more than this was refused; for this the system was not asked.
    Unasked,
    Mapped(&'static T),
}

impl<T> Clone for Found<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Found<T> {}

impl<T> Found<T> {
    fn of_pointer(pointer: *mut T) -> Self {
        match known(pointer) {
            Some(mapped) => Self::Mapped(mapped),
            None if pointer == refused() => Self::Refused,
            None if pointer == unasked() => Self::Unasked,
            None => Self::Nothing,
        }
    }

    fn pointer(self) -> *mut T {
        match self {
            Self::Nothing => ptr::null_mut(),
            Self::Refused => refused(),
            Self::Unasked => unasked(),
            Self::Mapped(mapped) => ptr::from_ref(mapped).cast_mut(),
        }
    }
}

impl<T> Place<T> for AtomicPtr<T> {
    fn found(&self) -> Found<T> {
        Found::of_pointer(self.load(Ordering::Acquire))
    }

    fn replace(&self, found: Found<T>, new: Found<T>) -> Result<(), Found<T>> {
        self.compare_exchange(found.pointer(), new.pointer(), Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(Found::of_pointer)
    }
}

impl Distance {
    #[inline(always)]
    fn leaf(&self) -> &'static Leaf {
        let none: &Leaf = &ROOT.none;
        let address = ptr::from_ref(none).expose_provenance().wrapping_add(self.0.load(Ordering::Acquire));
        // SAFETY: each distance is that of a leaf, which is mapped and never unmapped, or of one of the two in `Root`.
        unsafe { &*ptr::with_exposed_provenance(address) }
    }

    fn mapped(&self) -> Option<&'static Leaf> {
        match self.found() {
            Found::Mapped(leaf) => Some(leaf),
            _ => None,
        }
    }

    fn of(found: Found<Leaf>) -> usize {
        let leaf = match found {
            Found::Nothing => &ROOT.none,
            Found::Refused | Found::Unasked => &ROOT.refused,
            Found::Mapped(leaf) => leaf,
        };
        let none: &Leaf = &ROOT.none;
        ptr::from_ref(leaf).expose_provenance().wrapping_sub(ptr::from_ref(none).addr())
    }
}

impl Place<Leaf> for Distance {
    fn found(&self) -> Found<Leaf> {
        let leaf = self.leaf();
        if ptr::eq(leaf, &ROOT.none) {
            Found::Nothing
        } else if ptr::eq(leaf, &ROOT.refused) {
            Found::Refused
        } else {
            Found::Mapped(leaf)
        }
    }

    fn replace(&self, found: Found<Leaf>, new: Found<Leaf>) -> Result<(), Found<Leaf>> {
        let (found, new) = (Self::of(found), Self::of(new));
        match self.0.compare_exchange(found, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.found()),
        }
    }
}

/// Maps what a place is for. `None`, which is noted there, where the system refuses; then it is asked again, for
/// all such places, once a second. After that `after_refusal` prepares what it gives.
#[cold]
#[inline(never)]
fn map<T: sys::Zeroed>(place: &impl Place<T>, after_refusal: impl Fn(&T)) -> Option<&'static T> {
    let is_time = || cfg!(dogtag_loom) || sys::is_time(&ASKED_AGAIN);
    if matches!(place.found(), Found::Refused) && !is_time() {
        return None;
    }
    // SAFETY: all atomics, for which zeros are valid.
    let Some(fresh) = (unsafe { sys::map_zeroed_sparse::<T>() }) else { return refuse(place) };
    let mut found = place.found();
    loop {
        match found {
            Found::Mapped(mapped) => {
                // SAFETY: nobody has seen `fresh`.
                unsafe { sys::unmap(fresh) };
                return Some(mapped);
            }
            Found::Refused | Found::Unasked => after_refusal(fresh),
            Found::Nothing => {}
        }
        match place.replace(found, Found::Mapped(fresh)) {
            Ok(()) => return Some(fresh),
            Err(other) => found = other,
        }
    }
}

/// Notes that a block has no owner for want of memory, unless another thread has just mapped it.
fn refuse<T>(place: &impl Place<T>) -> Option<&'static T> {
    if !cfg!(dogtag_loom) {
        // From now on, not at once.
        sys::is_time(&ASKED_AGAIN);
    }
    let mut found = place.found();
    loop {
        match found {
            Found::Mapped(mapped) => return Some(mapped),
            Found::Refused => return None,
            Found::Nothing | Found::Unasked => {}
        }
        match place.replace(found, Found::Refused) {
            Ok(()) => return None,
            Err(other) => found = other,
        }
    }
}

impl Root {
    crate::sync::const_unless_loom! {
        fn new() -> Self {
            Self { none: Leaf::new(), refused: Leaf::new(), leaves: Distance::none() }
        }
    }
}

#[cfg(not(dogtag_loom))]
impl Distance {
    const fn none() -> [Self; LEAVES] {
        [const { Self(AtomicUsize::new(0)) }; LEAVES]
    }
}

#[cfg(not(dogtag_loom))]
impl Leaf {
    const fn new() -> Self {
        Self {
            entries: Entries([const { AtomicU32::new(0) }; PAGES]),
            parts: Parts([const { AtomicPtr::new(ptr::null_mut()) }; PARTS]),
        }
    }
}

/// Under loom nothing is zeroed memory: what is mapped is made.
#[cfg(dogtag_loom)]
mod made {
    use super::*;

    impl Distance {
        pub(super) fn none() -> [Self; LEAVES] {
            std::array::from_fn(|_| Self(AtomicUsize::new(0)))
        }
    }

    impl Leaf {
        pub(super) fn new() -> Self {
            Self {
                entries: Entries(std::array::from_fn(|_| AtomicU32::new(0))),
                parts: Parts(std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut()))),
            }
        }
    }

    impl Default for Leaf {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Default for Part {
        fn default() -> Self {
            let numbers = || std::array::from_fn(|_| AtomicU16::new(0));
            Self {
                granules: [Granules(numbers()), Granules(numbers())],
                wide: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    impl Default for Wide {
        fn default() -> Self {
            Self(std::array::from_fn(|_| AtomicU32::new(0)))
        }
    }
}

#[cfg(test)]
mod tests;
