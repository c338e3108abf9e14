#!/usr/bin/env bash
# bumpalo 3.20.4: when the arena's chunk is full, a new one is tried with twice the last one's size, then half of that, and
# so on. With `set_allocation_limit` the size that is asked for is not among those tried: a halving that is over the
# limit is followed by one that is too small. An arena whose limit is 1 MiB and that has 704 KiB refuses 200 KiB, with
# 320 KiB left, and takes 170 KiB. (Asked for in another order, 200 KiB first, both are taken.)
#
# Seen: 200 KiB with 327744 bytes left refused, 170 KiB taken; in the other order all taken.
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
bumpalo = "=3.20.4"
TOML
cat > src/main.rs <<'RUST'
use std::alloc::Layout;

use bumpalo::Bump;

fn take(bump: &Bump, kib: usize) {
    let left = bump.allocation_limit().unwrap() - bump.allocated_bytes();
    let taken = bump.try_alloc_layout(Layout::from_size_align(kib << 10, 1).unwrap()).is_ok();
    println!("{kib} KiB with {left} bytes left: {}", if taken { "taken" } else { "refused" });
}

fn main() {
    for order in [[700, 200, 170], [200, 700, 0]] {
        let bump = Bump::new();
        bump.set_allocation_limit(Some(1 << 20));
        order.into_iter().filter(|kib| *kib > 0).for_each(|kib| take(&bump, kib));
    }
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = "700 KiB with 1048576 bytes left: taken
200 KiB with 327744 bytes left: refused
170 KiB with 327744 bytes left: taken
200 KiB with 1048576 bytes left: taken
700 KiB with 839744 bytes left: taken" ]
