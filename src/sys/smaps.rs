//! What of the process is in physical memory, and of what kind, as Linux tells in
//! `/proc/self/smaps`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

/// Bytes in physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Of files: the program, its libraries, what else is mapped.
    pub(crate) files: u64,
    /// Stacks, as far as they are known.
    pub(crate) stacks: u64,
    /// Memory that was mapped with `MAP_NORESERVE`, as jemalloc maps its own.
    pub(crate) not_reserved: u64,
    /// Mapped regions of this crate's.
    pub(crate) regions: u64,
    /// This crate's own: memory that is said to be used at random.
    pub(crate) ledger: u64,
    /// Everything else.
    pub(crate) other: u64,
}

impl Resident {
    pub(crate) fn sum(&self) -> u64 {
        let Self { files, stacks, not_reserved, regions, ledger, other } = self;
        files + stacks + not_reserved + regions + ledger + other
    }

    /// Reads it, given an address in each thread's stack, and those of regions. The kernel goes through
    /// the process's pages, which takes a few milliseconds for each GiB. `like_jemallocs` is told
    /// of mappings that are not reserved, and what of each is in memory.
    pub(crate) fn read(
        stacks: &[usize],
        regions: &[Range<usize>],
        like_jemallocs: impl FnMut(Range<usize>, u64),
    ) -> io::Result<Self> {
        let file = File::open("/proc/self/smaps")?;
        Self::parse(BufReader::with_capacity(1 << 16, file), stacks, regions, like_jemallocs)
    }

    fn parse(
        mut text: impl BufRead,
        stacks: &[usize],
        regions: &[Range<usize>],
        mut like_jemallocs: impl FnMut(Range<usize>, u64),
    ) -> io::Result<Self> {
        let mut sum = Self::default();
        let mut mapping = Mapping::default();
        // A path need not be UTF-8.
        let mut line = Vec::with_capacity(256);
        while text.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            let (key, rest) = text.split_once(' ').unwrap_or((text.trim_end(), ""));
            match key.strip_suffix(':') {
                Some("Rss") => {
                    let kib = rest.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
                    mapping.resident = kib.filter(|kib| *kib < MOST).unwrap_or(0) * 1024;
                }
                Some("VmFlags") => {
                    let has = |flag| rest.split_whitespace().any(|other| other == flag);
                    (mapping.is_not_reserved, mapping.is_ledger) = (has("nr"), has("rr"));
                }
                Some(_) => {}
                None => {
                    mapping.add_to(&mut sum, stacks, regions, &mut like_jemallocs);
                    mapping = Mapping::of(key, rest);
                }
            }
            line.clear();
        }
        mapping.add_to(&mut sum, stacks, regions, &mut like_jemallocs);
        Ok(sum)
    }
}

/// Bytes of whole pages that are in physical memory.
pub(crate) fn in_memory(pages: &Range<usize>) -> u64 {
    const MOST: usize = 1 << 14;

    let mut found = vec![0_u8; pages.len().div_ceil(PAGE).min(MOST)];
    let mut bytes = 0;
    for start in pages.clone().step_by(MOST * PAGE) {
        let end = pages.end.min(start + MOST * PAGE);
        let found = &mut found[..(end - start).div_ceil(PAGE)];
        // SAFETY: a place for a byte for each page. If they are not mapped any more, it says so.
        let error = unsafe {
            libc::mincore(std::ptr::without_provenance_mut(start), end - start, found.as_mut_ptr().cast())
        };
        if error == 0 {
            bytes += found.iter().filter(|page| **page & 1 != 0).count() as u64 * PAGE as u64;
        }
    }
    bytes
}

const PAGE: usize = 4096;

/// KiB that no machine has.
const MOST: u64 = 1 << 40;

/// A mapping, as far as it was read.
#[derive(Default)]
struct Mapping {
    start: usize,
    end: usize,
    is_file: bool,
    is_main_stack: bool,
    is_not_reserved: bool,
    is_ledger: bool,
    resident: u64,
}

impl Mapping {
    /// From its first line: `start-end permissions offset device inode path`.
    fn of(range: &str, rest: &str) -> Self {
        let address =
            |text: Option<&str>| text.and_then(|text| usize::from_str_radix(text, 16).ok()).unwrap_or(0);
        let mut ends = range.split('-');
        // What is no file has no inode; and a name in brackets, if any.
        let mut words = rest.split_whitespace().skip(3);
        let (inode, path) = (words.next().unwrap_or("0"), words.next().unwrap_or(""));
        Self {
            start: address(ends.next()),
            end: address(ends.next()),
            is_file: inode != "0" && !path.starts_with('['),
            is_main_stack: path == "[stack]",
            ..Self::default()
        }
    }

    fn add_to(
        &self,
        sum: &mut Resident,
        stacks: &[usize],
        regions: &[Range<usize>],
        like_jemallocs: &mut impl FnMut(Range<usize>, u64),
    ) {
        let in_regions = self.part_in(regions);
        if self.is_not_reserved && !self.is_file && !self.is_ledger {
            like_jemallocs(self.start..self.end, self.resident - in_regions);
        }
        if self.resident == 0 {
            return;
        }
        let is_stack = || stacks.iter().any(|address| (self.start..self.end).contains(address));
        sum.regions += in_regions;
        let part = if self.is_file {
            &mut sum.files
        } else if self.is_ledger {
            &mut sum.ledger
        } else if self.is_not_reserved {
            &mut sum.not_reserved
        } else if self.is_main_stack || is_stack() {
            &mut sum.stacks
        } else {
            &mut sum.other
        };
        *part += self.resident - in_regions;
    }

    /// How much of it is in regions: all, or nothing, unless the system has joined a region with
    /// what is beside it; then in proportion.
    fn part_in(&self, regions: &[Range<usize>]) -> u64 {
        let common =
            |region: &Range<usize>| region.end.min(self.end).saturating_sub(region.start.max(self.start));
        let len = self.end.saturating_sub(self.start).max(1);
        let common = regions.iter().map(common).sum::<usize>().min(len);
        (u128::from(self.resident) * common as u128 / len as u128) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kinds_are_told_apart() {
        let text = "\
55d0-55e0 r-xp 00004000 fe:00 247534                     /usr/bin/a program: with - signs\n\
Size:                 64 kB\nRss:                  12 kB\nRssAnon:  99 kB\nVmFlags: rd ex mr mw me \n\
55e0-55f0 rw-p 00000000 00:00 0                          [heap]\nRss: 4 kB\nVmFlags: rd wr\n\
7f00-7f10 rw-p 00000000 00:00 0 \nRss: 100 kB\nVmFlags: rd wr mr mw me nr\n\
7f10-7f20 rw-p 00000000 00:00 0 \nRss: 8 kB\nVmFlags: rd wr mr mw me ac\n\
7f20-7f30 rw-p 00000000 00:00 0 \nRss: 16 kB\nVmFlags: rd wr mr mw me ac\n\
7f24-7f28 rw-p 00000000 00:00 0 \nRss: 64 kB\nVmFlags: rd wr mr mw me ac rr\n\
7f30-7f40 rw-s 00000000 00:01 1029                       /memfd:window (deleted)\nRss: 32 kB\nVmFlags: rd wr sh rr\n\
7fe0-7ff0 rw-s 00000000 00:01 1030                       /memfd:region (deleted)\nRss: 128 kB\nVmFlags: rd wr sh\n\
7ff0-7fff rw-p 00000000 00:00 0                          [stack]\nRss: 20 kB\nVmFlags: rd gd ac\n";
        let regions = [0x7e00..0x7f00, 0x7f2c..0x7f30, 0x7fe0..0x7ff0];
        let mut seen = Vec::new();
        let see = |mapping, resident| seen.push((mapping, resident));
        let resident = Resident::parse(text.as_bytes(), &[0x7f15, 0x1234], &regions, see).unwrap();
        assert_eq!(seen, [(0x7f00..0x7f10, 100 << 10)]);
        let kib = |kib: u64| kib << 10;
        assert_eq!(
            resident,
            Resident {
                files: kib(44),
                stacks: kib(28),
                not_reserved: kib(100),
                regions: kib(132),
                ledger: kib(64),
                other: kib(16)
            },
        );
        assert_eq!(resident.sum(), kib(384));
        let none = |_: Range<usize>, _| ();
        assert_eq!(Resident::parse(&b""[..], &[], &[], none).unwrap(), Resident::default());
        assert_eq!(Resident::parse(&b"\xff\xfe\nRss:\nno such line"[..], &[], &[], none).unwrap().sum(), 0);
    }
    /// As the kernel writes it, but for what is in it.
    fn mapping() -> impl Strategy<Value = (String, u64)> {
        let address = || prop_oneof![0_u64..0x4000, any::<u64>()];
        let path = prop_oneof![
            Just("[stack]".to_owned()),
            Just("[heap]".to_owned()),
            Just(String::new()),
            "[a-zA-Z:/ -]{0,12}",
        ];
        let flags = prop::sample::subsequence(vec!["rd", "wr", "nr", "rr", "sh"], 0..=5);
        (address(), address(), 0_u64..3, path, 0..MOST, flags).prop_map(
            |(start, end, inode, path, kib, flags)| {
                let text = format!(
                    "{start:x}-{end:x} rw-p 00000000 00:00 {inode} {path}\nSize: 4 kB\nRss: {kib} kB\n\
                     Pss: {kib} kB\nVmFlags: {}\n",
                    flags.join(" "),
                );
                (text, kib << 10)
            },
        )
    }

    fn parts() -> impl Strategy<Value = (Vec<usize>, Vec<Range<usize>>)> {
        let range = (0_usize..0x4000, 0_usize..0x1000).prop_map(|(start, len)| start..start + len);
        (prop::collection::vec(0_usize..0x4000, 0..3), prop::collection::vec(range, 0..3))
    }

    proptest! {
        #[test]
        fn every_byte_is_in_one_part(
            mappings in prop::collection::vec(mapping(), 0..8),
            (stacks, regions) in parts(),
        ) {
            let text: String = mappings.iter().map(|(text, _)| text.as_str()).collect();
            let resident = Resident::parse(text.as_bytes(), &stacks, &regions, |_, _| ()).unwrap();
            prop_assert_eq!(resident.sum(), mappings.iter().map(|(_, bytes)| bytes).sum::<u64>());
        }

        #[test]
        fn whatever_is_read_is_taken_or_left(
            lines in prop::collection::vec(
                prop_oneof!["\\PC{0,40}", "[0-9a-f]{0,20}-[0-9a-f]{0,20} .{0,20}", "Rss: *[0-9]{0,25}( kB)?", "VmFlags:.{0,9}"],
                0..20,
            ),
            (stacks, regions) in parts(),
        ) {
            let lines = lines.join("\n");
            let resident = Resident::parse(lines.as_bytes(), &stacks, &regions, |_, _| ()).unwrap();
            prop_assert!(resident.sum() < 20 * MOST * 1024);
        }
    }
}
