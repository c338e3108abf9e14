//! Programs as values: what each thread does, drawn from a seed.

use crate::random::Random;
/// What is done, and by which of the threads. Numbers choose among what there is then, so that a
/// program means something with steps taken out, too.
#[derive(Clone, Debug)]
pub struct Step {
    pub thread: usize,
    pub act: Act,
}

#[derive(Clone, Debug)]
pub struct Program {
    pub steps: Vec<Step>,
    /// In turn: after how many steps the figures are looked at. Who looks sees a peak, too.
    pub interval: usize,
}

pub const THREADS: usize = 4;

#[derive(Clone, Debug)]
pub enum Act {
    /// On the heap, or in a region if there is one.
    Allocate {
        size: usize,
        shift: u32,
        is_zeroed: bool,
        region: Option<usize>,
    },
    Reallocate {
        block: usize,
        size: usize,
    },
    Free {
        block: usize,
    },
    Give {
        block: usize,
        to: usize,
    },
    /// To a thread-local variable, whose destructor frees it.
    Stash {
        block: usize,
    },
    /// Allocates many, and frees them.
    Burst {
        count: usize,
        size: usize,
    },
    /// By a thread that ends then: allocates a block that is kept, and frees another.
    Errand {
        service: usize,
        size: usize,
        block: usize,
    },
    Enter {
        service: usize,
    },
    Leave,
    LeaveOuter {
        scope: usize,
    },
    RunIn {
        service: usize,
        size: usize,
    },
    /// By a name that others have had, with an assigned handle.
    RegisterName {
        name: usize,
        parent: Option<usize>,
        hard: Option<u64>,
    },
    /// By a handle that others have had, with a name of its own.
    RegisterHandle {
        handle: u32,
        parent: Option<usize>,
        hard: Option<u64>,
    },
    Find {
        service: usize,
    },
    KeepCurrent,
    LetGo {
        service: usize,
    },
    SetHard {
        service: usize,
        bytes: Option<u64>,
    },
    SetSoft {
        service: usize,
        bytes: Option<u64>,
    },
    ResetPeak {
        service: usize,
    },
    Look {
        service: usize,
    },
    MakeFuture {
        service: usize,
        outer: Option<usize>,
        sizes: [usize; 3],
    },
    Poll {
        future: usize,
    },
    DropFuture {
        future: usize,
    },
    /// The thread ends, and another goes on with what it had.
    Restart,
    MakePool {
        service: usize,
        block_size: usize,
    },
    PoolAllocate {
        pool: usize,
        child: usize,
        size: usize,
        is_zeroed: bool,
    },
    PoolFreeLarge {
        pool: usize,
    },
    PoolChild {
        pool: usize,
    },
    PoolDropChild {
        pool: usize,
    },
    PoolClear {
        pool: usize,
        keeps_all: bool,
    },
    GivePool {
        pool: usize,
        to: usize,
    },
    DropPool {
        pool: usize,
    },
    #[cfg(target_os = "linux")]
    MakeRegion {
        pages: usize,
        falls_back: bool,
    },
    #[cfg(target_os = "linux")]
    DropRegion {
        region: usize,
    },
}

impl Program {
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let len = (20 + random.below(400)) * if random.once_in(10) { 10 } else { 1 };
        let interval = [1, 1, 10, usize::MAX][random.below(4)];
        let services = 2 + random.below(6);
        let mut steps: Vec<Step> = (0..services)
            .map(|_| Step { thread: random.below(THREADS), act: register(&mut random) })
            .collect();
        steps.extend((0..len).map(|_| Step { thread: random.below(THREADS), act: act(&mut random) }));
        Self { steps, interval }
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "looked at after each {} steps:", self.interval)?;
        self.steps.iter().try_for_each(|Step { thread, act }| writeln!(f, "    thread {thread}: {act:?}"))
    }
}

impl Act {
    /// Numbers that may as well be smaller.
    pub fn sizes(&mut self) -> Vec<&mut usize> {
        match self {
            Self::Allocate { size, .. }
            | Self::Reallocate { size, .. }
            | Self::Errand { size, .. }
            | Self::RunIn { size, .. } => vec![size],
            Self::Burst { count, size } => vec![count, size],
            Self::MakeFuture { sizes, .. } => sizes.iter_mut().collect(),
            Self::PoolAllocate { size, .. } => vec![size],
            _ => Vec::new(),
        }
    }
}

/// What a step is about, of those that there are then.
fn any(random: &mut Random) -> usize {
    random.below(1 << 20)
}

fn size(random: &mut Random) -> usize {
    match random.weighed(&[16, 6, 3, 1, 1]) {
        0 => 1 + random.below(300),
        1 => 1 + random.below(20_000),
        // Where owners are noted in another way.
        2 => 4000 + random.below(200),
        // What a thread is granted under a limit.
        3 => 60_000 + random.below(10_000),
        _ => 1 + random.below(1 << 20),
    }
}

fn limit(random: &mut Random) -> Option<u64> {
    let bytes = match random.below(4) {
        0 => return None,
        1 => random.below(20_000),
        2 => random.below(300_000),
        _ => random.below(3 << 20),
    };
    Some(bytes as u64)
}

fn register(random: &mut Random) -> Act {
    let parent = random.once_in(2).then(|| any(random));
    let hard = if random.once_in(3) { limit(random) } else { None };
    if random.once_in(3) {
        Act::RegisterHandle { handle: 1 + random.below(4) as u32, parent, hard }
    } else {
        Act::RegisterName { name: random.below(5), parent, hard }
    }
}

fn act(random: &mut Random) -> Act {
    let (any, other, to) = (any(random), any(random), random.below(THREADS));
    let groups = [40, 16, 12, 8, 6, 14, if cfg!(target_os = "linux") { 4 } else { 0 }];
    match random.weighed(&groups) {
        0 => match random.weighed(&[12, 8, 10, 3, 1, 2, 2]) {
            0 => Act::Allocate {
                size: size(random),
                shift: random.below(13) as u32,
                is_zeroed: random.once_in(3),
                region: random.once_in(3).then_some(any),
            },
            1 => Act::Reallocate { block: any, size: size(random) },
            2 => Act::Free { block: any },
            3 => Act::Give { block: any, to },
            4 => Act::Stash { block: any },
            5 => Act::Burst { count: 1 + random.below(60), size: size(random).min(100_000) },
            _ => Act::Errand { service: any, size: size(random), block: other },
        },
        1 => match random.weighed(&[6, 4, 1, 2, 1]) {
            0 => Act::Enter { service: any },
            1 => Act::Leave,
            2 => Act::LeaveOuter { scope: any },
            3 => Act::RunIn { service: any, size: size(random) },
            _ => Act::KeepCurrent,
        },
        2 => match random.weighed(&[4, 4, 1]) {
            0 => register(random),
            1 => Act::LetGo { service: any },
            _ => Act::Find { service: any },
        },
        3 => match random.weighed(&[6, 1, 2, 5]) {
            0 => Act::SetHard { service: any, bytes: limit(random) },
            1 => Act::SetSoft { service: any, bytes: limit(random) },
            2 => Act::ResetPeak { service: any },
            _ => Act::Look { service: any },
        },
        4 => match random.weighed(&[4, 8, 2, 2]) {
            0 => {
                let sizes = std::array::from_fn(|_| size(random));
                Act::MakeFuture { service: any, outer: random.once_in(3).then_some(other), sizes }
            }
            1 => Act::Poll { future: any },
            2 => Act::DropFuture { future: any },
            _ => Act::Restart,
        },
        5 => match random.weighed(&[3, 16, 2, 3, 2, 3, 2, 2]) {
            0 => Act::MakePool { service: any, block_size: 1024 << random.below(4) },
            1 => Act::PoolAllocate {
                pool: any,
                child: other,
                size: size(random),
                is_zeroed: random.once_in(3),
            },
            2 => Act::PoolFreeLarge { pool: any },
            3 => Act::PoolChild { pool: any },
            4 => Act::PoolDropChild { pool: any },
            5 => Act::PoolClear { pool: any, keeps_all: random.once_in(3) },
            6 => Act::GivePool { pool: any, to },
            _ => Act::DropPool { pool: any },
        },
        #[cfg(target_os = "linux")]
        6 if random.once_in(3) => Act::DropRegion { region: any },
        #[cfg(target_os = "linux")]
        6 => Act::MakeRegion { pages: 1 + random.below(64), falls_back: random.once_in(3) },
        _ => unreachable!("it weighs nothing"),
    }
}
