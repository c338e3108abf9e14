//! Lists of a service's live blocks.

use super::block::{BlockHeader, Tag};
use super::block_state::State;
use super::inspect::may_be_gone;
use super::shadow;
use super::stack_depot::Backtrace;
use super::threads;
use crate::service::Service;
use crate::sys;
use std::alloc::Layout;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::{self, NonNull};
use std::time::Duration;

/// Lists the live blocks of a service, the largest first.
///
/// The function reads a byte for each 16 bytes of the heap, and the header of each block.
/// Blocks that other threads allocate and free meanwhile may be in the list or not. The list itself is charged to the unattributed service.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// use dogtag::{Service, check};
///
/// let cache = Service::register("cache")?;
/// let entries = cache.run(|| [vec![0_u8; 10], vec![0_u8; 1000]]);
///
/// let live = check::live_blocks(&cache);
/// assert_eq!(live.blocks.len(), 2);
/// assert_eq!(live.blocks[0].layout.size(), 1000);
/// assert_eq!(live.blocks[0].address, entries[1].as_ptr() as usize);
/// println!("{live}");
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn live_blocks(service: &Service) -> LiveBlocks {
    let slot = service.record().slot();
    let now = sys::milliseconds();
    Service::unattributed().run(|| {
        let mut blocks = Vec::new();
        shadow::for_each(|address, entry| {
            let Some(block) = NonNull::new(ptr::with_exposed_provenance_mut(address)) else { return };
            let known = entry.pinned(|state| {
                let is_live =
                    matches!(state, State::Live | State::Condemned | State::ZeroSized) && !may_be_gone(state);
                // SAFETY: the block is pinned.
                (state, if is_live { unsafe { BlockHeader::read(block, Tag::Live) } } else { None })
            });
            if let Some(Some(known)) = known
                && known.owner() == Some(slot)
            {
                blocks.push(LiveBlock {
                    address,
                    layout: known.layout(),
                    age: Duration::from_millis(now.saturating_sub(known.born())),
                    thread: known.allocated().thread(),
                    backtrace: Backtrace::from_number(known.allocated().trace),
                });
            }
        });
        blocks.sort_by_key(|block| (Reverse(block.layout.size()), block.address));
        LiveBlocks { service: service.name().to_owned(), blocks }
    })
}

/// Panics with a list of the live blocks if a service has any; for tests.
///
/// # Panics
///
/// Panics if [`live_blocks`] finds any.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// use dogtag::{Service, check};
///
/// let parser = Service::register("parser")?;
/// parser.run(|| drop(vec![1, 2, 3]));
/// check::assert_no_leaks(&parser);
/// # Ok(())
/// # }
/// ```
#[track_caller]
pub fn assert_no_leaks(service: &Service) {
    let live = live_blocks(service);
    assert!(live.blocks.is_empty(), "{live}");
}

/// Holds the live blocks of a service, as [`live_blocks`] found them.
///
/// `Display` groups them by call stack (`DOGTAG_CHECK=backtrace=1`) or, without call stacks, by
/// size, the group with the most bytes first. A precision bounds
/// the number of groups shown: `format!("{live:.10}")`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveBlocks {
    /// The service's name.
    pub service: String,
    /// The blocks, the largest first.
    pub blocks: Vec<LiveBlock>,
}

/// Describes one live block in [`LiveBlocks`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveBlock {
    /// The block's first byte.
    pub address: usize,
    /// The size and the alignment that were requested.
    pub layout: Layout,
    /// The time since the block was allocated, to within some milliseconds.
    pub age: Duration,
    /// The number of the thread that allocated the block, as in reports: 1 for the first thread that
    /// allocated.
    pub thread: u32,
    /// The call stack of the allocation, if call stacks are kept (`DOGTAG_CHECK=backtrace=1`).
    pub backtrace: Option<Backtrace>,
}

impl fmt::Display for LiveBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.service.escape_debug();
        let blocks = self.blocks.len();
        if blocks == 0 {
            return writeln!(f, "{name} has no live blocks");
        }
        let bytes: usize = self.blocks.iter().map(|block| block.layout.size()).sum();
        writeln!(f, "{name} has {}, {bytes} bytes in sum", Counted(blocks))?;
        let groups = self.groups();
        let shown = f.precision().unwrap_or(usize::MAX).min(groups.len());
        for (backtrace, group) in &groups[..shown] {
            writeln!(f, "{group}")?;
            if let Some(backtrace) = backtrace {
                write!(f, "{backtrace}")?;
            }
        }
        match &groups[shown..] {
            [] => Ok(()),
            rest => {
                let blocks = rest.iter().map(|(_, group)| group.blocks).sum();
                let bytes: usize = rest.iter().map(|(_, group)| group.bytes).sum();
                writeln!(f, "  and {} more, {bytes} bytes in sum", Counted(blocks))
            }
        }
    }
}

impl LiveBlocks {
    fn groups(&self) -> Vec<(Option<Backtrace>, Group)> {
        // Without a call stack the size is all that blocks may have in common.
        let mut groups = BTreeMap::<(Option<Backtrace>, usize), Group>::new();
        for block in &self.blocks {
            let size = block.layout.size();
            let key = (block.backtrace, if block.backtrace.is_some() { 0 } else { size });
            let group =
                groups.entry(key).or_insert_with(|| Group { oldest: block.clone(), blocks: 0, bytes: 0 });
            group.blocks += 1;
            group.bytes += size;
            if group.oldest.age < block.age {
                group.oldest = block.clone();
            }
        }
        let mut groups: Vec<_> =
            groups.into_iter().map(|((backtrace, _), group)| (backtrace, group)).collect();
        groups.sort_by_key(|(_, group)| Reverse(group.bytes));
        groups
    }
}

struct Group {
    oldest: LiveBlock,
    blocks: usize,
    bytes: usize,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LiveBlock { address, layout, age, thread, .. } = &self.oldest;
        write!(
            f,
            "  {}, {} bytes; the oldest at {address:#x}, {} bytes aligned to {}, {:.3} s old, by thread {thread}",
            Counted(self.blocks),
            self.bytes,
            layout.size(),
            layout.align(),
            age.as_secs_f64(),
        )?;
        match threads::name(*thread).as_str() {
            "" => Ok(()),
            name => write!(f, " {name:?}"),
        }
    }
}

struct Counted(usize);

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 live block"),
            blocks => write!(f, "{blocks} live blocks"),
        }
    }
}
