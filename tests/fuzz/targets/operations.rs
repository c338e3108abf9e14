//! Programs of allocations, scopes, services that come and go, and limits, on two instances:
//! after each step the ledger has what a plain model has, and blocks what was written to them.

#![no_main]

#[path = "../../common/mod.rs"]
mod common;
#[path = "operations/program.rs"]
mod program;

use common::{Counting, ZeroSized, around, around_zero_sized, quarantined};
use dogtag::{Dogtag, Scope, Service, Usage};
use dogtag_fuzz::{Addresses, Align, Block, Size, are_all, layout, pick};
use libfuzzer_sys::fuzz_target;
use program::Operation;
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// With the owner of large blocks behind them, and with it beside the heap. Neither is the
/// global allocator, so that only the programs are counted.
static BEHIND: Dogtag<Counting> = Dogtag::with_backend(Counting::new());
static BESIDE: Dogtag<ZeroSized> = Dogtag::with_backend(ZeroSized);

static UNATTRIBUTED: LazyLock<Service> = LazyLock::new(Service::unattributed);

/// A service as the model has it.
struct Member {
    name: String,
    /// Until it is dropped.
    service: Option<Service>,
    parent: Option<usize>,
    figures: Usage,
    /// The most that was live since the peak was reset.
    most: u64,
    hard: Option<u64>,
    soft: Option<u64>,
}

struct Owned {
    block: Block,
    owner: usize,
    is_beside: bool,
}

/// Runs a program, and keeps the model beside it.
struct Machine {
    /// Each has its number for good; the first is nobody's.
    members: Vec<Member>,
    blocks: Vec<Owned>,
    /// Where each goes back to, and what keeps it there.
    scopes: Vec<(usize, Scope<'static>)>,
    current: usize,
    addresses: Addresses,
    before: Usage,
}

impl Machine {
    fn new() -> Self {
        let unattributed = UNATTRIBUTED.clone();
        unattributed.reset_peak();
        let nobody = Member {
            name: unattributed.name().to_owned(),
            figures: without_peak(unattributed.usage()),
            service: Some(unattributed),
            parent: None,
            most: 0,
            hard: None,
            soft: None,
        };
        Self {
            members: vec![nobody],
            blocks: Vec::new(),
            // The last one that is dropped decides where the thread is then.
            scopes: vec![(0, UNATTRIBUTED.enter())],
            current: 0,
            addresses: Addresses::default(),
            // What is nobody's is the model's, too.
            before: dogtag::totals().since(&Service::unattributed().usage()),
        }
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Allocate { is_beside, size, align, is_zeroed } => {
                self.allocate(is_beside, filled(size, align), is_zeroed);
            }
            Operation::Resize { block, size } => self.resize(block, size.bytes().max(1)),
            Operation::Free { block } => {
                if let Some(Owned { block, is_beside, .. }) = self.take(block) {
                    // SAFETY: the model knows that it is live, and of which layout.
                    unsafe { allocator(is_beside).dealloc(block.start.as_ptr(), block.layout) };
                }
            }
            Operation::FreeOnAnotherThread { block } => {
                let Some(Owned { block, is_beside, .. }) = self.take(block) else { return };
                let (address, layout) = (block.start.as_ptr() as usize, block.layout);
                let free = move || {
                    // SAFETY: the model knows that it is live, and of which layout; it is taken out, so
                    // nobody else frees it.
                    unsafe { allocator(is_beside).dealloc(address as *mut u8, layout) };
                };
                std::thread::spawn(free).join().expect("a thread that frees");
            }
            Operation::Register { parent, handle, hard, soft } => self.register(parent, handle, hard, soft),
            Operation::Drop { service } => {
                if let Some(number) = self.held(service)
                    && number > 0
                {
                    self.members[number].service = None;
                }
            }
            Operation::Enter { service } => {
                let Some(number) = self.held(service) else { return };
                let service = self.members[number].service.as_ref().expect("one that is held");
                // SAFETY: a scope keeps its service by itself; that the borrow lasts as long is
                // for the convenience of who reads the code.
                let scope = unsafe { std::mem::transmute::<Scope<'_>, Scope<'static>>(service.enter()) };
                self.scopes.push((std::mem::replace(&mut self.current, number), scope));
            }
            Operation::Leave { scope } => {
                if let Some(place) = pick(scope, self.scopes.len() - 1) {
                    // Mostly the last one, but it need not be.
                    let (former, scope) = self.scopes.remove(self.scopes.len() - 1 - place);
                    drop(scope);
                    self.current = former;
                }
            }
            Operation::HardLimit { service, bytes } => {
                if let Some(number) = self.held(service).filter(|number| *number > 0) {
                    let bytes = bytes.map(limit);
                    self.service(number).set_hard_limit(bytes);
                    self.members[number].hard = bytes;
                }
            }
            Operation::SoftLimit { service, bytes } => {
                if let Some(number) = self.held(service).filter(|number| *number > 0) {
                    let bytes = bytes.map(limit);
                    self.service(number).set_soft_limit(bytes);
                    self.members[number].soft = bytes;
                }
            }
            Operation::ResetPeak { service } => {
                if let Some(number) = self.held(service) {
                    self.service(number).reset_peak();
                    self.members[number].most = self.members[number].figures.bytes();
                }
            }
            Operation::Refuse { is_beside, size, align } => {
                let layout = filled(size, align);
                let expected = self.may_have(layout.size(), None);
                let allocator = allocator(is_beside);
                // SAFETY: the layout is not empty.
                let block = while_refusing(|| unsafe { allocator.alloc(layout) });
                assert!(block.is_null());
                self.count_denial(expected);
            }
            Operation::RefuseToResize { block, size } => {
                let Some(place) = pick(block, self.blocks.len()) else { return };
                let Owned { block, owner, is_beside } = self.blocks[place];
                let size = size.bytes().max(1);
                // What does not grow may stay where it is.
                if size <= block.layout.size() {
                    return;
                }
                let may_have = self.may_have(size, Some((owner, block.layout.size())));
                let allocator = allocator(is_beside);
                // SAFETY: the model knows that it is live, and of which layout.
                let moved =
                    while_refusing(|| unsafe { allocator.realloc(block.start.as_ptr(), block.layout, size) });
                assert!(moved.is_null());
                self.count_denial(may_have);
                // SAFETY: a reallocation that failed leaves the block live.
                unsafe { block.check() };
            }
            Operation::Impossible { is_beside, less, is_zeroed } => {
                // It may be a limit that denies it, or not.
                if self.chain(self.current).any(|number| self.members[number].hard.is_some()) {
                    return;
                }
                let Ok(layout) = Layout::from_size_align(isize::MAX as usize - usize::from(less), 1) else {
                    return;
                };
                let allocator = allocator(is_beside);
                // SAFETY: the layout is not empty.
                let block = unsafe {
                    if is_zeroed { allocator.alloc_zeroed(layout) } else { allocator.alloc(layout) }
                };
                assert!(block.is_null());
            }
            Operation::Current => {
                let current = Service::current();
                assert_eq!(current.name(), self.members[self.current].name);
            }
            Operation::Snapshot => self.check_snapshot(),
        }
    }

    fn allocate(&mut self, is_beside: bool, layout: Layout, is_zeroed: bool) {
        let may_have = self.may_have(layout.size(), None);
        let allocator = allocator(is_beside);
        // SAFETY: the layout is not empty.
        let start =
            unsafe { if is_zeroed { allocator.alloc_zeroed(layout) } else { allocator.alloc(layout) } };
        self.count_denial(may_have);
        let start = NonNull::new(start);
        assert_eq!(start.is_some(), may_have, "{layout:?}");
        let Some(start) = start else { return };
        // SAFETY: the block is that long; it was written to by who zeroed it.
        assert!(!is_zeroed || unsafe { are_all(start, layout.size(), 0) }, "not zeroed");
        self.add(is_beside, start, layout);
    }

    fn resize(&mut self, block: u8, size: usize) {
        let Some(place) = pick(block, self.blocks.len()) else { return };
        let Owned { block, owner, is_beside } = self.blocks[place];
        let (old, new) = (block.layout, Layout::from_size_align(size, block.layout.align()));
        let may_have = self.may_have(size, Some((owner, old.size())));
        // SAFETY: the model knows that it is live, and of which layout; sizes begin at 1.
        let start = unsafe {
            block.check();
            allocator(is_beside).realloc(block.start.as_ptr(), old, size)
        };
        // What does not grow is never denied: it stays its former owner's.
        let stays = !may_have && size <= old.size();
        self.count_denial(may_have || stays);
        let start = NonNull::new(start);
        assert_eq!(start.is_some(), may_have || stays, "{old:?} to {size}");
        let Some(start) = start else { return };
        // SAFETY: both are as long.
        unsafe { block.check_first(start, old.size().min(size)) };
        self.forget(place);
        let owner = if stays { owner } else { self.current };
        self.add_for(owner, is_beside, start, new.expect("a small layout"));
    }

    /// A block of the current service's.
    fn add(&mut self, is_beside: bool, start: NonNull<u8>, layout: Layout) {
        self.add_for(self.current, is_beside, start, layout);
    }

    fn add_for(&mut self, owner: usize, is_beside: bool, start: NonNull<u8>, layout: Layout) {
        self.addresses.take(start, layout.size());
        let member = &mut self.members[owner];
        member.figures.allocated_bytes += layout.size() as u64;
        member.figures.allocated_blocks += 1;
        member.most = member.most.max(member.figures.bytes());
        // SAFETY: it is live, and of that layout.
        let block = unsafe { Block::fill(start, layout, self.blocks.len() as u8 ^ 0xa5) };
        self.blocks.push(Owned { block, owner, is_beside });
    }

    /// A block that is to be freed.
    fn take(&mut self, block: u8) -> Option<Owned> {
        let place = pick(block, self.blocks.len())?;
        // SAFETY: it is live.
        unsafe { self.blocks[place].block.check() };
        Some(self.forget(place))
    }

    fn forget(&mut self, place: usize) -> Owned {
        let owned = self.blocks.swap_remove(place);
        let layout = owned.block.layout;
        self.addresses.give_back(owned.block.start, layout.size());
        let figures = &mut self.members[owned.owner].figures;
        figures.freed_bytes += layout.size() as u64;
        figures.freed_blocks += 1;
        owned
    }

    fn register(&mut self, parent: Option<u8>, handle: Option<u32>, hard: Option<u32>, soft: Option<u32>) {
        // Each name is used once: a dropped service may be there for a moment more, held by who
        // announces what it found.
        static NAMES: AtomicU64 = AtomicU64::new(0);

        if self.members.len() == 12 {
            return;
        }
        let name = format!("service {}", NAMES.fetch_add(1, Ordering::Relaxed));
        let parent = parent.and_then(|parent| self.held(parent)).filter(|parent| *parent > 0);
        let (hard, soft) = (hard.map(limit), soft.map(limit));
        let mut builder = Service::builder(&name);
        if let Some(parent) = parent {
            builder = builder.parent(self.service(parent));
        }
        if let Some(handle) = handle {
            builder = builder.handle(handle);
        }
        if let Some(hard) = hard {
            builder = builder.hard_limit(hard);
        }
        if let Some(soft) = soft {
            builder = builder.soft_limit(soft);
        }
        // The handle may be somebody's.
        let Ok(service) = builder.register() else { return };
        assert_eq!(service.name(), name);
        assert!(handle.is_none_or(|handle| handle == service.handle()));
        assert_eq!(service.parent().as_ref(), parent.map(|parent| self.service(parent)));
        let (figures, most) = (Usage::default(), 0);
        self.members.push(Member { name, service: Some(service), parent, figures, most, hard, soft });
    }

    /// The one of the services that are not dropped that a number means.
    fn held(&self, number: u8) -> Option<usize> {
        let held: Vec<usize> =
            (0..self.members.len()).filter(|number| self.members[*number].service.is_some()).collect();
        Some(held[pick(number, held.len())?])
    }

    fn service(&self, number: usize) -> &Service {
        self.members[number].service.as_ref().expect("one that is held")
    }

    /// A service and those above it.
    fn chain(&self, number: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(number), |number| self.members[*number].parent)
    }

    /// What a service and all below it have, the peaks apart.
    fn with_children(&self, number: usize) -> Usage {
        let is_below = |other: &usize| self.chain(*other).any(|above| above == number);
        (0..self.members.len()).filter(is_below).map(|other| self.members[other].figures).sum()
    }

    /// Whether the limits allow for a block, which may replace another one.
    fn may_have(&self, size: usize, replaced: Option<(usize, usize)>) -> bool {
        self.chain(self.current).all(|number| {
            let Some(hard) = self.members[number].hard else { return true };
            let old = match replaced {
                Some((owner, old)) if self.chain(owner).any(|above| above == number) => old,
                _ => 0,
            };
            let more = size.saturating_sub(old) as u64;
            more == 0 || self.with_children(number).bytes() + more <= hard
        })
    }

    fn count_denial(&mut self, may_have: bool) {
        self.members[self.current].figures.denied += u64::from(!may_have);
    }

    fn check(&self) {
        for member in &self.members {
            let Some(service) = &member.service else { continue };
            let usage = service.usage();
            assert_eq!(without_peak(usage), member.figures, "{}", member.name);
            assert!(usage.peak_bytes >= usage.bytes(), "{}", member.name);
            assert!(usage.peak_bytes <= member.most, "{}: {usage:?}, {}", member.name, member.most);
        }
    }

    fn check_snapshot(&self) {
        let snapshot = dogtag::snapshot();
        for (number, member) in self.members.iter().enumerate() {
            let mut rows = snapshot.rows.iter().filter(|row| row.name == member.name);
            let (row, other) = (rows.next(), rows.next());
            assert!(other.is_none(), "{} has several rows", member.name);
            let Some(row) = row else {
                assert!(
                    member.service.is_none() && member.figures.blocks() == 0,
                    "{} has no row",
                    member.name
                );
                continue;
            };
            assert_eq!(without_peak(row.usage), member.figures, "{}", member.name);
            assert_eq!(
                row.parent.map(|row| &snapshot.rows[row].name),
                member.parent.map(|it| &self.members[it].name)
            );
            let Some(service) = &member.service else { continue };
            assert!(!row.is_retired && row.handle == service.handle());
            assert_eq!((row.hard_limit, row.soft_limit), (member.hard, member.soft), "{}", member.name);
            let family = service.usage_with_children();
            for with_children in [row.usage_with_children, family] {
                assert_eq!(
                    without_peak(with_children),
                    self.with_children(number),
                    "{} and below",
                    member.name
                );
            }
            let left = |number: usize| {
                Some(self.members[number].hard?.saturating_sub(self.with_children(number).bytes()))
            };
            assert_eq!(service.headroom(), self.chain(number).filter_map(left).min(), "{}", member.name);
        }
        let rows: Usage = snapshot.rows.iter().map(|row| row.usage).sum();
        assert_eq!(without_peak(rows + snapshot.ended), without_peak(snapshot.totals));
        assert_eq!(snapshot.lost, dogtag::Lost::default());
        assert!(format!("{snapshot}{snapshot:#}").contains(&self.members[0].name));
    }

    /// What the backends have given is what is live, with what stands around it.
    fn check_backends(&self) {
        let (mut bytes, mut blocks) = quarantined();
        for Owned { block, is_beside, .. } in &self.blocks {
            let around = if *is_beside { around_zero_sized(block.layout) } else { around(block.layout) };
            bytes += block.layout.size() as u64 + around;
            blocks += 1;
        }
        let (behind, beside) = (BEHIND.backend(), BESIDE.backend());
        assert_eq!(behind.live_bytes() + beside.live_bytes(), bytes);
        assert_eq!(behind.live_blocks() + beside.live_blocks(), blocks);
    }

    /// Ends everything, in whichever order it is found, and closes the books.
    fn end(mut self) {
        while let Some(Owned { block, is_beside, .. }) = self.take(0) {
            // SAFETY: the model knows that it is live, and of which layout.
            unsafe { allocator(is_beside).dealloc(block.start.as_ptr(), block.layout) };
        }
        self.check();
        while let Some((former, scope)) = self.scopes.pop() {
            drop(scope);
            self.current = former;
        }
        assert_eq!(Service::current(), Service::unattributed());
        let members: Usage = self.members.drain(..).map(|member| member.figures).sum();
        let totals = dogtag::totals();
        assert_eq!((totals.bytes(), totals.blocks()), (0, 0));
        let (now, before) = (totals.allocated_bytes, self.before.allocated_bytes);
        assert_eq!(now, before + members.allocated_bytes, "what has ended is in the sum");
        self.check_backends();
    }
}

fn allocator(is_beside: bool) -> &'static dyn GlobalAlloc {
    if is_beside { &BESIDE } else { &BEHIND }
}

fn while_refusing(work: impl FnOnce() -> *mut u8) -> *mut u8 {
    let refuse = |refuses| {
        BEHIND.backend().refuses.store(refuses, Ordering::SeqCst);
        BESIDE.backend().refuses.store(refuses, Ordering::SeqCst);
    };
    refuse(true);
    let block = work();
    refuse(false);
    block
}

fn filled(size: Size, align: Align) -> Layout {
    let layout = layout(size, align);
    if layout.size() > 0 {
        layout
    } else {
        Layout::from_size_align(1, layout.align()).expect("a small layout")
    }
}

/// Small enough to be reached.
fn limit(bytes: u32) -> u64 {
    u64::from(bytes >> 1) % if bytes.is_multiple_of(2) { 1 << 21 } else { 1 << 12 }
}

fuzz_target!(|program: Vec<Operation>| {
    let mut machine = Machine::new();
    for operation in &program {
        machine.step(operation);
        machine.check();
    }
    machine.check_backends();
    machine.end();
});

/// Services have their peaks when they will.
fn without_peak(mut usage: Usage) -> Usage {
    usage.peak_bytes = 0;
    usage
}
