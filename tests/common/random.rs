//! Numbers that are random enough, and can be had again.

/// The run's seed: `DOGTAG_SEED`, or another one each time.
pub fn seed() -> u64 {
    let given = std::env::var("DOGTAG_SEED").ok().map(|seed| seed.parse().expect("DOGTAG_SEED is a number"));
    let now = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
    let seed = given.unwrap_or(now);
    println!("DOGTAG_SEED={seed}");
    seed
}

/// Marsaglia's xorshift.
pub struct Random(u64);

impl Random {
    /// The sequence of that number, of a seed's many.
    pub fn new(seed: u64, number: u64) -> Self {
        let mixed = (seed ^ number.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self((mixed ^ mixed >> 29).max(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }
}
