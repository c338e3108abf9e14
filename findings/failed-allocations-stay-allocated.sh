#!/usr/bin/env bash
# Three counting allocators add a block's size before they know whether there is a block, and never
# take it back: after a `try_reserve` that was refused, as it may be, what is "in use" is wrong for
# the rest of the process's life.
#
# Seen, after one refused `try_reserve_exact(1 << 62)` in a process that holds next to nothing:
# stats_alloc 0.1.10, trallocator 0.2.2 and accounting-allocator 0.2.0 each have 2^62 bytes too
# many, in what is allocated less what is freed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p src/bin
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
accounting-allocator = "=0.2.0"
stats_alloc = "=0.1.10"
trallocator = "=0.2.2"
TOML
refuse='fn main() {
    let before = in_use();
    let refused = std::hint::black_box(Vec::<u8>::new()).try_reserve_exact(1 << 62).is_err();
    println!("refused: {refused}, in use: {:+}", in_use() as i128 - before as i128);
}'
cat > src/bin/stats_alloc.rs <<RUST
use std::alloc::System;
#[global_allocator]
static ALLOC: &stats_alloc::StatsAlloc<System> = &stats_alloc::INSTRUMENTED_SYSTEM;
fn in_use() -> usize {
    let stats = ALLOC.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}
$refuse
RUST
cat > src/bin/trallocator.rs <<RUST
use std::alloc::System;
#[global_allocator]
static ALLOC: trallocator::Trallocator<System> = trallocator::Trallocator::new(System);
fn in_use() -> usize {
    ALLOC.usage()
}
$refuse
RUST
cat > src/bin/accounting_allocator.rs <<RUST
#[global_allocator]
static ALLOC: accounting_allocator::AccountingAlloc = accounting_allocator::AccountingAlloc::new();
fn in_use() -> usize {
    ALLOC.count(); // What it needs itself is there before it is compared.
    let count = ALLOC.count().all_time;
    count.alloc - count.dealloc
}
$refuse
RUST
for name in stats_alloc trallocator accounting_allocator; do
    seen=$(cargo run --quiet --release --bin $name)
    echo "$name: $seen"
    [ "$seen" = "refused: true, in use: +4611686018427387904" ]
done
