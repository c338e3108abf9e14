#!/usr/bin/env bash
# Four crates say how many bytes of heap a value holds, by walking it: deepsize 0.2.0, get-size2 0.7.4, mem_dbg 0.3.4 and
# datasize 0.2.15. For std's maps none of the first three is right with all, though each is with vectors and strings.
# deepsize and get-size2 leave out of a hash map the eighth of its buckets that is kept free, and the control bytes: a
# sixth too little. mem_dbg adds up the fields of a pair, where the pair has padding (a key of 1 byte, a value of 8). And of
# a B-tree, whose nodes nobody can ask for, get-size2 counts no node, deepsize eight bytes an element, mem_dbg half-empty
# nodes: a quarter of the truth to nearly twice it. A budget for a cache that is kept by such figures is another budget.
#
# Seen, bytes (allocated by the program / each crate): see the end of this file.
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
datasize = "=0.2.15"
deepsize = "=0.2.0"
get-size2 = "=0.7.4"
mem_dbg = "=0.3.4"
stats_alloc = "=0.1.10"
TOML
cat > src/main.rs <<'RUST'
use std::alloc::System;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::size_of_val;

use stats_alloc::{Region, StatsAlloc, INSTRUMENTED_SYSTEM};

#[global_allocator]
static ALLOC: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

macro_rules! show {
    ($name:literal, $value:expr) => {{
        let region = Region::new(ALLOC);
        let value = $value;
        let seen = region.change();
        let own = size_of_val(&value);
        println!(
            "{}: {} / deepsize {}, get-size2 {}, mem_dbg {}",
            $name,
            seen.bytes_allocated - seen.bytes_deallocated,
            deepsize::DeepSizeOf::deep_size_of(&value) - own,
            get_size2::GetSize::get_heap_size(&value),
            mem_dbg::MemSize::mem_size(&value, mem_dbg::SizeFlags::CAPACITY) - own,
        );
    }};
}

fn main() {
    show!("100 strings", (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
    show!("HashMap<u64, u64>", (0..1000).map(|i| (i, i)).collect::<HashMap<u64, u64>>());
    show!("HashMap<u8, u64>", (0..100).map(|i| (i, 0)).collect::<HashMap<u8, u64>>());
    show!("BTreeMap<u64, u64>", (0..1000).map(|i| (i, i)).collect::<BTreeMap<u64, u64>>());
    show!("BTreeSet<u8>", (0..200).collect::<BTreeSet<u8>>());
    let map = (0..1000).map(|i| (i, i)).collect::<HashMap<u64, u64>>();
    println!("HashMap<u64, u64>: datasize {}", datasize::data_size(&map));
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = "100 strings: 3400 / deepsize 3400, get-size2 3400, mem_dbg 3400
HashMap<u64, u64>: 34832 / deepsize 28672, get-size2 28672, mem_dbg 34832
HashMap<u8, u64>: 2192 / deepsize 1792, get-size2 1792, mem_dbg 1296
BTreeMap<u64, u64>: 18432 / deepsize 18000, get-size2 16000, mem_dbg 34030
BTreeSet<u8>: 768 / deepsize 1800, get-size2 200, mem_dbg 1353
HashMap<u64, u64>: datasize 34816" ]
