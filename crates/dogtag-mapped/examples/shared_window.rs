//! A window of memory that two processes share, with a tree of words in it.
//!
//! `cargo run --release -p dogtag-mapped --example shared_window`
//!
//! The parent maps a file that is nowhere but in memory, and builds an index of the words of
//! this repository's README in it. The nodes of the index know each other by offsets, since
//! the same window is at another address in another process. The child, this program once
//! more, inherits the file, maps it to be read only, and walks the tree.
//!
//! Then two services keep blocks in what is left of the window, and go on when it is full:
//! another allocator stands behind it.
//!
//! Prints what the child has found, and who holds what when the window is full. Exit status 1
//! if the child has found anything else than there is, or the books do not balance.

use allocator_api2::boxed::Box as RegionBox;
use allocator_api2::vec::Vec as RegionVec;
use dogtag::{Dogtag, Service};
use dogtag_mapped::{Fallback, MappedRegion, Protection};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, FromRawFd};
use std::process::{Command, ExitCode, Stdio};
use std::ptr::NonNull;
use std::{env, io};

#[cfg(feature = "jemalloc")]
use dogtag::Jemalloc as Heap;
#[cfg(not(feature = "jemalloc"))]
use std::alloc::System as Heap;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// Falls back to the heap when the window is full.
type Memory = Dogtag<Fallback<MappedRegion, Heap>>;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const README: &str = include_str!("../README.md");
const WINDOW: usize = 1 << 20;
/// How many blocks of each service are to be beyond the window in the end.
const BEYOND: usize = 10;

fn main() -> ExitCode {
    // The child is told where the root is; nobody else gives an argument.
    let outcome = match env::args().nth(1) {
        None => parent(),
        Some(root) => child(&root),
    };
    let Err(problem) = outcome else { return ExitCode::SUCCESS };
    eprintln!("shared_window: {problem}");
    ExitCode::FAILURE
}

fn parent() -> Result<()> {
    let file = nameless_file(WINDOW)?;
    // SAFETY: the file has no name, and the child only reads.
    let region = unsafe { MappedRegion::builder(WINDOW).file(&file, 0) }.name("shared").map()?;
    let memory: Memory = Dogtag::with_backend(Fallback::new(region, Heap));
    let window = memory.backend().primary();

    // The index must be in the window, where the child can see it: its allocator is the
    // region itself, behind which stands nobody.
    let service = Service::register("index")?;
    let in_heap = README.to_ascii_lowercase();
    let mut text = RegionVec::new_in(window);
    service.run(|| text.extend_from_slice(in_heap.as_bytes()));
    let index = Index { window, root: Cell::new(NOWHERE) };
    service.run(|| words(str::from_utf8(&text)?).try_for_each(|word| index.add(word)))?;

    let answer = ask_child(&file, index.root.get())?;
    println!("The child has found:\n\n{answer}");
    let mut counts = BTreeMap::new();
    words(&in_heap).for_each(|word| *counts.entry(word).or_default() += 1);
    let expected = report(counts.into_iter().collect());
    if answer != expected {
        return Err(format!("the child should have found:\n\n{expected}").into());
    }

    let mut keepers = [Keeper::new(&memory, "pages", 10_000)?, Keeper::new(&memory, "sessions", 300)?];
    while keepers.iter().any(|keeper| keeper.blocks_beyond() < BEYOND) {
        // Where no page fits any more, some sessions still do.
        keepers.iter_mut().try_for_each(Keeper::keep_one_more)?;
    }
    println!("The window is full:\n\n{}", dogtag::snapshot());
    check_who_holds_what(&memory, &keepers)?;

    // Each block goes back to where it is from.
    let services = [service, keepers[0].service.clone(), keepers[1].service.clone()];
    drop(keepers);
    index.free(index.root.get());
    drop(text);
    services.iter().try_for_each(|service| check_holds(service, 0))
}

fn child(root: &str) -> Result<()> {
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let len = usize::try_from(file.metadata()?.len())?;
    // SAFETY: the parent changes nothing as long as this process is there.
    let window = unsafe { MappedRegion::builder(len).file(&file, 0) };
    let window = &window.protection(Protection::Read).map()?;
    let index = Index { window, root: Cell::new(root.parse()?) };
    let mut found = Vec::new();
    index.collect(index.root.get(), &mut found);
    print!("{}", report(found));
    Ok(())
}

fn ask_child(window: &File, root: u32) -> Result<String> {
    let output = Command::new(env::current_exe()?)
        .arg(root.to_string())
        // The file has no name to be opened by, but can be inherited.
        .stdin(window.try_clone()?)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the child has failed: {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A file that is gone when nobody has it open or mapped any more.
fn nameless_file(len: usize) -> io::Result<File> {
    // SAFETY: the name ends with a zero.
    let descriptor = unsafe { libc::memfd_create(c"shared".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has just been opened, and is nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(len as u64)?;
    Ok(file)
}

/// The words of a text, but for short ones, which say little.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphabetic()).filter(|word| word.len() > 4)
}

/// What there is to say of words and how often they occur. Their order makes a difference.
fn report(mut words: Vec<(&str, u32)>) -> String {
    let mut checksum = DefaultHasher::new();
    words.hash(&mut checksum);
    words.sort_by_key(|(word, count)| (Reverse(*count), *word));
    let mut report = format!("{} words, checksum {:016x}\n", words.len(), checksum.finish());
    words.iter().take(5).for_each(|(word, count)| report += &format!("{count:>6} {word}\n"));
    report
}

/// A tree in a window. All that it knows of places is how far they are from the window's
/// beginning.
struct Index<'window> {
    window: &'window MappedRegion,
    root: Cell<u32>,
}

/// A word of the text, and where those before and after it in the alphabet are.
#[repr(C)]
struct Node {
    word: u32,
    word_len: u32,
    count: Cell<u32>,
    before: Cell<u32>,
    after: Cell<u32>,
}

/// Beyond the end of the window.
const NOWHERE: u32 = u32::MAX;

impl<'window> Index<'window> {
    /// Counts a word, which must be in the window.
    fn add(&self, word: &str) -> Result<()> {
        let mut link = &self.root;
        while let Some((node, other)) = self.node(link.get()) {
            link = match word.cmp(other) {
                Ordering::Less => &node.before,
                Ordering::Greater => &node.after,
                Ordering::Equal => {
                    node.count.update(|count| count + 1);
                    return Ok(());
                }
            };
        }
        let [before, after] = [NOWHERE; 2].map(Cell::new);
        let (place, word_len) = (self.offset_of(word.as_ptr())?, u32::try_from(word.len())?);
        let node = Node { word: place, word_len, count: Cell::new(1), before, after };
        let node = RegionBox::try_new_in(node, self.window).map_err(|_| "the window is full")?;
        link.set(self.offset_of(RegionBox::into_raw(node))?);
        Ok(())
    }

    /// All words below a node, in order, and how often they occur.
    fn collect(&self, offset: u32, found: &mut Vec<(&'window str, u32)>) {
        let Some((node, word)) = self.node(offset) else { return };
        self.collect(node.before.get(), found);
        found.push((word, node.count.get()));
        self.collect(node.after.get(), found);
    }

    /// Frees a node and all below it, which only whoever has built the tree can do.
    fn free(&self, offset: u32) {
        let (Some((node, _)), Some(place)) = (self.node(offset), self.window.at(offset as usize)) else {
            return;
        };
        self.free(node.before.get());
        self.free(node.after.get());
        // SAFETY: it was a box of the window's, and nobody uses it any more.
        drop::<RegionBox<Node, _>>(unsafe { RegionBox::from_raw_in(place.as_ptr(), self.window) });
    }

    fn node(&self, offset: u32) -> Option<(&'window Node, &'window str)> {
        // SAFETY: where there is a place, the parent has put a node.
        let node = unsafe { self.window.at::<Node>(offset as usize)?.as_ref() };
        let word = self.window.slice_at(node.word as usize, node.word_len as usize)?;
        // SAFETY: there the parent has found a word, and leaves it alone.
        let word: &[u8] = unsafe { word.as_ref() };
        Some((node, str::from_utf8(word).ok()?))
    }

    fn offset_of<T>(&self, address: *const T) -> Result<u32> {
        Ok(u32::try_from(self.window.offset_of(address).ok_or("this is not in the window")?)?)
    }
}

/// A service that keeps blocks of one size.
struct Keeper<'memory> {
    memory: &'memory Memory,
    service: Service,
    layout: Layout,
    blocks: Vec<NonNull<u8>>,
}

impl<'memory> Keeper<'memory> {
    fn new(memory: &'memory Memory, name: &str, size: usize) -> Result<Self> {
        let (service, layout) = (Service::register(name)?, Layout::from_size_align(size, 8)?);
        Ok(Self { memory, service, layout, blocks: Vec::new() })
    }

    fn keep_one_more(&mut self) -> Result<()> {
        // SAFETY: no size is zero.
        let block = self.service.run(|| unsafe { self.memory.alloc(self.layout) });
        self.blocks.push(NonNull::new(block).ok_or("neither the window nor the heap has memory")?);
        Ok(())
    }

    fn blocks_beyond(&self) -> usize {
        let window = self.memory.backend().primary();
        self.blocks.iter().filter(|block| !window.contains(block.as_ptr())).count()
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        // SAFETY: the blocks were allocated like this, and nobody uses them any more.
        self.blocks.iter().for_each(|block| unsafe { self.memory.dealloc(block.as_ptr(), self.layout) });
    }
}

/// The services, the window and what stands behind it agree about what is where.
fn check_who_holds_what(memory: &Memory, keepers: &[Keeper<'_>]) -> Result<()> {
    for Keeper { service, layout, blocks, .. } in keepers {
        check_holds(service, blocks.len() * layout.size())?;
    }
    let (window, beyond) = (memory.backend().primary().stats(), memory.backend().stats());
    println!("Beyond the window: {} blocks, {} bytes.", beyond.secondary_blocks, beyond.secondary_bytes);
    let blocks: usize = keepers.iter().map(Keeper::blocks_beyond).sum();
    if [window.refused, beyond.secondary_blocks] != [blocks as u64; 2] || beyond.failures != 0 {
        return Err(format!("{blocks} blocks are not in the window, of {window:?} and {beyond:?}").into());
    }
    Ok(())
}

fn check_holds(service: &Service, bytes: usize) -> Result<()> {
    match service.usage().bytes() {
        held if held == bytes as u64 => Ok(()),
        held => Err(format!("{} should hold {bytes} bytes, not {held}", service.name()).into()),
    }
}
