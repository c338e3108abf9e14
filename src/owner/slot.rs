//! Slots and samples, and the marks by which blocks name them.

/// The dense index behind a service's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    /// The slot of the service `unattributed`, which gets memory that nobody claims.
    pub const UNATTRIBUTED: Self = Self(0);

    /// The number of slots: what a long cookie can distinguish.
    pub const COUNT: u32 = 1 << 24;

    /// The number of slots with short cookies: the first ones.
    pub(crate) const SHORT_COUNT: usize = 1 << 16;

    /// The slot of that index; `None` past the end and for the few indexes
    /// whose mark is reserved.
    pub(crate) const fn new(index: u32) -> Option<Self> {
        let scrambled = index ^ SCRAMBLE;
        if index >= Self::COUNT || scrambled == ZEROS || scrambled == ONES || scrambled == ESCAPE as u32 {
            return None;
        }
        Some(Self(index))
    }

    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    /// The mark of this slot's blocks.
    #[inline]
    pub(crate) const fn mark(self) -> Mark {
        if !self.is_short() {
            return Mark::LONG;
        }
        let [.., higher, lower] = (self.0 ^ SCRAMBLE).to_be_bytes();
        Mark::from_cookie([higher, lower])
    }

    /// The short slot whose blocks have that mark.
    pub(crate) const fn of_mark(mark: Mark) -> Option<Self> {
        Self::new(u16::from_be_bytes(mark.to_cookie()) as u32 ^ SCRAMBLE)
    }

    /// The long slot that is kept with a block as that [number](Named::tagged); `None` if none is.
    #[inline(always)]
    pub(super) const fn of_long_tagged(tagged: u32) -> Option<Self> {
        // Garbage of any kind is too much or too little. (No mark of a long slot is reserved.)
        let index = tagged ^ TAG;
        if Self::SHORT_COUNT as u32 <= index && index < Self::COUNT { Some(Self(index)) } else { None }
    }

    /// Whether its blocks need no more than a short cookie.
    #[inline]
    pub(crate) const fn is_short(self) -> bool {
        self.index() < Self::SHORT_COUNT
    }
}

/// A sampled block's number: its place in the table of live samples, which knows the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleId(u32);

impl SampleId {
    /// The number of samples that a long cookie can distinguish.
    pub(crate) const COUNT: u32 = 1 << 24;

    /// Of a block that the sampled guard has, which knows what it is: no sample's.
    #[allow(dead_code, reason = "builds without the guard compare with it only")]
    pub(crate) const GUARDED: Self = Self(Self::COUNT - 1);

    /// The sample in that place; `None` past the end.
    pub(crate) const fn new(index: u32) -> Option<Self> {
        if index < Self::COUNT { Some(Self(index)) } else { None }
    }

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is kept with a block: its owner, or the sample that knows the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The owner's slot.
    Slot(Slot),
    /// The sample, with which the block's free leaves the hot path: its mark is no cell's.
    Sample(SampleId),
}

impl Named {
    /// The mark of the block.
    #[inline]
    pub(crate) const fn mark(self) -> Mark {
        match self {
            Self::Slot(slot) => slot.mark(),
            Self::Sample(_) => Mark::LONG,
        }
    }

    /// Whether the block needs no more than a short cookie.
    #[inline]
    pub(crate) const fn is_short(self) -> bool {
        match self {
            Self::Slot(slot) => slot.is_short(),
            Self::Sample(_) => false,
        }
    }

    /// The number that is kept with a block whose mark says too little.
    pub(super) const fn tagged(self) -> u32 {
        match self {
            Self::Slot(slot) => slot.0 | TAG,
            Self::Sample(sample) => sample.0 | SAMPLE_TAG,
        }
    }

    /// What is kept with a block as that number; `None` if nothing is.
    pub(super) const fn of_tagged(tagged: u32) -> Option<Self> {
        let index = tagged & INDEX;
        match tagged & !INDEX {
            TAG if index > u16::MAX as u32 => match Slot::new(index) {
                Some(slot) => Some(Self::Slot(slot)),
                None => None,
            },
            SAMPLE_TAG => Some(Self::Sample(SampleId(index))),
            _ => None,
        }
    }

    /// The short slot whose blocks have that mark.
    pub(super) fn of_mark(mark: Mark) -> Option<Self> {
        Slot::of_mark(mark).map(Self::Slot)
    }
}

impl From<Slot> for Named {
    #[inline]
    fn from(slot: Slot) -> Self {
        Self::Slot(slot)
    }
}

/// The first two bytes of a cookie, as a number. No slot's is 0, which is what a cell of zeroed memory
/// has, which nobody has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

impl Mark {
    /// The mark of no slot. An overwritten cookie may have it.
    pub(crate) const NONE: Self = Self(0);

    /// The mark of every block of a long slot, and of every sampled one.
    pub(crate) const LONG: Self = Self::from_cookie(ESCAPE.to_be_bytes());

    pub(crate) const fn from_cookie(bytes: [u8; size_of::<u16>()]) -> Self {
        Self::from_short(u16::from_ne_bytes(bytes))
    }

    pub(crate) const fn to_cookie(self) -> [u8; size_of::<u16>()] {
        (self.0 as u16).to_ne_bytes()
    }

    /// The mark of those two bytes, as a number.
    pub(super) const fn from_short(short: u16) -> Self {
        Self(short as u32)
    }

    /// The two bytes of the cookie, as a number.
    pub(super) const fn short(self) -> u16 {
        self.0 as u16
    }

    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// The two bytes of the cookie, as indexes: of a chunk of 256 slots that
    /// are close together, and in it.
    #[inline(always)]
    pub(crate) const fn position(self) -> (usize, usize) {
        let [chunk, cell] = self.to_cookie();
        (chunk as usize, cell as usize)
    }
}

/// The mark that a long cookie begins with.
const ESCAPE: u16 = 0xE5CA;
/// What cookies are scrambled with.
const SCRAMBLE: u32 = 0xD07A;
/// The two commonest overwrites are no slot's cookie.
const ZEROS: u32 = 0;
const ONES: u32 = 0xffff;
/// The part of a long cookie that is the slot or the sample, and what the rest must be.
const INDEX: u32 = Slot::COUNT - 1;
const TAG: u32 = 0x14 << 24;
const SAMPLE_TAG: u32 = 0x15 << 24;
const _: () = assert!(SampleId::COUNT == Slot::COUNT);

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    /// What is just outside of the bounds is neither a long slot nor a sample, by either way.
    #[test]
    fn numbers_are_known_up_to_their_bounds() {
        let (slot, last) = (|index| Some(Named::Slot(Slot(index))), Slot::COUNT - 1);
        let sample = |index| Some(Named::Sample(SampleId(index)));
        let short = Slot::SHORT_COUNT as u32;
        for (tagged, named) in [
            (0, None),
            (TAG - 1, None),
            (TAG, None),
            (TAG | 1, None),
            (TAG | (short - 1), None),
            (TAG | short, slot(short)),
            (TAG | last, slot(last)),
            (SAMPLE_TAG, sample(0)),
            (SAMPLE_TAG | last, sample(last)),
            (SAMPLE_TAG + Slot::COUNT, None),
            (u32::MAX, None),
        ] {
            assert_eq!(Named::of_tagged(tagged), named, "{tagged:#x}");
            let long = named.filter(|named| matches!(named, Named::Slot(_)));
            assert_eq!(Slot::of_long_tagged(tagged).map(Named::Slot), long, "{tagged:#x}");
            if let Some(named) = named {
                assert_eq!(named.tagged(), tagged);
            }
        }
    }
}
