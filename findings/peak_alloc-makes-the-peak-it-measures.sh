#!/usr/bin/env bash
# peak_alloc 0.3.0 has a `realloc` and an `alloc_zeroed` of its own, which are not the system's: each
# growth takes a second block and copies, and zeroed memory is written to. So the allocator that
# measures the peak makes it: a Vec that doubles to 64 MiB peaks at 96 MiB, where the system's
# realloc moves pages; and `vec![0; 256 MiB]`, which costs no page elsewhere, is all in memory.
#
# Seen: peak of the growth 1.5 times what is live at its end; 256 MiB of zeros resident at once
# (with the system's allocator less than 1 MiB of them).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[features]
peak = []
[dependencies]
peak_alloc = "=0.3.0"
TOML
cat > src/main.rs <<'RUST'
#[cfg(feature = "peak")]
#[global_allocator]
static ALLOC: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn main() {
    const MIB: usize = 1 << 20;
    #[cfg(feature = "peak")]
    {
        let mut grown: Vec<u64> = vec![1; MIB];
        ALLOC.reset_peak_usage();
        grown.reserve_exact(4 * MIB - grown.len());
        grown.reserve_exact(8 * MIB - grown.len());
        println!("peak of a growth to 64 MiB: {} MiB", ALLOC.peak_usage() / MIB);
    }
    let before = resident();
    let zeros = std::hint::black_box(vec![0_u8; 256 * MIB]);
    println!("zeros in memory: {}", (resident() - before) / MIB >= 255);
    drop(zeros);
}
RUST
seen=$(cargo run --quiet --release --features peak)
bare=$(cargo run --quiet --release)
printf 'peak_alloc: %s\nsystem: %s\n' "$seen" "$bare"
[ "$seen" = "peak of a growth to 64 MiB: 96 MiB
zeros in memory: true" ]
[ "$bare" = "zeros in memory: false" ]
