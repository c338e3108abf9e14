//! The balance of the process's memory: the services' bytes, what the allocator adds to them, and
//! what is not heap, up to the process's RSS.

mod others;

use crate::arenas;
use crate::backend::{Extents, Heap};
use crate::format::{Bytes, Share};
use crate::ledger::{self, slots};
#[cfg(not(feature = "memory-check"))]
use crate::owner::{self, Named};
use crate::service::Scope;
use crate::sys::smaps::Resident;
use std::fmt;
use std::ops::Range;

/// Measures where the process's physical memory (RSS) is.
///
/// The services' figures are what the program asked for; RSS is what the system
/// gave. The balance lists all that is between. Each
/// part is measured on its own, and the rest is a line of its own.
///
/// It reads jemalloc's figures and `/proc/self/smaps`, for which the kernel walks
/// the process's pages: about a millisecond, and more for each
/// GiB. It takes no lock that an allocation takes. While other threads allocate, the
/// parts are of slightly different moments; the difference is unexplained, too.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// let balance = dogtag::balance();
/// let sum: i64 = balance.lines().iter().map(|line| line.bytes).sum();
/// if let Some(resident) = balance.resident {
///     assert_eq!(sum, resident as i64);
/// }
/// println!("{balance}");
/// # }
/// ```
#[must_use]
pub fn balance() -> Balance {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let (mut unattributed, mut cookies) = (0, 0);
    let totals = ledger::usages(|record, usage| {
        if std::ptr::eq(record, &slots::UNATTRIBUTED) {
            unattributed = usage.bytes();
        }
        cookies += usage.blocks() * around(record);
    });
    let quarantine = quarantined();
    let (in_regions, regions) = arenas();
    // What is in regions is not in the heap, nor are the cookies there.
    let counted = totals.bytes() + quarantine;
    let in_blocks = |heap: &Heap| if heap.is_profiled { heap.active } else { heap.blocks };
    // jemalloc may be there without being the backend; others free meanwhile.
    let is_backend = |heap: &Heap| in_blocks(heap) > (counted + cookies).saturating_sub(in_regions) / 2;
    let heap = Heap::read().filter(is_backend);
    if let Some(heap) = heap {
        // There are fewer where many blocks are large, and C's fill their size classes.
        let others = counted.saturating_sub(in_regions) + heap.thread_caches + heap.internal;
        cookies = cookies.min((in_blocks(&heap) + in_regions).saturating_sub(others));
    }
    let blocks = (counted + cookies).saturating_sub(in_regions);
    let stacks: Vec<usize> = ledger::stacks().collect();
    let mut mappings = others::Mappings::new();
    let like_jemallocs = |mapping: Range<usize>, resident| {
        let is_part = has_no_access(mapping.start);
        mappings.add(mapping, resident, is_part);
    };
    let resident =
        Resident::read(&stacks, &regions, like_jemallocs).ok().filter(|resident| resident.sum() > 0);

    let mut balance = Balance {
        services: totals.bytes() - unattributed,
        unattributed,
        cookies,
        quarantine,
        resident: resident.map(|resident| resident.sum()),
        ..Balance::default()
    };
    if let Some(heap) = heap {
        let in_use = blocks + heap.thread_caches + heap.internal;
        let in_blocks = if heap.is_profiled { in_use.min(heap.active) } else { heap.blocks };
        balance.rounding = in_blocks.saturating_sub(in_use);
        balance.thread_caches = heap.thread_caches;
        balance.free_slots = heap.active.saturating_sub(in_blocks);
        balance.is_profiled = heap.is_profiled;
        balance.dirty_pages = heap.dirty;
        balance.metadata = heap.metadata + heap.internal;
    }
    if let Some(Resident { files, stacks, not_reserved, regions, ledger, other }) = resident {
        let jemallocs = heap.map_or(0, |heap| heap.active + heap.dirty + heap.metadata);
        let own = heap.and_then(|_| Extents::new());
        balance.other_allocators = own.map_or(0, |own| others::in_memory(&own, &mappings, jemallocs));
        let not_reserved = not_reserved.saturating_sub(balance.other_allocators);
        let held = heap.map_or(blocks, |heap| heap.active + heap.dirty + heap.metadata);
        // jemalloc reserves nothing, unless the system is set to count every byte that
        // is mapped. Then, and for other backends, its pages are among the others.
        let is_apart = heap.is_some() && not_reserved > 0;
        let in_memory = if is_apart { not_reserved } else { held.min(not_reserved + other) };
        balance.not_in_memory = held.saturating_sub(in_memory) + in_regions.saturating_sub(regions);
        balance.regions = regions.saturating_sub(in_regions);
        balance.other_mappings = not_reserved + other - in_memory;
        (balance.files, balance.stacks, balance.ledger) = (files, stacks, ledger);
    }
    balance
}

/// Lists the parts of the process's physical memory, as [`balance`] measured them.
///
/// `Display` writes a table. With the feature `serde`, fields that are missing in what is read are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Balance {
    /// Live bytes of all services but the unattributed one, as requested.
    pub services: u64,
    /// Live bytes of the unattributed service, as requested.
    pub unattributed: u64,
    /// Bytes around live blocks: cookies, or with
    /// `memory-check` guards and headers. (Counted as if every block had a cookie, though blocks of
    /// 4 KiB and more have none; or none, if an allocator of the program has an
    /// [owner table](crate::Dogtag::with_owner_table).)
    pub cookies: u64,
    /// Freed blocks in memory-check's quarantine.
    pub quarantine: u64,
    /// Bytes that jemalloc adds to blocks to fill a size class. If another crate has made it the C
    /// library's `malloc`, also what C allocates.
    pub rounding: u64,
    /// Freed blocks that jemalloc keeps for each thread.
    pub thread_caches: u64,
    /// Free space for blocks in pages that hold others. With [`is_profiled`](Self::is_profiled) also
    /// the rounding.
    pub free_slots: u64,
    /// Pages without blocks that jemalloc has not returned to the system yet; it does so within
    /// some ten seconds.
    pub dirty_pages: u64,
    /// jemalloc's bookkeeping.
    pub metadata: u64,
    /// Pages of mapped regions (crate `dogtag-mapped`), without the live blocks that services own there.
    /// (No service owns blocks of a region that is used without a [`Dogtag`](crate::Dogtag), or by
    /// way of a backend that is a type without fields.)
    pub regions: u64,
    /// dogtag's own data: counters, services, owners of large blocks, and memory-check's state of
    /// blocks.
    pub ledger: u64,
    /// Pages of the program, its libraries, and files that it has mapped.
    pub files: u64,
    /// Pages of threads' stacks.
    pub stacks: u64,
    /// Other memory that is not from this allocator: static variables, the C
    /// library's `malloc`, mappings of the program. Without jemalloc's figures
    /// (feature `jemalloc-stats`), also the backend's own data.
    pub other_mappings: u64,
    /// Memory that other allocators mapped as jemalloc does: other copies of
    /// jemalloc, glibc's `malloc` in threads, garbage collectors. Addresses tell it from jemalloc's
    /// blocks and free pages, but not always from jemalloc's bookkeeping: the figure may
    /// include some of that, and so be too large by [`metadata`](Self::metadata) at most. It may be wrong
    /// by more where such memory fills a gap between two of jemalloc's own mappings, or where all such
    /// mappings, jemalloc's own among them, take more than 16 GiB. Less than 256 KiB are left out. 0 with
    /// a jemalloc before 5.3.1, which cannot be asked; then it is part of what is unexplained.
    pub other_allocators: u64,
    /// Whether jemalloc's profiling is on (`prof:true`). Then it does not report the rounding, which
    /// is part of [`free_slots`](Self::free_slots), and [`rounding`](Self::rounding) is 0.
    pub is_profiled: bool,
    /// Bytes of the parts above that are not in physical memory: pages of
    /// blocks that nothing has written to, or that were swapped out. It is the only part
    /// that counts negative.
    pub not_in_memory: u64,
    /// The process's physical memory (RSS): the sum of all parts. `None`
    /// where the system does not report it.
    pub resident: Option<u64>,
}

/// Names one part of a [`Balance`] and has its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BalanceLine {
    /// The part's name, in lower case.
    pub part: &'static str,
    /// The part's bytes; negative for what is not in memory.
    pub bytes: i64,
    /// What the part is, in one line.
    pub meaning: &'static str,
}

impl Balance {
    /// Returns what is left of RSS without all parts: rounding by huge pages, and changes during the
    /// measurement. It is negative if something was counted twice.
    ///
    /// It is 0 where the system does not report RSS.
    #[must_use]
    pub fn unexplained(&self) -> i64 {
        // Of another process they may be anything, and so may their sum.
        let explained: i128 = self.parts().iter().map(|line| i128::from(line.bytes)).sum();
        self.resident.map_or(0, |resident| {
            let left = i128::from(resident) - explained;
            left.clamp(i64::MIN.into(), i64::MAX.into()) as i64
        })
    }

    /// Returns all parts, the unexplained one last. Their sum is [`Balance::resident`]. (Figures that
    /// were made up saturate at what an `i64` holds.)
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// for line in dogtag::balance().lines() {
    ///     println!("{:>12} {:<16} {}", line.bytes, line.part, line.meaning);
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn lines(&self) -> Vec<BalanceLine> {
        let mut lines = self.parts().to_vec();
        lines.push(BalanceLine { part: "unexplained", bytes: self.unexplained(), meaning: "what is left" });
        lines
    }

    fn parts(&self) -> [BalanceLine; 16] {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let line = |part, bytes, meaning| BalanceLine { part, bytes: signed(bytes), meaning };
        let absent = BalanceLine {
            part: "not in memory",
            bytes: -signed(self.not_in_memory),
            meaning: "of the above: never written to, or swapped out",
        };
        let (rounding, free_slots) = if self.is_profiled {
            ("part of free slots while jemalloc profiles", "rounding, and free space between live blocks")
        } else {
            ("what fills blocks up to a size class", "free space between live blocks")
        };
        [
            line("services", self.services, "requested by services, and live"),
            line("unattributed", self.unattributed, "requested outside of services, and live"),
            line("cookies", self.cookies, "owners (or guards) around live blocks"),
            line("quarantine", self.quarantine, "freed blocks that memory-check keeps back"),
            line("rounding", self.rounding, rounding),
            line("thread caches", self.thread_caches, "freed blocks, kept for each thread"),
            line("free slots", self.free_slots, free_slots),
            line("dirty pages", self.dirty_pages, "freed pages, soon given back"),
            line("metadata", self.metadata, "jemalloc's bookkeeping"),
            line("regions", self.regions, "mapped regions, beyond live blocks"),
            line("ledger", self.ledger, "dogtag's bookkeeping"),
            line("files", self.files, "the program, its libraries, mapped files"),
            line("stacks", self.stacks, "of threads"),
            line("other mappings", self.other_mappings, "statics, the C library's malloc, and more"),
            line("other allocators", self.other_allocators, "mapped by others as jemalloc does"),
            absent,
        ]
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.resident.unwrap_or(0);
        writeln!(f, "{:<16}  {:>11}  {:>7}", "balance", "bytes", "share")?;
        let rule = "─".repeat(80);
        writeln!(f, "{rule}")?;
        let sign = |bytes: i64| if bytes < 0 { "-" } else { "" };
        for BalanceLine { part, bytes, meaning } in self.lines() {
            let size = bytes.unsigned_abs();
            writeln!(
                f,
                "{part:<16}  {:>11}  {:>7}  {meaning}",
                format!("{}{}", sign(bytes), Bytes(size)),
                format!("{}{}", sign(bytes), Share { part: size, whole }),
            )?;
        }
        writeln!(f, "{rule}")?;
        match self.resident {
            Some(resident) => writeln!(
                f,
                "{:<16}  {:>11}  {:>7}  what the process has in memory",
                "RSS",
                Bytes(resident).to_string(),
                "100.0 %",
            ),
            None => writeln!(f, "{:<16}  {:>11}           the system does not tell", "RSS", "unknown"),
        }
    }
}

/// Bytes of blocks in arenas that are counted, with what stands around them, and the arenas'
/// addresses.
fn arenas() -> (u64, Vec<Range<usize>>) {
    let (mut bytes, mut addresses) = (0, Vec::new());
    for arena in arenas::all() {
        bytes += arena.counted as u64;
        addresses.push(arena.addresses);
    }
    (bytes, addresses)
}

/// What stands around a block of that service.
fn around(record: &slots::Record) -> u64 {
    #[cfg(feature = "memory-check")]
    {
        let _ = record;
        crate::check::AROUND as u64
    }
    #[cfg(not(feature = "memory-check"))]
    {
        if owner::has_table() { 0 } else { Named::Slot(record.slot()).cookie_size() as u64 }
    }
}

/// Whether a block begins there that was freed and has lost its access.
fn has_no_access(_address: usize) -> bool {
    #[cfg(feature = "memory-check")]
    {
        crate::check::has_no_access(_address)
    }
    #[cfg(not(feature = "memory-check"))]
    false
}

fn quarantined() -> u64 {
    #[cfg(feature = "memory-check")]
    {
        crate::check::quarantined().0
    }
    #[cfg(not(feature = "memory-check"))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up() {
        let balance = Balance {
            services: 50 << 20,
            unattributed: 10 << 20,
            rounding: 1 << 20,
            files: 3 << 20,
            not_in_memory: 8 << 20,
            resident: Some(60 << 20),
            ..Balance::default()
        };
        assert_eq!(balance.unexplained(), 4 << 20);
        assert_eq!(balance.lines().iter().map(|line| line.bytes).sum::<i64>(), 60 << 20);
        let table = balance.to_string();
        for text in ["services", "50.0 MiB", "83.3 %", "-8.0 MiB", "-13.3 %", "unexplained", "4.0 MiB", "RSS"]
        {
            assert!(table.contains(text), "{text} is missing in\n{table}");
        }
        let unknown = Balance { resident: None, ..balance };
        assert_eq!(unknown.unexplained(), 0);
        assert!(unknown.to_string().contains("unknown"));
        let doubled = Balance { files: 30 << 20, ..balance };
        assert_eq!(doubled.unexplained(), -23 << 20);
    }

    #[test]
    fn figures_that_were_made_up_are_shown_as_far_as_they_can_be() {
        let huge = Balance {
            services: u64::MAX,
            unattributed: u64::MAX,
            not_in_memory: 1 << 63,
            resident: Some(u64::MAX),
            ..Balance::default()
        };
        assert_eq!(huge.lines()[0].bytes, i64::MAX);
        assert_eq!(huge.unexplained(), i64::MAX);
        assert_eq!(Balance { resident: Some(0), ..huge }.unexplained(), -i64::MAX);
        let beyond = Balance { files: u64::MAX, stacks: 1 << 63, resident: Some(0), ..huge };
        assert_eq!(beyond.unexplained(), i64::MIN);
        assert!(beyond.to_string().contains("-8.0 EiB"), "{beyond}");
    }
}
