//! Programs of safe code, as bytes have them: services, scopes, futures, spans of two subscribers whose
//! layers are exchanged, pools, regions and limits, on two threads, in turn or at once.
//! What they have is held against a simple model; whether they reach freed memory, somebody else
//! has to see: memory-check or valgrind.
#![forbid(unsafe_code)]

use dogtag::{InServiceExt, Scope, Service, ServiceLayer, UnattributedExt};
use dogtag_mapped::MappedRegion;
use dogtag_pool::Pool;
use std::cell::OnceCell;
use std::future::Future;
use std::hint::black_box;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use tracing::dispatcher::with_default;
use tracing::span::EnteredSpan;
use tracing::{Dispatch, Span, Subscriber, info, info_span};
use tracing_subscriber::{Layer, Registry, prelude::*, registry, reload};

#[path = "program/memory.rs"]
mod memory;
#[path = "program/services.rs"]
mod services;
#[path = "program/spans.rs"]
mod spans;
#[path = "program/tasks.rs"]
mod tasks;
#[path = "program/world.rs"]
mod world;

const THREADS: usize = 2;
const MOST: usize = 12;
/// Scopes that one thread enters in one program.
const MOST_SCOPES: usize = 64;

type SomeLayer = Option<Box<ServiceLayer>>;
type Name = Arc<str>;
/// The services that a span may run in.
type Names = Arc<Mutex<Vec<Name>>>;
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Has panics that `tracing` means end no more than what they are in; all others end the process.
pub fn heed_panics() {
    // What it needs for itself is nobody's.
    LazyLock::force(&REGION);
    std::panic::set_hook(Box::new(|panic| {
        let text = aside(|| panic.to_string());
        // A span that was closed by its number is missed by those who still had it, or there are too
        // few of them in its count: its subscriber's registry finds out, in one of several ways.
        let by_registry = panic.location().is_some_and(|at| at.file().ends_with("registry/sharded.rs"));
        if !(by_registry && HAS_CLOSED_BY_NUMBER.load(SeqCst)) {
            eprintln!("{text}\n{}", std::backtrace::Backtrace::force_capture());
            let program: String = lock(&PROGRAM).iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("DOGTAG_PROGRAM={program}");
            std::process::abort();
        }
    }));
}

/// What runs now.
static PROGRAM: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Whether what runs now has closed a span that others have.
static HAS_CLOSED_BY_NUMBER: AtomicBool = AtomicBool::new(false);

/// Runs a program.
pub fn run(bytes: &[u8]) {
    *lock(&PROGRAM) = bytes.to_vec();
    HAS_CLOSED_BY_NUMBER.store(false, SeqCst);
    let world = Arc::new(World::new(bytes));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let world = Arc::clone(&world);
            thread::spawn(move || act(&world, number))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("a thread ends by itself"));
    Arc::into_inner(world).expect("all threads have ended").end();
}

/// What the threads share.
struct World {
    steps: Vec<Step>,
    next: Mutex<usize>,
    changed: Condvar,
    is_in_turn: bool,
    /// Whether no layer was exchanged, and no span entered by its number.
    is_calm: AtomicBool,
    /// Whether no thread was in a service when it ended, by having forgotten something or by its
    /// order: what such an end needs is that service's.
    is_tidy: AtomicBool,
    /// Every name there has been; held by those who may be in the service, too.
    known: Mutex<Vec<Name>>,
    services: Mutex<Vec<Known>>,
    subscribers: [Dispatch; 2],
    handles: [reload::Handle<SomeLayer, Registry>; 2],
    away: Mutex<SomeLayer>,
    spans: Mutex<Vec<SomeSpan>>,
    tasks: Mutex<Vec<Task>>,
    pools: Mutex<Vec<Pool<'static>>>,
    blocks: Mutex<Vec<Vec<u8>>>,
    /// Of services that were kept, not dropped.
    forgotten: Mutex<Vec<Name>>,
}

#[derive(Clone, Copy)]
struct Step {
    thread: usize,
    act: u8,
    one: u8,
    other: u8,
}

/// A service, and the name that it was registered with.
struct Known {
    service: Service,
    name: Name,
}

impl Known {
    fn another(&self) -> Self {
        Self { service: self.service.clone(), name: Arc::clone(&self.name) }
    }

    fn check(&self) {
        assert_eq!(self.service.name(), &*self.name, "a service has another one's name");
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.check();
    }
}

struct SomeSpan {
    span: Span,
    subscriber: usize,
    names: Names,
}

/// What one thread has.
struct Actor<'a> {
    world: &'a World,
    arena: &'a [OnceCell<Known>; MOST_SCOPES],
    scopes: Vec<Scope<'a>>,
    entered: Vec<(EnteredSpan, Names)>,
    /// Whether it leaves what it enters, scopes in the order in which they were entered, and not
    /// both of them and spans.
    is_orderly: bool,
    /// Whether it gave a span another service while it was in a scope: that scope takes it back to what
    /// the span ran in before, and only a layer that is told of the span's end takes it out of there.
    has_attached_in_scope: bool,
    /// Whether it has left spans when perhaps there was no layer that was told: a scope that is entered
    /// then goes back to the span's service, whatever becomes of the span meanwhile.
    has_left_untold: bool,
}

static REGION: LazyLock<MappedRegion> =
    LazyLock::new(|| MappedRegion::anonymous(1 << 20).expect("a mapped region"));

static NOBODY: LazyLock<Service> = LazyLock::new(Service::unattributed);

/// Has spans be there without a layer that may be exchanged.
struct Witness;

impl<S: Subscriber> Layer<S> for Witness {}

/// Panics with itself again when it is dropped.
struct Endless;

impl Drop for Endless {
    fn drop(&mut self) {
        if !thread::panicking() {
            resume_unwind(Box::new(Self));
        }
    }
}

/// What the model needs is nobody's.
fn aside<R>(work: impl FnOnce() -> R) -> R {
    Service::unattributed().run(work)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A panic of the program's own, which nobody prints, is caught here.
fn caught(work: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(work))
        && payload.is::<Endless>()
    {
        mem::forget(payload);
    }
}

fn new_name(what: &str) -> Name {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, SeqCst);
    format!("{what} with a name on the heap, number {number}").into()
}

fn new_layer() -> SomeLayer {
    Some(Box::new(ServiceLayer::new().keep_services(false)))
}

fn act(world: &World, thread: usize) {
    let arena = [const { OnceCell::new() }; MOST_SCOPES];
    let mut actor = Actor {
        world,
        arena: &arena,
        scopes: Vec::new(),
        entered: Vec::new(),
        is_orderly: true,
        has_attached_in_scope: false,
        has_left_untold: false,
    };
    aside(|| actor.scopes.reserve(MOST_SCOPES));
    for (number, step) in world.steps.iter().enumerate().filter(|(_, step)| step.thread == thread) {
        world.wait_for(number);
        actor.act(*step);
        if world.is_in_turn {
            actor.check();
        }
        world.has_done(number);
    }
    // Beyond the last step, one thread after the other.
    world.wait_for(world.steps.len());
    if world.is_in_turn {
        let mut next = lock(&world.next);
        while *next != world.steps.len() + thread {
            next = world.changed.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
    }
    actor.end();
    // Whatever it has forgotten: what the thread's end needs is nobody's.
    mem::forget(NOBODY.enter());
    if world.is_in_turn {
        *lock(&world.next) += 1;
        world.changed.notify_all();
    }
}

impl<'a> Actor<'a> {
    /// The thread is in a service that somebody may hold, under its own name.
    fn check(&self) {
        let current = Service::current();
        aside(|| {
            let name = current.name();
            assert!(self.world.is_held(name), "the thread is in {name:?}, which nobody holds");
        });
    }

    fn act(&mut self, step: Step) {
        let Step { act, one, other, .. } = step;
        let world = self.world;
        match act % 40 {
            0 | 1 => self.register(one, other),
            2 => {
                let gone = aside(|| {
                    let mut services = lock(&world.services);
                    let place = usize::from(one).checked_rem(services.len())?;
                    Some(services.swap_remove(place))
                });
                drop(gone);
            }
            3 => aside(|| world.pick(one).into_iter().for_each(|known| world.keep(known))),
            4 => {
                let service = Service::current();
                aside(|| {
                    let name: Name = service.name().into();
                    let known = lock(&world.known).iter().find(|known| **known == name).cloned();
                    // Callbacks' are not known.
                    if let Some(name) = known {
                        world.keep(Known { service, name });
                    }
                });
            }
            5 => {
                let parent = aside(|| world.pick(one)).and_then(|known| known.service.parent());
                if let Some(parent) = parent {
                    aside(|| assert!(parent.name().contains("on the heap"), "{:?}", parent.name()));
                }
            }
            6..=8 => {
                self.is_orderly &= !self.has_left_untold;
                self.enter_scope(one);
            }
            9 | 10 => {
                if let Some(place) = usize::from(one).checked_rem(self.scopes.len()) {
                    // The last one of several decides where the thread is.
                    self.is_orderly &= place + 1 == self.scopes.len();
                    drop(self.scopes.remove(place));
                }
            }
            11 => {
                if other.is_multiple_of(8)
                    && let Some(scope) = self.scopes.pop()
                {
                    // Whichever it is.
                    let names = self.arena.iter().filter_map(OnceCell::get);
                    aside(|| lock(&world.forgotten).extend(names.map(|known| Arc::clone(&known.name))));
                    mem::forget(scope);
                    self.is_orderly = false;
                }
            }
            12..=14 => self.new_span(one, other),
            15 => {
                let gone = aside(|| {
                    let mut spans = lock(&world.spans);
                    let place = usize::from(one).checked_rem(spans.len())?;
                    Some(spans.swap_remove(place))
                });
                caught(|| drop(gone));
            }
            16..=18 => {
                if let Some((span, names, _)) = self.span(one) {
                    self.is_orderly &= self.scopes.is_empty();
                    let before = Service::current();
                    let may_be: Vec<Name> = aside(|| lock(&names).clone());
                    caught(|| {
                        let entered = span.entered();
                        aside(|| self.entered.push((entered, names)));
                    });
                    if world.is_in_turn && world.is_calm.load(SeqCst) {
                        let now = Service::current();
                        aside(|| {
                            let is_known = now == before || may_be.iter().any(|name| **name == *now.name());
                            assert!(is_known, "from {before:?} to {now:?}, not to one of {may_be:?}");
                        });
                    }
                    aside(|| drop(may_be));
                }
            }
            19 | 20 => {
                if let Some(place) = usize::from(one).checked_rem(self.entered.len()) {
                    let (entered, names) = self.entered.remove(place);
                    caught(|| drop(entered.exit()));
                    if !world.is_calm.load(SeqCst) {
                        self.has_left_untold = true;
                        self.is_orderly &= self.scopes.is_empty();
                        // Perhaps there is no layer that was told, and the thread is still there.
                        aside(|| lock(&world.forgotten).extend(lock(&names).iter().cloned()));
                    }
                    aside(|| drop(names));
                }
            }
            21 => self.by_number(one, other),
            22 => {
                if let Some((span, names, _)) = self.span(one)
                    && let Some(known) = aside(|| world.pick(other))
                {
                    aside(|| lock(&names).push(Arc::clone(&known.name)));
                    self.has_attached_in_scope |= !self.scopes.is_empty();
                    caught(|| _ = known.service.attach(&span));
                    caught(|| drop(span));
                }
            }
            23 | 24 => self.exchange(one, other),
            25 => {
                let block = black_box(vec![one; 1 + usize::from(other) * 40]);
                let former = aside(|| {
                    let mut blocks = lock(&world.blocks);
                    blocks.push(block);
                    (blocks.len() > 40).then(|| blocks.swap_remove(usize::from(one) % 40))
                });
                drop(former);
            }
            26 => {
                let block = aside(|| {
                    let mut blocks = lock(&world.blocks);
                    let place = usize::from(one).checked_rem(blocks.len())?;
                    Some(blocks.swap_remove(place))
                });
                if let Some(mut block) = block {
                    if other.is_multiple_of(2) {
                        block.truncate(usize::from(other));
                        block.shrink_to_fit();
                    } else {
                        block.resize(usize::from(other) * 100, one);
                    }
                    aside(|| lock(&world.blocks).push(block));
                }
            }
            27 => self.new_task(one, other),
            28 | 29 => {
                let task = aside(|| {
                    let mut tasks = lock(&world.tasks);
                    let place = usize::from(one).checked_rem(tasks.len())?;
                    Some(tasks.swap_remove(place))
                });
                if let Some(mut task) = task {
                    let mut goes_on = false;
                    if other % 8 != 0 {
                        let mut context = Context::from_waker(Waker::noop());
                        caught(|| goes_on = task.as_mut().poll(&mut context).is_pending());
                    }
                    if goes_on {
                        aside(|| lock(&world.tasks).push(task));
                    } else {
                        caught(|| drop(task));
                    }
                }
            }
            30..=32 => self.use_pool(act, one, other),
            33 => {
                memory::use_region(one, other);
            }
            34 => {
                if let Some(known) = aside(|| world.pick(one)) {
                    let bytes = u64::from(other) << 10;
                    // Who is in one with a hard limit must be able to do without memory.
                    known.service.set_soft_limit(Some(bytes));
                    let limited = Service::builder("a limited one").parent(&known.service).hard_limit(bytes);
                    if let Ok(limited) = limited.register() {
                        let mut block: Vec<u8> = Vec::new();
                        let is_given = limited.run(|| block.try_reserve(usize::from(one) << 10)).is_ok();
                        assert!(is_given || usize::from(one) << 10 > bytes as usize / 2 || !world.is_in_turn);
                        let _ = limited.headroom();
                        drop(black_box(block));
                    }
                }
            }
            35 => {
                if let Some(known) = aside(|| world.pick(one)) {
                    let mut block: Vec<u8> = Vec::new();
                    known.service.run(|| _ = block.try_reserve(usize::from(other) << 12));
                    drop(black_box(block));
                }
            }
            36 => {
                // A name that was freed is overwritten when its place is used again, after so many.
                if other.is_multiple_of(32) {
                    aside(|| (0..1100).for_each(|i| drop(Service::register(format!("one of many, {i}")))));
                }
            }
            37 => {
                if other.is_multiple_of(64) {
                    aside(|| drop(black_box(dogtag::snapshot())));
                } else if let Some(known) = aside(|| world.pick(one)) {
                    let _ = known.service.usage_with_children();
                    // Another one, if this one has been without a clone for a while.
                    drop(aside(|| Service::by_name(&known.name)));
                }
            }
            38 => self.end_a_thread_within(one, other),
            _ => aside(|| {
                lock(&world.services).iter().for_each(Known::check);
            }),
        }
    }

    /// Leaves all that it is in.
    fn end(mut self) {
        let world = self.world;
        self.is_orderly &= self.scopes.is_empty() || self.entered.is_empty() || world.is_calm.load(SeqCst);
        while let Some((entered, names)) = self.entered.pop() {
            caught(|| drop(entered.exit()));
            aside(|| drop(names));
        }
        while let Some(scope) = self.scopes.pop() {
            drop(scope);
        }
        if !self.is_orderly || self.has_attached_in_scope && !world.is_calm.load(SeqCst) {
            self.is_orderly = false;
            world.is_tidy.store(false, SeqCst);
        }
        // New layers, which tell the thread of a span: then it is where it began, whatever has
        // become of the former ones.
        aside(|| {
            drop(lock(&world.away).take());
            world.handles.iter().for_each(|handle| _ = handle.reload(new_layer()));
        });
        for subscriber in &world.subscribers {
            caught(|| with_default(subscriber, || info_span!("the last one").in_scope(|| ())));
        }
        if world.is_in_turn && self.is_orderly && world.is_tidy.load(SeqCst) {
            let current = Service::current();
            aside(|| assert_eq!(current, Service::unattributed(), "the thread is out of everything"));
        }
        aside(|| drop((mem::take(&mut self.scopes), mem::take(&mut self.entered))));
    }
}
