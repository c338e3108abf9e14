//! Programs of allocations, scopes, services that come and go, and limits, on three instances:
//! after each step the ledger has what a plain model has, and blocks what was written to them.

#![no_main]

#[path = "../../common/mod.rs"]
mod common;
#[path = "operations/program.rs"]
mod program;

use common::{Books, CHECKED, Counting, Unpadded, ZeroSized, around, around_zero_sized, quarantined};
use dogtag::{Dogtag, OwnerTable, Service, Usage};
use dogtag_fuzz::engine::account::{Account, NONE, expect, without_peak};
use dogtag_fuzz::engine::addresses::Addresses;
use dogtag_fuzz::engine::block::Block;
use dogtag_fuzz::engine::memory::{Memory, Refusal};
use dogtag_fuzz::engine::thread::{Operation as Step, Thread};
use dogtag_fuzz::engine::{Mode, piece::Piece};
use dogtag_fuzz::{Align, Size, layout, pick};
use libfuzzer_sys::fuzz_target;
use program::{Operation, Place};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

/// With the owner of large blocks behind them, and with it beside the heap; and with all owners in a table. None is the
/// global allocator, so that only the programs are counted.
static BEHIND: Dogtag<Counting> = Dogtag::with_backend(Counting::new());
static BESIDE: Dogtag<ZeroSized> = Dogtag::with_backend(ZeroSized);
static TABLE: Dogtag<Unpadded, OwnerTable> = Dogtag::with_backend_and_owner_table(Unpadded);

static UNATTRIBUTED: LazyLock<Service> = LazyLock::new(Service::unattributed);

/// Whose addresses are taken.
static ADDRESSES: Mutex<Addresses> = Mutex::new(Addresses::new());

/// Memory of one of the instances, where no two blocks are in the same place.
#[derive(Clone, Copy)]
struct Instance {
    place: Place,
    /// Whether the backend has nothing left.
    refuses: bool,
}

impl Instance {
    fn allocator(self) -> &'static dyn GlobalAlloc {
        match self.place {
            Place::Behind => &BEHIND,
            Place::Beside => &BESIDE,
            Place::Table => &TABLE,
        }
    }

    fn run(self, work: impl FnOnce(&'static dyn GlobalAlloc) -> *mut u8) -> *mut u8 {
        let refuse = |refuses| {
            BEHIND.backend().refuses.store(refuses, Ordering::SeqCst);
            BESIDE.backend().refuses.store(refuses, Ordering::SeqCst);
            TABLE.backend().refuses.store(refuses, Ordering::SeqCst);
        };
        refuse(self.refuses);
        let block = work(self.allocator());
        refuse(false);
        block
    }
}

fn addresses(work: impl FnOnce(&mut Addresses)) {
    work(&mut ADDRESSES.lock().expect("nobody panics with it"));
}

impl Memory for Instance {
    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the layout is not empty.
        let block = self.run(|allocator| unsafe { allocator.allocate(layout, is_zeroed) });
        addresses(|taken| NonNull::new(block).into_iter().for_each(|block| taken.take(block, layout.size())));
        block
    }

    unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the block is live and of that layout, and the new size is not 0.
        let moved = self.run(|allocator| unsafe { allocator.reallocate(block, old, new, is_zeroed) });
        if let (Some(block), Some(moved)) = (NonNull::new(block), NonNull::new(moved)) {
            addresses(|taken| {
                taken.give_back(block, old.size());
                taken.take(moved, new.size());
            });
        }
        moved
    }

    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        addresses(|taken| {
            NonNull::new(block).into_iter().for_each(|block| taken.give_back(block, layout.size()))
        });
        // SAFETY: the block is live and of that layout.
        unsafe { self.allocator().free(block, layout) };
    }

    fn may_refuse(&self) -> Refusal {
        if self.refuses { Refusal::More } else { Refusal::Nothing }
    }
}

/// A service, until it is dropped, and the model of it.
type Member = (Option<Service>, Arc<Account>);

/// Runs a program, and keeps the model beside it.
struct Machine {
    /// Each has its number for good; the first is nobody's.
    members: Vec<Member>,
    thread: Thread<Instance, Arc<Account>>,
    before: Usage,
}

impl Machine {
    fn new() -> Self {
        UNATTRIBUTED.reset_peak();
        let nobody = Arc::new(Account::of(&UNATTRIBUTED));
        let mut thread = Thread::new(Mode::Alone, Arc::clone(&nobody));
        // The last one that is dropped decides where the thread is then.
        thread.enter(&UNATTRIBUTED, Arc::clone(&nobody));
        Self {
            members: vec![(Some(UNATTRIBUTED.clone()), nobody)],
            thread,
            // What is nobody's is the model's, too.
            before: dogtag::totals().since(&Service::unattributed().usage()),
        }
    }

    fn step(&mut self, operation: &Operation) {
        let mut usual = |place, step| self.thread.step(step, Instance { place, refuses: false }, &[]);
        match *operation {
            Operation::Allocate { place, size, align, is_zeroed } => {
                usual(place, Step::Allocate { layout: filled(size, align), is_zeroed });
            }
            Operation::Resize { block, size } => {
                usual(Place::Behind, Step::Resize { block: block.into(), size: size.bytes().max(1) });
            }
            Operation::Free { block } => usual(Place::Behind, Step::Free { block: block.into() }),
            Operation::FreeOnAnotherThread { block } => {
                usual(Place::Behind, Step::FreeElsewhere { block: block.into() });
            }
            Operation::Register { parent, handle, hard, soft } => self.register(parent, handle, hard, soft),
            Operation::Drop { service } => {
                if let Some(number) = self.held(service)
                    && number > 0
                {
                    self.members[number].0 = None;
                }
            }
            Operation::Enter { service } => {
                if let Some(number) = self.held(service) {
                    let account = Arc::clone(&self.members[number].1);
                    let service = self.service(number).clone();
                    self.thread.enter(&service, account);
                }
            }
            Operation::Leave { scope } => {
                let inmost = self.thread.depth() - 1;
                // Mostly the last one, but it need not be.
                if let Some(place) = pick(scope, inmost) {
                    self.thread.leave(inmost - place);
                }
            }
            Operation::HardLimit { service, bytes } => {
                if let Some(number) = self.held(service).filter(|number| *number > 0) {
                    let bytes = bytes.map(limit);
                    self.members[number].1.will_be_limited();
                    self.members[number].1.set_hard(bytes);
                    self.service(number).set_hard_limit(bytes);
                }
            }
            Operation::SoftLimit { service, bytes } => {
                if let Some(number) = self.held(service).filter(|number| *number > 0) {
                    let bytes = bytes.map(limit);
                    self.service(number).set_soft_limit(bytes);
                    self.members[number].1.set_soft(bytes);
                }
            }
            Operation::ResetPeak { service } => {
                if let Some(number) = self.held(service) {
                    self.service(number).reset_peak();
                    self.members[number].1.reset_peak();
                }
            }
            Operation::Refuse { place, size, align } => {
                let (memory, layout) = (Instance { place, refuses: true }, filled(size, align));
                assert!(!self.thread.allocate(memory, layout, false));
            }
            Operation::RefuseToResize { block, size } => {
                let Some(place) = pick(block, self.thread.blocks.len()) else { return };
                let size = size.bytes().max(1);
                // What does not grow may stay where it is.
                if size > self.thread.blocks[place].size() {
                    self.thread.blocks[place].memory.refuses = true;
                    assert!(!self.thread.resize(place, size));
                    self.thread.blocks[place].memory.refuses = false;
                }
            }
            Operation::Impossible { place, less, is_zeroed } => {
                // It may be a limit that denies it, or not.
                if self.thread.current.chain().any(|account| account.hard.load(Ordering::SeqCst) != NONE) {
                    return;
                }
                let Ok(layout) = Layout::from_size_align(isize::MAX as usize - usize::from(less), 1) else {
                    return;
                };
                let allocator = Instance { place, refuses: false }.allocator();
                // SAFETY: the layout is not empty.
                assert!(unsafe { allocator.allocate(layout, is_zeroed) }.is_null());
            }
            Operation::Current => self.thread.check_current(),
            Operation::Snapshot => self.check_snapshot(),
        }
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
        let parent = parent.map(|parent| Arc::clone(&self.members[parent].1));
        let account = Account::new(name, service.handle(), parent, hard);
        account.set_soft(soft);
        self.members.push((Some(service), Arc::new(account)));
    }

    /// The one of the services that are not dropped that a number means.
    fn held(&self, number: u8) -> Option<usize> {
        let held: Vec<usize> =
            (0..self.members.len()).filter(|number| self.members[*number].0.is_some()).collect();
        Some(held[pick(number, held.len())?])
    }

    fn service(&self, number: usize) -> &Service {
        self.members[number].0.as_ref().expect("one that is held")
    }

    fn check(&self) {
        for (service, account) in &self.members {
            let Some(service) = service else { continue };
            let (usage, name) = (service.usage(), &account.name);
            expect(name, usage, [&**account]).unwrap();
            assert!(account.peaks().contains(&usage.peak_bytes), "{name}: {usage:?}, {:?}", account.peaks());
        }
    }

    fn check_snapshot(&self) {
        let snapshot = dogtag::snapshot();
        for (service, account) in &self.members {
            let name = &account.name;
            let mut rows = snapshot.rows.iter().filter(|row| row.name == *name);
            let (row, other) = (rows.next(), rows.next());
            assert!(other.is_none(), "{name} has several rows");
            let Some(row) = row else {
                assert!(service.is_none() && account.usage().blocks() == 0, "{name} has no row");
                continue;
            };
            expect(name, row.usage, [&**account]).unwrap();
            assert_eq!(
                row.parent.map(|row| &snapshot.rows[row].name),
                account.parent.as_ref().map(|parent| &parent.name)
            );
            let Some(service) = service else { continue };
            assert!(!row.is_retired && row.handle == service.handle());
            let limits = [row.hard_limit, row.soft_limit].map(|limit| limit.unwrap_or(NONE));
            assert_eq!(
                limits,
                [&account.hard, &account.soft].map(|limit| limit.load(Ordering::SeqCst)),
                "{name}"
            );
            for with_children in [row.usage_with_children, service.usage_with_children()] {
                let all = self.members.iter().map(|(_, other)| &**other);
                expect(name, with_children, all.filter(|other| other.is_in_family_of(account))).unwrap();
            }
            assert_eq!(service.headroom(), account.headroom(), "{name}");
        }
        let rows: Usage = snapshot.rows.iter().map(|row| row.usage).sum();
        assert_eq!(without_peak(rows + snapshot.ended), without_peak(snapshot.totals));
        assert_eq!(snapshot.lost, dogtag::Lost::default());
        assert!(format!("{snapshot}{snapshot:#}").contains(&self.members[0].1.name));
    }

    /// What the backends have given is what is live, with what stands around it.
    fn check_backends(&self) {
        let (mut bytes, mut blocks) = quarantined();
        for Block { piece: Piece { layout, .. }, memory, .. } in &self.thread.blocks {
            let around = match memory.place {
                Place::Behind => around(*layout),
                Place::Beside => around_zero_sized(*layout),
                Place::Table if CHECKED => around(*layout),
                Place::Table => 0,
            };
            bytes += layout.size() as u64 + around;
            blocks += 1;
        }
        let backends: [&Books; 3] = [BEHIND.backend(), BESIDE.backend(), TABLE.backend()];
        assert_eq!(backends.map(Books::live_bytes).iter().sum::<u64>(), bytes);
        assert_eq!(backends.map(Books::live_blocks).iter().sum::<u64>(), blocks);
    }

    /// Ends everything, in whichever order it is found, and closes the books.
    fn end(mut self) {
        self.thread.free_all();
        self.check();
        self.thread.leave_all();
        assert_eq!(Service::current(), Service::unattributed());
        let members: Usage = self.members.drain(..).map(|(_, account)| account.usage()).sum();
        let totals = dogtag::totals();
        assert_eq!((totals.bytes(), totals.blocks()), (0, 0));
        let (now, before) = (totals.allocated_bytes, self.before.allocated_bytes);
        assert_eq!(now, before + members.allocated_bytes, "what has ended is in the sum");
        self.check_backends();
    }
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
