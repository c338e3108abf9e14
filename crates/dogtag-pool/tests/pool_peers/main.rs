//! The real APR's and the real nginx's pools beside ours: random programs have to do the same in
//! both, but for what the table of differences in `dogtag_pool` says.
//!
//! `.ci/pool-peers` installs and builds the peers, and then runs this. Each is a program of its
//! own (`tests/peers`), which reads scripts and prints what a user would notice; `Ours` does
//! the same with our pools.

#[path = "../../../../tests/random/mod.rs"]
mod random;

use dogtag::{Dogtag, Service};
use dogtag_pool::{Child, Cleanup, Pool};
use random::Random;
use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Apr,
    Nginx,
}

/// An operation a line.
type Script = Vec<String>;

// What the peers' programs do

impl Peer {
    /// What a peer says about each of some scripts.
    fn run(self, scripts: &[Script]) -> Vec<Vec<String>> {
        let folder = std::env::var_os("DOGTAG_PEERS").expect("DOGTAG_PEERS: see .ci/pool-peers");
        let program = PathBuf::from(folder).join(match self {
            Self::Apr => "apr",
            Self::Nginx => "nginx",
        });
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut input = child.stdin.take().unwrap();
        let text: String = scripts.iter().flat_map(|script| [script.join("\n"), "\nend\n".into()]).collect();
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let output = child.wait_with_output().unwrap();
        // If it has ended early, that is what counts.
        _ = writer.join().unwrap();
        assert!(output.status.success(), "{self:?}: {}, one of\n{scripts:#?}", output.status);
        let lines: Vec<String> =
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        let logs: Vec<_> = lines.split(|line| line == "end").map(<[String]>::to_vec).collect();
        assert_eq!(logs.len(), scripts.len() + 1, "{self:?} leaves scripts out");
        logs[..scripts.len()].to_vec()
    }
}

// The same with our pools

enum Handle {
    Root(Pool<'static>),
    Own(Child<'static>),
    Lasting,
}

struct Entry {
    /// The handle's pool. Cleanups get at it while it is cleared, which safe code could not.
    pool: &'static Pool<'static>,
    handle: Option<Handle>,
    parent: Option<u32>,
}

struct Block {
    memory: NonNull<u8>,
    layout: Layout,
    pool: u32,
    /// Whether it was asked for with an alignment.
    is_aligned: bool,
}

struct Ours {
    peer: Peer,
    service: Service,
    pools: RefCell<BTreeMap<u32, Entry>>,
    blocks: RefCell<BTreeMap<u32, Block>>,
    /// Those that are registered, and their pools.
    cleanups: RefCell<BTreeMap<u32, (u32, Cleanup<'static>)>>,
    /// In which pool each cleanup does what, besides saying that it runs.
    works: RefCell<BTreeMap<u32, (u32, String)>>,
    mark: Cell<u64>,
    log: RefCell<Vec<String>>,
}

/// For cleanups, which run on the thread that has it.
#[derive(Clone, Copy)]
struct Shared(*const Ours);

// SAFETY: it stays on its thread; that pools ask for it is for those that are sent.
unsafe impl Send for Shared {}

impl Shared {
    fn ran(self, id: u32) {
        // SAFETY: the pools have ended before it does.
        unsafe { &*self.0 }.ran(id);
    }
}

/// What a user keeps with a pool, a type for each key.
struct Value<const KEY: usize>(u64);

/// The same pool, for those who have it otherwise borrowed.
fn same(pool: &Pool<'_>) -> &'static Pool<'static> {
    // SAFETY: a pool is a pointer, and this copy is never dropped. Scripts end each pool before
    // those above it, and nobody uses it then.
    let copy: Pool<'static> = unsafe { ptr::from_ref(pool).cast::<Pool<'static>>().read() };
    Box::leak(Box::new(ManuallyDrop::new(copy)))
}

fn pattern(id: u32) -> u8 {
    (id * 7 + 1) as u8
}

impl Ours {
    fn run(peer: Peer, script: &Script) -> Vec<String> {
        // Tests run at once.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let ours = Self {
            peer,
            service: Service::register(format!("script {number}")).unwrap(),
            pools: RefCell::default(),
            blocks: RefCell::default(),
            cleanups: RefCell::default(),
            works: RefCell::default(),
            mark: Cell::default(),
            log: RefCell::default(),
        };
        for line in script {
            ours.step(&line.split(' ').collect::<Vec<_>>());
        }
        if ours.held() != 0 {
            ours.log(format!("{} bytes are left", ours.held()));
        }
        assert!(ours.pools.borrow().is_empty(), "a script ends its pools: {script:#?}");
        ours.log.into_inner()
    }

    fn log(&self, line: impl Into<String>) {
        self.log.borrow_mut().push(line.into());
    }

    fn held(&self) -> u64 {
        self.service.usage().bytes()
    }

    fn pool(&self, number: u32) -> Option<&'static Pool<'static>> {
        self.pools.borrow().get(&number).map(|entry| entry.pool)
    }

    fn add(&self, number: u32, handle: Handle, pool: &'static Pool<'static>, parent: Option<u32>) {
        self.pools.borrow_mut().insert(number, Entry { pool, handle: Some(handle), parent });
    }

    /// Whether a pool is the other one, or below it.
    fn is_in(&self, pool: u32, ancestor: u32) -> bool {
        let pools = self.pools.borrow();
        std::iter::successors(Some(pool), |pool| pools.get(pool)?.parent).any(|pool| pool == ancestor)
    }

    fn step(&self, words: &[&str]) {
        let number = |word: usize| words.get(word).and_then(|word| word.parse::<u64>().ok());
        let id = |word| number(word).unwrap_or(0) as u32;
        let size = number(3).unwrap_or(0) as usize;
        let then = words.get(3).copied().unwrap_or_default();
        match words[0] {
            "root" => return self.root(id(1), words.get(2).copied()),
            "mark" => return self.mark.set(self.held()),
            "asked" => {
                let more = if self.held() > self.mark.get() { "more" } else { "nothing" };
                return self.log(format!("asked for {more}"));
            }
            "held" => return self.log(format!("# {}", self.held())),
            "distance" => {
                let blocks = self.blocks.borrow();
                let address = |id| blocks[&id].memory.addr().get() as isize;
                return self.log(format!("distance: {}", address(id(2)) - address(id(1))));
            }
            "own" | "lasting" => {
                let Some(parent) = self.pool(id(2)) else { return };
                return if words[0] == "own" {
                    let child = parent.child();
                    let pool = same(&child);
                    self.add(id(1), Handle::Own(child), pool, Some(id(2)));
                } else {
                    self.add(id(1), Handle::Lasting, parent.lasting_child(), Some(id(2)));
                };
            }
            _ => {}
        }
        let Some(pool) = self.pool(id(1)) else { return };
        let nginx = self.peer == Peer::Nginx;
        match words[0] {
            "alloc" if nginx => {
                self.block(id(2), id(1), pool.alloc_bytes(size).as_mut_ptr().cast(), size, 16)
            }
            "alloc" => {
                let layout = Layout::from_size_align(size, 8).unwrap();
                self.block(id(2), id(1), pool.alloc_layout(layout).as_ptr(), size, 8);
            }
            "unaligned" => {
                self.block(id(2), id(1), pool.alloc_unaligned(size).as_mut_ptr().cast(), size, 1);
            }
            "zeroed" => {
                let memory = pool.alloc_zeroed(size);
                assert!(memory.iter().all(|byte| *byte == 0));
                self.block(id(2), id(1), memory.as_mut_ptr(), size, 16);
            }
            "aligned" => {
                let align = number(4).unwrap() as usize;
                let memory = pool.alloc_aligned(size, align).as_mut_ptr().cast();
                self.block(id(2), id(1), memory, size, align);
                self.blocks.borrow_mut().get_mut(&id(2)).unwrap().is_aligned = true;
            }
            "text" => {
                let text = pool.alloc_str(words[3]);
                self.log(&*text);
                self.block(id(2), id(1), text.as_mut_ptr(), text.len(), 1);
            }
            "format" => {
                let text = pool.alloc_fmt(format_args!("{size}|{}", words[4]));
                self.log(&*text);
                self.block(id(2), id(1), text.as_mut_ptr(), text.len(), 1);
            }
            "free" => {
                self.check(|block, it| it.pool == id(1) && block == id(2));
                let mut blocks = self.blocks.borrow_mut();
                let Some(block) = blocks.remove(&id(2)).filter(|block| block.pool == id(1)) else { return };
                // SAFETY: nobody uses it any more.
                let is_freed = unsafe { pool.free(block.memory, block.layout) };
                let result = if is_freed { "freed" } else { "declined" };
                self.log(if block.is_aligned { format!("# {result}") } else { result.into() });
            }
            "large" => {
                let max_small = max_small(number(2).unwrap() as usize);
                let is_large = |layout: Layout| {
                    layout.size() > 0 && layout.size() + layout.align().saturating_sub(16) > max_small
                };
                let blocks = self.blocks.borrow();
                let aligned =
                    blocks.values().filter(|it| it.pool == id(1) && it.is_aligned && is_large(it.layout));
                self.log(format!("large: {}", pool.stats().large - aligned.count()));
            }
            "blocks" => self.log(format!("blocks: {}", pool.stats().blocks)),
            "cleanup" => self.register(id(1), id(2), false, then),
            "pre" => self.register(id(1), id(2), true, then),
            "cancel" => {
                if let Some(cleanup) = self.take_cleanup(id(1), id(2)) {
                    cleanup.cancel();
                }
            }
            "run" => {
                if let Some(cleanup) = self.take_cleanup(id(1), id(2)) {
                    cleanup.run();
                }
            }
            "set" => {
                let value = number(3).unwrap();
                match words[2] {
                    "0" => _ = pool.set_data(Value::<0>(value)),
                    "1" => _ = pool.set_data(Value::<1>(value)),
                    _ => _ = pool.set_data(Value::<2>(value)),
                }
            }
            "get" => self.get(pool, words[2]),
            "above" => {
                if let Some(other) = self.pool(id(2)) {
                    self.log(format!("above: {}", u8::from(pool.is_ancestor(other))));
                }
            }
            "clear" | "destroy" | "reset" | "abandon" => self.clear(id(1), words[0]),
            // What is theirs alone.
            "call" | "current" => {}
            other => panic!("{other}?"),
        }
    }

    fn root(&self, id: u32, argument: Option<&str>) {
        let builder = Pool::builder().service(&self.service);
        let builder = match (self.peer, argument) {
            // As it is without a word.
            (_, Some("default")) => builder,
            (_, Some("unlimited")) => builder.max_free(usize::MAX),
            (Peer::Apr, argument) => {
                let max_free = argument.map_or(usize::MAX, |bytes| bytes.parse().unwrap());
                builder.block_size(8192).max_small(usize::MAX).max_free(max_free)
            }
            (Peer::Nginx, argument) => {
                let size = argument.unwrap().parse().unwrap();
                builder.block_size(size).max_small(max_small(size)).max_free(usize::MAX)
            }
        };
        let pool = builder.build().unwrap();
        let known = same(&pool);
        self.add(id, Handle::Root(pool), known, None);
    }

    fn block(&self, id: u32, pool: u32, memory: *mut u8, size: usize, align: usize) {
        let (memory, layout) = (NonNull::new(memory).unwrap(), Layout::from_size_align(size, align).unwrap());
        assert!(memory.addr().get().is_multiple_of(align));
        // SAFETY: it was allocated just now, as large.
        unsafe { memory.write_bytes(pattern(id), size) };
        self.blocks.borrow_mut().insert(id, Block { memory, layout, pool, is_aligned: false });
    }

    /// Nobody else has written to some blocks.
    fn check(&self, which: impl Fn(u32, &Block) -> bool) {
        for (id, block) in self.blocks.borrow().iter().filter(|(id, block)| which(**id, block)) {
            // SAFETY: its pool has not been cleared.
            let bytes = unsafe { std::slice::from_raw_parts(block.memory.as_ptr(), block.layout.size()) };
            if bytes.iter().any(|byte| *byte != pattern(*id)) {
                self.log(format!("block {id} was overwritten"));
            }
        }
    }

    fn clear(&self, id: u32, how: &str) {
        let before = self.held();
        self.check(|_, block| self.is_in(block.pool, id));
        self.blocks.borrow_mut().retain(|_, block| !self.is_in(block.pool, id));
        let taken = self.pools.borrow_mut().get_mut(&id).unwrap().handle.take();
        let is_destroyed = how == "destroy" || how == "abandon";
        let left = match (taken, how) {
            (Some(Handle::Root(mut pool)), "clear") => {
                pool.clear();
                Some(Handle::Root(pool))
            }
            (Some(Handle::Own(mut pool)), "clear") => {
                pool.clear();
                Some(Handle::Own(pool))
            }
            (Some(Handle::Root(mut pool)), "reset") => {
                pool.reset();
                Some(Handle::Root(pool))
            }
            (Some(Handle::Root(pool)), _) if is_destroyed => {
                pool.destroy();
                None
            }
            (Some(Handle::Own(pool)), _) if is_destroyed => {
                pool.destroy();
                None
            }
            _ => panic!("{how} of a pool that lasts"),
        };
        let mut ended: Vec<u32> = self.pools.borrow().keys().copied().collect();
        ended.retain(|pool| self.is_in(*pool, id) && (is_destroyed || *pool != id));
        self.pools.borrow_mut().retain(|pool, _| !ended.contains(pool));
        if let Some(entry) = self.pools.borrow_mut().get_mut(&id) {
            entry.handle = left;
        }
        if self.peer == Peer::Apr {
            self.log(format!("system has {}", if self.held() < before { "more" } else { "as much" }));
        }
    }

    fn register(&self, pool: u32, id: u32, is_pre: bool, work: &str) {
        let shared = Shared(self);
        let ran = move || shared.ran(id);
        let known = self.pool(pool).unwrap();
        let cleanup = if is_pre { known.pre_cleanup(ran) } else { known.cleanup(ran) };
        self.works.borrow_mut().insert(id, (pool, work.to_owned()));
        self.cleanups.borrow_mut().insert(id, (pool, cleanup));
    }

    fn take_cleanup(&self, pool: u32, id: u32) -> Option<Cleanup<'static>> {
        let mut cleanups = self.cleanups.borrow_mut();
        if cleanups.get(&id)?.0 != pool {
            return None;
        }
        Some(cleanups.remove(&id)?.1)
    }

    fn ran(&self, id: u32) {
        self.log(format!("ran {id}"));
        self.cleanups.borrow_mut().remove(&id);
        let (pool, work) = self.works.borrow()[&id].clone();
        for word in work.split(',').filter(|word| !word.is_empty()) {
            let (what, argument) = word.split_at(1);
            let number: u32 = argument.parse().unwrap();
            match what {
                "r" => self.register(pool, number, false, ""),
                "p" => self.register(pool, number, true, ""),
                "k" => {
                    if let Some(cleanup) = self.take_cleanup(pool, number) {
                        cleanup.cancel();
                        self.log(format!("killed {number}"));
                    }
                }
                "a" => {
                    let memory = self.pool(pool).unwrap().alloc_bytes(number as usize);
                    memory.fill(std::mem::MaybeUninit::new(0xee));
                }
                "x" if self.pool(number).is_some() => self.clear(number, "destroy"),
                "x" => {}
                "g" => self.get(self.pool(pool).unwrap(), argument),
                other => panic!("{other}?"),
            }
        }
    }

    fn get(&self, pool: &Pool<'_>, key: &str) {
        let value = match key {
            "0" => pool.data::<Value<0>>().map(|value| value.0),
            "1" => pool.data::<Value<1>>().map(|value| value.0),
            _ => pool.data::<Value<2>>().map(|value| value.0),
        };
        self.log(format!("{key} is {}", value.unwrap_or(0)));
    }
}

/// From which size on nginx takes an allocation for large, in a pool with blocks of that size.
fn max_small(block_size: usize) -> usize {
    const HEAD: usize = 80;
    (block_size - HEAD).min(4095)
}

// Random programs

/// Some operations, of which some may make no sense.
fn operations(peer: Peer, random: &mut Random, count: usize, has_loners: bool) -> Script {
    let mut script = Vec::new();
    let (mut pools, mut blocks, mut cleanups) = (vec![0], Vec::new(), vec![0]);
    let mut next = 1;
    let mut new = || {
        next += 1;
        next - 1
    };
    let size = |random: &mut Random| match random.below(10) {
        0 => random.below(30_000),
        1 | 2 => random.below(3000),
        _ => random.below(200),
    };
    if has_loners {
        script.extend((900..904).map(|loner| format!("root {loner}")));
        pools.extend(900..904);
    }
    for _ in 0..count {
        let pool = *random.pick(&pools).unwrap();
        let id = new();
        let size = size(random);
        match (peer, random.below(20)) {
            (Peer::Apr, 0 | 1) if pool < 900 => {
                pools.push(id);
                script.push(format!("{} {id} {pool}", if random.once_in(2) { "own" } else { "lasting" }));
            }
            (_, 2..5) => {
                blocks.push((pool, id));
                script.push(format!("alloc {pool} {id} {size}"));
            }
            (_, 5) => {
                blocks.push((pool, id));
                script.push(format!("zeroed {pool} {id} {size}"));
            }
            (Peer::Apr, 6) => {
                let most = if random.once_in(20) { 90 } else { 5 };
                let text = "some-text".repeat(1 + random.below(most));
                script.push(match random.below(2) {
                    0 => format!("text {pool} {id} {text}"),
                    _ => format!("format {pool} {id} {size} {text}"),
                });
            }
            (Peer::Apr, 7..12) => {
                let is_loner = pool >= 900;
                let kind = if random.once_in(3) { "pre" } else { "cleanup" };
                let mut works = Vec::new();
                for _ in 0..random.below(3) {
                    works.push(match random.below(5) {
                        0 => format!("r{}", new()),
                        1 if kind == "pre" => format!("p{}", new()),
                        2 => format!("k{}", random.pick(&cleanups).unwrap()),
                        3 if has_loners && !is_loner => format!("x{}", 900 + random.below(4)),
                        // Any block has room for it, so that no other one is asked for.
                        _ => format!("a{}", size % 1000),
                    });
                }
                cleanups.push(id);
                script.push(format!("{kind} {pool} {id} {}", works.join(",")));
            }
            (Peer::Apr, 12) => script.push(format!("cancel {pool} {}", random.pick(&cleanups).unwrap())),
            (Peer::Apr, 13) => script.push(format!("run {pool} {}", random.pick(&cleanups).unwrap())),
            (Peer::Apr, 14) => {
                script.push(format!("set {pool} {} {}", random.below(3), 1 + random.below(1000)));
            }
            (Peer::Apr, 15 | 16) => script.push(format!("get {pool} {}", random.below(3))),
            (Peer::Apr, 17) => script.push(format!("above {pool} {}", random.pick(&pools).unwrap())),
            (Peer::Apr, 18) => script.push(format!("clear {pool}")),
            (Peer::Apr, _) => script.push(format!("destroy {pool}")),
            (Peer::Nginx, 6 | 7) => {
                blocks.push((pool, id));
                script.push(format!("unaligned {pool} {id} {size}"));
            }
            (Peer::Nginx, 8) => {
                blocks.push((pool, id));
                script.push(format!("aligned {pool} {id} {} {}", size + 1, 8 << random.below(8)));
            }
            (Peer::Nginx, 9..13) => {
                if let Some((pool, id)) = random.pick(&blocks) {
                    script.push(format!("free {pool} {id}"));
                }
            }
            (Peer::Nginx, 13) => {
                cleanups.push(id);
                script.push(match random.below(2) {
                    0 => format!("cleanup {pool} {id} a{size}"),
                    _ => format!("cleanup {pool} {id}"),
                });
            }
            (Peer::Nginx, 14) => script.push(format!("cancel {pool} {}", random.pick(&cleanups).unwrap())),
            (Peer::Nginx, 15) => script.push(format!("reset {pool}")),
            (Peer::Nginx, 0 | 1) => {
                pools.push(id);
                script.push(format!("root {id} {}", [1024, 1504, 4096, 5008, 16384][random.below(5)]));
            }
            (Peer::Nginx, 16) => script.push(format!("destroy {pool}")),
            (Peer::Nginx, _) => script.push(format!("large {pool}")),
        }
    }
    script
}

/// Leaves out what makes no sense, has children that are somebody's end before what is above
/// them, as the compiler would ask for, and ends all.
fn complete(operations: &[String]) -> Script {
    struct Known {
        parent: Option<u32>,
        is_lasting: bool,
        size: String,
        has_cleanups: bool,
    }
    /// Below a pool, the youngest first and each behind those below it.
    fn below(pools: &BTreeMap<u32, Known>, pool: u32) -> Vec<u32> {
        let children = pools.iter().rev().filter(|(_, known)| known.parent == Some(pool));
        children.flat_map(|(child, _)| below(pools, *child).into_iter().chain([*child])).collect()
    }
    let mut script = Vec::new();
    let mut pools: BTreeMap<u32, Known> = BTreeMap::new();
    for line in operations {
        let words: Vec<_> = line.split(' ').collect();
        let number = |word: usize| words.get(word).and_then(|word| word.parse::<u32>().ok()).unwrap_or(0);
        let pool = number(1);
        if matches!(words[0], "mark" | "asked" | "held") {
            script.push(line.clone());
            continue;
        }
        let parent = match words[0] {
            "root" => None,
            "own" | "lasting" => Some(number(2)),
            _ => {
                let Some(known) = pools.get_mut(&pool) else { continue };
                match words[0] {
                    "cleanup" => known.has_cleanups = true,
                    "clear" | "destroy" if known.is_lasting => continue,
                    // What nginx does then is in the table.
                    "reset" if known.has_cleanups => continue,
                    "large" => {
                        script.push(format!("large {pool} {}", known.size));
                        continue;
                    }
                    _ => {}
                }
                if matches!(words[0], "clear" | "destroy") {
                    for lower in below(&pools, pool) {
                        if !pools[&lower].is_lasting {
                            script.push(format!("destroy {lower}"));
                        }
                        pools.remove(&lower);
                    }
                }
                if words[0] == "destroy" {
                    pools.remove(&pool);
                }
                script.push(line.clone());
                continue;
            }
        };
        if pools.contains_key(&pool) || parent.is_some_and(|parent| !pools.contains_key(&parent)) {
            continue;
        }
        let size = words.get(2).copied().unwrap_or_default().to_owned();
        pools.insert(pool, Known { parent, is_lasting: words[0] == "lasting", size, has_cleanups: false });
        script.push(line.clone());
    }
    let roots: Vec<u32> = pools.iter().filter(|(_, it)| it.parent.is_none()).map(|(root, _)| *root).collect();
    if !roots.is_empty() {
        let ends: Vec<String> = roots.iter().map(|root| format!("destroy {root}")).collect();
        return complete(&[script, ends].concat());
    }
    script
}

/// What has to be the same in two logs: what is wanted of them. Facts are for who knows what to
/// expect of them.
type Wanted = fn(&str) -> bool;
const ALL_BUT_FACTS: Wanted = |line| !line.starts_with('#');

/// Runs random programs, and shows the shortest one it finds of those that do something else.
fn compare(
    peer: Peer,
    count: usize,
    make: impl Fn(&mut Random) -> Script,
    whole: impl Fn(&Script) -> Script,
    wanted: Wanted,
) {
    let seed = random::seed();
    let same_of = |theirs: &[String], ours: &[String]| {
        let [theirs, ours] =
            [theirs, ours].map(|log| log.iter().filter(|line| wanted(line)).collect::<Vec<_>>());
        // Ours may do with less.
        let agree = |(theirs, ours): (&&String, &&String)| {
            theirs == ours || *theirs == "asked for more" && *ours == "asked for nothing"
        };
        theirs.len() == ours.len() && theirs.iter().zip(&ours).all(agree)
    };
    for batch in 0..count / 100 {
        let bodies: Vec<Script> =
            (0..100).map(|i| make(&mut Random::nth(seed, (batch * 100 + i) as u64))).collect();
        let scripts: Vec<Script> = bodies.iter().map(&whole).collect();
        for ((theirs, script), body) in peer.run(&scripts).iter().zip(&scripts).zip(&bodies) {
            let ours = Ours::run(peer, script);
            if same_of(theirs, &ours) {
                continue;
            }
            let mut body = body.clone();
            let differs = |body: &Script| {
                let script = whole(body);
                let theirs = peer.run(std::slice::from_ref(&script)).remove(0);
                let ours = Ours::run(peer, &script);
                (!same_of(&theirs, &ours)).then_some((script, theirs, ours))
            };
            let mut found = differs(&body).expect("it does so again");
            let mut length = body.len().div_ceil(2);
            while length > 0 {
                let mut start = 0;
                while start < body.len() {
                    let mut shorter = body.clone();
                    shorter.drain(start..body.len().min(start + length));
                    match differs(&shorter) {
                        Some(difference) => (body, found) = (shorter, difference),
                        None => start += length,
                    }
                }
                length /= 2;
            }
            let (script, theirs, ours) = found;
            panic!("{peer:?}:\n{}\ntheirs: {theirs:#?}\nours: {ours:#?}", script.join("\n"));
        }
    }
}

#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn trees_end_in_aprs_order_and_keep_its_values() {
    let make = |random: &mut Random| {
        let count = 1 + random.below(120);
        operations(Peer::Apr, random, count, true)
    };
    compare(
        Peer::Apr,
        4000,
        make,
        |body| complete(&[&["root 0".to_owned()], &body[..]].concat()),
        ALL_BUT_FACTS,
    );
}

/// Who asks for the same again gets what was freed, and the system is not asked.
#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn rounds_ask_for_no_more_than_aprs() {
    let make = |random: &mut Random| {
        let count = 1 + random.below(120);
        let mut body = operations(Peer::Apr, random, count, false);
        body.retain(|line| line != "destroy 0");
        body
    };
    let lines = |text: &str| text.split(", ").map(str::to_owned).collect::<Script>();
    // What is large goes back to the system at each clear, as the table says.
    let asked: Wanted = |line| line.starts_with("asked") || line.ends_with("left");
    // `left_out` rounds, of which nobody is told, and four others.
    let rounds = |body: &Script, root: &str, left_out: usize| {
        let round = |last: &str| [&body[..], &lines(last)[..]].concat();
        let first = vec![round("clear 0, mark"); left_out].concat();
        let others = vec![round("clear 0, asked, mark"); 4].concat();
        complete(&[lines(root), first, others].concat())
    };
    compare(Peer::Apr, 2000, make, |body| rounds(body, "root 0 unlimited", 2), asked);
    // With blocks of any size, small pools may have to be given large ones first.
    compare(Peer::Apr, 1000, make, |body| rounds(body, "root 0", 8), asked);
}

#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn pools_do_as_nginxs() {
    let make = |random: &mut Random| {
        let count = 1 + random.below(150);
        operations(Peer::Nginx, random, count, false)
    };
    let first = |body: &Script| [&["root 0 1024".to_owned()], &body[..]].concat();
    compare(Peer::Nginx, 4000, make, |body| complete(&first(body)), ALL_BUT_FACTS);
}

// What is different, and meant

/// What a peer does otherwise, and where that is said.
struct Difference {
    peer: Peer,
    /// In a row of the tables in `dogtag_pool`.
    row: &'static str,
    script: &'static str,
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
}

const fn apr(
    row: &'static str,
    script: &'static str,
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
) -> Difference {
    Difference { peer: Peer::Apr, row, script, theirs, ours }
}

const fn nginx(
    row: &'static str,
    script: &'static str,
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
) -> Difference {
    Difference { peer: Peer::Nginx, row, script, theirs, ours }
}

/// Lines of scripts are separated by commas.
const DIFFERENCES: &[Difference] = &[
    apr(
        "it takes the last one with that function and data from each of the two lists",
        "root 0, cleanup 0 1, pre 0 1, cancel 0 1, destroy 0",
        &["system has more"],
        &["ran 1", "system has more"],
    ),
    apr(
        "also runs what is not registered",
        "root 0, call 0 1, destroy 0",
        &["ran 1", "system has more"],
        &["system has more"],
    ),
    apr(
        "found until the cleanups have run",
        "root 0, set 0 0 5, cleanup 0 1 g0, get 0 0, destroy 0",
        &["0 is 5", "ran 1", "0 is 5", "system has more"],
        &["0 is 5", "ran 1", "0 is 0", "system has more"],
    ),
    apr(
        "aligned to 8",
        "root 0, zeroed 0 1 1, zeroed 0 2 1, distance 1 2, destroy 0",
        &["distance: 8", "system has more"],
        &["distance: 16", "system has more"],
    ),
    apr(
        "without a word, all is kept",
        "root 0 default, own 1 0, alloc 1 1 3000000, destroy 1, destroy 0",
        &["system has as much", "system has more"],
        &["system has more", "system has more"],
    ),
    apr(
        "0 means all",
        "root 0 0, own 1 0, alloc 1 1 30000, destroy 1, destroy 0",
        &["system has as much", "system has more"],
        &["system has more", "system has more"],
    ),
    apr(
        "rounded up to pages",
        "root 0 4097, alloc 0 1 8100, clear 0, destroy 0",
        &["system has as much", "system has more"],
        &["system has more", "system has more"],
    ),
    apr(
        "what is large is in a block",
        "root 0 default, alloc 0 1 100000, clear 0, destroy 0",
        &["system has as much", "system has more"],
        &["system has more", "system has more"],
    ),
    nginx("runs no cleanups", "root 0 1024, cleanup 0 1, reset 0, abandon 0", &[], &["ran 1"]),
    nginx("never runs", "root 0 1024, cleanup 0 1 r2, destroy 0", &["ran 1"], &["ran 1", "ran 2"]),
    nginx(
        "always large",
        "root 0 16384, aligned 0 1 100 64, free 0 1, destroy 0",
        &["# freed"],
        &["# declined"],
    ),
    nginx(
        "aligned to 8",
        "root 0 1024, alloc 0 1 1, alloc 0 2 1, distance 1 2, destroy 0",
        &["distance: 8"],
        &["distance: 16"],
    ),
    nginx(
        "what is not large stays as it is",
        "root 0 1024, alloc 0 1 16, alloc 0 2 16, free 0 2, alloc 0 3 16, distance 1 3, destroy 0",
        &["declined", "distance: 32"],
        &["declined", "distance: 16"],
    ),
    nginx(
        "all blocks are as large",
        "root 0 1024, alloc 0 1 900, alloc 0 2 900, alloc 0 3 900, alloc 0 4 900, blocks 0, destroy 0",
        &["blocks: 4"],
        &["blocks: 3"],
    ),
    nginx(
        "has 80 bytes of the first block",
        "root 0 1024, alloc 0 1 944, blocks 0, destroy 0",
        &["blocks: 1"],
        &["blocks: 2"],
    ),
    nginx(
        "the 7th time that it has no room",
        "root 0 1024, alloc 0 0 900, current 0, alloc 0 1 900, current 0, alloc 0 2 900, current 0, \
         alloc 0 3 900, current 0, alloc 0 4 900, current 0, alloc 0 5 900, current 0, alloc 0 6 900, \
         current 0, alloc 0 7 900, current 0, destroy 0",
        &[
            "current stays",
            "current stays",
            "current stays",
            "current stays",
            "current stays",
            "current stays",
            "current stays",
            "current moves",
        ],
        &[],
    ),
];

#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn what_is_different_is_a_row_of_the_table() {
    let table = include_str!("../../src/lib.rs").lines().filter(|line| line.starts_with("//! |"));
    let table: Vec<_> = table.collect();
    for Difference { peer, row, script, theirs, ours } in DIFFERENCES {
        let script: Script = script.split(", ").map(|line| line.trim().to_owned()).collect();
        assert_eq!(peer.run(std::slice::from_ref(&script))[0], *theirs, "{peer:?}: {row}");
        assert_eq!(Ours::run(*peer, &script), *ours, "ours, where {peer:?} differs: {row}");
        assert!(table.iter().any(|line| line.contains(row)), "no row of the table says {row:?}");
    }
}

/// How much is kept when much was freed, with a bound.
#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn no_more_is_kept_than_was_said() {
    // Of APR's: the allocator, and the pool's first block.
    const APR_FIRST: u64 = 8192 + 300;
    const OUR_FIRST: u64 = 8192;
    let seed = random::seed();
    let held = |log: &[String]| log.last().unwrap().strip_prefix("# ").unwrap().parse::<u64>().unwrap();
    let mut kept = [0; 2];
    for number in 0..300 {
        let random = &mut Random::nth(seed, number);
        let max_free = 1 + random.below(300_000) as u64;
        let first = [format!("root 0 {max_free}")];
        let count = 1 + random.below(100);
        let mut body = operations(Peer::Apr, random, count, false);
        body.retain(|line| line != "destroy 0");
        let last = ["clear 0", "held"].map(str::to_owned);
        let script = complete(&[&first[..], &body, &last].concat());
        // What ends it says more than is held.
        let theirs = Peer::Apr.run(std::slice::from_ref(&script)).remove(0);
        let ours = Ours::run(Peer::Apr, &script);
        let [theirs, ours] = [theirs, ours].map(|log| {
            let at = log.iter().rposition(|line| line.starts_with('#')).unwrap();
            held(&log[..=at])
        });
        assert!(theirs <= APR_FIRST + max_free.next_multiple_of(4096), "{theirs} of {max_free}");
        assert!(ours <= OUR_FIRST + max_free, "{ours} of {max_free}");
        kept[0] += theirs;
        kept[1] += ours;
    }
    println!("kept by APR and by us, after 300 clears: {kept:?}");
}
