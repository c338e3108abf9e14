//! Random numbers for tests that run for long, the same ones for the same seed; and for how long.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

/// `DOGTAG_SEED`, or a seed that no earlier run had. It is printed, so that a run can be
/// had again.
pub fn seed() -> u64 {
    let seed = match std::env::var("DOGTAG_SEED") {
        Ok(seed) => seed.parse().expect("DOGTAG_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_nanos() as u64 % 1_000_000_007
        }
    };
    println!("DOGTAG_SEED={seed} DOGTAG_EFFORT={}", effort());
    seed
}

/// `DOGTAG_EFFORT`, or 1: how much longer than usual whatever may go on for as long as one likes does
/// so. Usual is some seconds each.
pub fn effort() -> f64 {
    std::env::var("DOGTAG_EFFORT").map_or(1.0, |effort| effort.parse().expect("DOGTAG_EFFORT is a number"))
}

/// What is usually done so many times: with little effort, or much, as many times less or more.
pub fn times(usual: u64) -> u64 {
    ((usual as f64 * effort()) as u64).max(1)
}

/// What usually takes so many seconds, likewise.
pub fn seconds(usual: f64) -> std::time::Duration {
    std::time::Duration::from_secs_f64(usual * effort())
}

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of a seed's many.
    pub fn nth(seed: u64, number: u64) -> Self {
        Self(Self(seed ^ number.rotate_left(32)).next())
    }

    /// Another generator, whose numbers have nothing to do with this one's.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// A number below another one.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 32) as usize % end
    }

    /// Whether something happens that does once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of those, if there are any.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> Option<&'a T> {
        (!among.is_empty()).then(|| &among[self.below(among.len())])
    }

    /// Which of those that weigh so much.
    pub fn weighed(&mut self, weights: &[usize]) -> usize {
        let mut at = self.below(weights.iter().sum());
        weights.iter().position(|weight| at.checked_sub(*weight).map(|rest| at = rest).is_none()).unwrap()
    }

    /// A block's size: mostly small, some of some pages, few large.
    pub fn size(&mut self) -> usize {
        match self.below(200) {
            0 => 1 + self.below(300_000),
            1..12 => 1 + self.below(10_000),
            // Around the size from which on owners stand beside the heap.
            12..16 => 4_090 + self.below(12),
            _ => 1 + self.below(400),
        }
    }
}
