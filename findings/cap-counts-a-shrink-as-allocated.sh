#!/usr/bin/env bash
# cap 0.1.2, feature `stats`: `total_allocated()` ("total amount of allocated memory") counts the
# whole new size at each `realloc`, also where the block only shrinks. A Vec of 1,000,000 bytes of
# which half is cut off with `shrink_to_fit` has "allocated" 1,500,000 bytes; pushed one byte at a
# time, a Vec that ends at 1 MiB has "allocated" nearly twice that.
#
# Seen: a shrink from 1000000 to 500000 bytes adds 500000, a growth from 8 to 1048576 bytes by
# doubling adds 2097144, while `allocated()` is right both times.
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
[dependencies]
cap = { version = "=0.1.2", features = ["stats"] }
TOML
cat > src/main.rs <<'RUST'
use std::alloc::System;
#[global_allocator]
static ALLOC: cap::Cap<System> = cap::Cap::new(System, usize::MAX);

fn main() {
    let mut half: Vec<u8> = Vec::with_capacity(1_000_000);
    half.resize(500_000, 1);
    let (live, total) = (ALLOC.allocated(), ALLOC.total_allocated());
    half.shrink_to_fit();
    let (live, total) = (live - ALLOC.allocated(), ALLOC.total_allocated() - total);

    let (live_before, total_before) = (ALLOC.allocated(), ALLOC.total_allocated());
    let mut grown: Vec<u8> = Vec::with_capacity(8);
    for i in 0..1 << 20 {
        grown.push(i as u8);
    }
    let (live_after, total_after) = (ALLOC.allocated(), ALLOC.total_allocated());
    println!("shrink: live -{live}, total +{total}");
    println!("growth: live +{}, total +{}", live_after - live_before, total_after - total_before);
    drop((half, grown));
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = "shrink: live -500000, total +500000
growth: live +1048576, total +2097144" ]
