//! Our pools, told the same as the peers' programs.

use crate::peer::{Peer, Script};
use dogtag::Service;
use dogtag_pool::{Child, Cleanup, Pool};
use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

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

pub struct Ours {
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
    pub fn run(peer: Peer, script: &Script) -> Vec<String> {
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
