//! What stands around a block reads back, and nothing else passes for it.

use super::freed::wrong_byte;
use super::guards::guard;
use super::stamp::{SLOTS, THREADS};
use super::*;
use crate::owner::{SampleId, Slot};

/// A block of 40 bytes with everything around it.
#[repr(align(16))]
struct Memory([u8; HEAD + 40 + TAIL]);

/// Up to the size class of 160 bytes.
const TAIL: usize = 56;

fn stamp() -> Stamp {
    Stamp::new(7, 6, 8, 9)
}

fn written() -> (Box<Memory>, NonNull<u8>) {
    let mut memory = Box::new(Memory([0; HEAD + 40 + TAIL]));
    let block = NonNull::from(&mut memory.0[HEAD]);
    let layout = Layout::from_size_align(40, 8).unwrap();
    // SAFETY: the memory is large enough and ours.
    unsafe {
        let outer = super::layout(layout).expect("small");
        let header =
            BlockHeader::new(layout, outer, Family::NewArray, 3, 123_456_789_012, stamp(), SampleId::new(5));
        assert_eq!(header.tail(), TAIL);
        header.write(block, Tag::Live);
        write_guards(block, &header);
    }
    (memory, block)
}

#[test]
fn particulars_read_back() {
    let (_memory, block) = written();
    // SAFETY: written above.
    let read = unsafe { BlockHeader::read(block, Tag::Live) }.expect("whole");
    assert_eq!((read.layout().size(), read.layout().align()), (40, 8));
    assert_eq!((read.instance(), read.born(), read.family()), (3, 123_456_789_012, Family::NewArray));
    assert_eq!(read.allocated(), stamp());
    assert_eq!((read.owner(), read.sample()), (Slot::new(7), SampleId::new(5)));
    // SAFETY: written above.
    unsafe {
        assert!(BlockHeader::read(block, Tag::Freed).is_none(), "a live block is not a freed one");
        assert!(has_guards(block, &read) && wrong_guard(block, &read).is_none());
    }
}

#[test]
fn who_freed_a_block_is_noted_beside_who_allocated_it() {
    let (_memory, block) = written();
    let other = Stamp::new(SLOTS, u16::MAX, THREADS, u32::MAX);
    // SAFETY: written above.
    let read = unsafe {
        let mut read = BlockHeader::read(block, Tag::Live).expect("whole");
        read.set_freed(block, other);
        assert!(BlockHeader::read(block, Tag::Live).is_none(), "a freed block is not a live one");
        BlockHeader::read(block, Tag::Freed).expect("whole")
    };
    assert_eq!((read.allocated(), read.freed()), (stamp(), other));
    let parts = |stamp: Stamp| (stamp.slot(), stamp.generation(), stamp.thread(), stamp.trace);
    assert_eq!(parts(read.allocated()), (7, 6, 8, 9));
    assert_eq!(parts(read.freed()), (SLOTS, u16::MAX, THREADS, u32::MAX));
    assert_eq!(Stamp::new(1, 2, u32::MAX, 3), Stamp::new(1, 2, THREADS, 3));
}

#[test]
fn every_single_bit_around_a_block_counts() {
    let (mut memory, block) = written();
    // SAFETY: written above.
    let header = unsafe { BlockHeader::read(block, Tag::Live) }.expect("whole");
    for byte in (0..HEAD).chain(HEAD + 40..HEAD + 40 + TAIL) {
        for bit in 0..8 {
            memory.0[byte] ^= 1 << bit;
            // SAFETY: written above.
            let (whole, wrong) =
                unsafe { (BlockHeader::read(block, Tag::Live).is_some(), wrong_guard(block, &header)) };
            // SAFETY: written above.
            assert_eq!(unsafe { has_guards(block, &header) }, wrong.is_none());
            memory.0[byte] ^= 1 << bit;
            let offset = byte as isize - HEAD as isize;
            match wrong {
                Some(first) => assert_eq!(first, offset),
                // Who freed it: 8 bytes, and 4 for the call stack.
                None if [0..8, 12..16].iter().any(|freed| freed.contains(&byte)) => assert!(whole),
                None => assert!(!whole && offset < -(GUARD as isize), "byte {offset} bit {bit}"),
            }
        }
    }
}

#[test]
fn what_is_copied_from_elsewhere_does_not_pass() {
    let (mut memory, _) = written();
    let (copied, block) = written();
    memory.0 = copied.0;
    let other = NonNull::from(&mut memory.0[HEAD]);
    assert_ne!(other, block);
    // SAFETY: written above.
    let header = unsafe { BlockHeader::read(block, Tag::Live) }.expect("whole");
    // SAFETY: the copy has everything that the original has.
    unsafe {
        assert!(BlockHeader::read(other, Tag::Live).is_none());
        assert!(wrong_guard(other, &header).is_some());
    }
}

#[test]
fn guards_are_nothing_that_programs_write() {
    for address in (16..100_000).step_by(16) {
        for byte in guard(NonNull::without_provenance(address.try_into().unwrap())).to_ne_bytes() {
            assert!((0xF5..=0xFC).contains(&byte) && str::from_utf8(&[byte]).is_err());
        }
    }
}

#[test]
fn the_first_wrong_byte_is_found() {
    let mut bytes = [FREED; 300];
    for offset in [0, 1, 63, 64, 65, 255, 256, 299] {
        bytes[offset] ^= 1;
        assert_eq!(wrong_byte::<FREED>(&bytes), Some(offset as isize));
        bytes[offset] ^= 1;
    }
    assert_eq!(wrong_byte::<FREED>(&bytes), None);
}

#[test]
fn every_byte_of_a_freed_block_counts() {
    for length in (0..200).chain([1000, 4096]) {
        let mut bytes = vec![FREED; length];
        let block = NonNull::from(bytes.first_mut().unwrap_or(&mut 0));
        // SAFETY: the bytes are there, and nobody else's.
        let has_fill = |filled| unsafe { has_fill(block, length, filled) };
        assert!(has_fill(Some(FREED)) && has_fill(None) && has_fill(Some(0)) == (length == 0));
        for offset in 0..length {
            // SAFETY: within the bytes.
            unsafe { *block.as_ptr().add(offset) ^= 0x10 };
            assert!(!has_fill(Some(FREED)) && has_fill(None), "byte {offset} of {length}");
            // SAFETY: as above.
            unsafe { *block.as_ptr().add(offset) ^= 0x10 };
        }
        // SAFETY: within the bytes.
        unsafe { block.as_ptr().write_bytes(0, length) };
        assert!(has_fill(Some(0)) && has_fill(Some(FREED)) == (length == 0));
    }
}

#[test]
fn layouts_that_overflow_are_refused() {
    let of = |size, align| Layout::from_size_align(size, align).unwrap();
    assert_eq!(layout(of(isize::MAX as usize, 1)), None);
    assert_eq!(layout(of(1, 1 << 62)), None);
    assert_eq!(layout(of(1, 4096)), Some(of(4096 + 1 + MOST_TAIL, 4096)));
    assert_eq!(layout(of(100, 1)), Some(of(224, 16)));
    assert_eq!(layout(of(LARGE - 1, 1)), Some(of(HEAD + LARGE - 1 + MOST_TAIL, 16)));
    assert_eq!(layout(of(LARGE, 1)), Some(of(LARGE + 2 * PAGE, PAGE)));
    assert_eq!(layout(of(LARGE, 1 << 62)), None);
    assert_eq!(layout(of(isize::MAX as usize - PAGE, 1)), None);
}

/// A large block begins with a page, and so does what is behind all that was requested for it.
#[test]
fn large_blocks_share_their_pages_with_nobody() {
    let other = Stamp::new(1, 2, 3, 4);
    for size in [LARGE, LARGE + 1, LARGE + PAGE - 64, LARGE + PAGE - 63, 20 * LARGE] {
        for align in [1, 64, PAGE, 4 * PAGE] {
            let block = Layout::from_size_align(size, align).unwrap();
            let outer = layout(block).expect("small");
            assert!(outer.align() >= PAGE && outer.size().is_multiple_of(PAGE));
            assert!((64..PAGE + 64).contains(&tail(block)));
            // SAFETY: the layout is not empty. The block is within that memory, and nobody else has it.
            unsafe {
                let base = NonNull::new(std::alloc::alloc(outer)).expect("memory");
                let block_at = base.add(offset(block));
                assert!(block_at.addr().get().is_multiple_of(PAGE));
                let header = BlockHeader::new(block, outer, Family::New, 3, (1 << 38) - 1, stamp(), None);
                header.write(block_at, Tag::Live);
                write_guards(block_at, &header);
                let mut read = BlockHeader::read(block_at, Tag::Live).expect("whole");
                assert!(has_guards(block_at, &read));
                assert_eq!((read.layout(), read.family()), (block, Family::New));
                assert_eq!((read.tail(), read.born()), (tail(block), (1 << 38) - 1));
                assert_eq!((read.offset(), read.outer_layout(block_at)), (offset(block), Some(outer)));
                assert_eq!(read.own_pages(), Some(outer.size() - offset(block)));
                let end = block_at.add(size + tail(block) - 1).as_ptr();
                *end ^= 1;
                assert_eq!(wrong_guard(block_at, &read), Some((size + tail(block) - 1) as isize));
                *end ^= 1;
                read.set_freed(block_at, other);
                let freed = BlockHeader::read(block_at, Tag::Freed).expect("whole");
                assert_eq!((freed.freed(), freed.own_pages()), (other, read.own_pages()));
                // Smaller in its place, it goes back as it was requested.
                assert!(header.shrink(block_at, 100, align, other, None));
                let shrunk = BlockHeader::read(block_at, Tag::Live).expect("whole");
                assert_eq!((shrunk.layout().size(), shrunk.tail(), shrunk.own_pages()), (100, GUARD, None));
                assert_eq!((shrunk.offset(), shrunk.outer_layout(block_at)), (offset(block), Some(outer)));
                std::alloc::dealloc(base.as_ptr(), outer);
            }
        }
    }
}

#[test]
fn a_tail_is_what_is_left_of_the_size_class() {
    let class =
        |size| {
            let classes =
                (1..=8).map(|step| step * 16).chain((7..40).flat_map(|doubling| {
                    (1..=4).map(move |step| (1 << doubling) + (step << (doubling - 2)))
                }));
            classes.into_iter().find(|class| *class >= size)
        };
    for size in 0..LARGE {
        let block = Layout::from_size_align(size, 16).unwrap();
        let (tail, outer) = (tail(block), layout(block).expect("small").size());
        assert_eq!(outer, HEAD + size + tail);
        assert!(tail >= if size < 512 { 32 } else { 64 });
        assert!(tail == MOST_TAIL || Some(outer) == class(outer), "{size}");
        assert_eq!(class(outer), class(HEAD + size + least_tail(size)), "{size}: no larger class");
    }
}

#[test]
fn a_text_ends_in_the_guard() {
    for (is_first, zero) in [(true, 0), (false, 1)] {
        let (mut memory, block) = written();
        // SAFETY: written above.
        unsafe {
            let header = BlockHeader::read(block, Tag::Live).expect("whole").with_zero_first(is_first);
            write_guards(block, &header);
            assert!(has_guards(block, &header));
            assert_eq!(memory.0[HEAD + 40..].iter().position(|byte| *byte == 0), Some(zero));
            // The zero behind a text.
            memory.0[HEAD + 40] = 0;
            assert_eq!(has_guards(block, &header), is_first);
        }
    }
}
