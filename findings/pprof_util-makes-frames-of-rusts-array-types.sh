#!/usr/bin/env bash
# pprof_util 0.8.2 draws flame graphs of jemalloc's heap dumps, for the crate jemalloc_pprof among others: it joins the names of
# a stack's functions by `;`, as inferno reads them, and leaves a `;` that is in a name as it is. Rust writes one into
# each array's type: `<[u8; 32] as finding::Row>::make` is two frames, `<[u8`, which is no function, and what is left. All
# functions of arrays of one type, whatever their lengths and traits, are one frame with the sum of all their bytes, and
# each looks as if called from there.
#
# Seen: three functions, each alone in its stack, stand on one frame `<[u8` of 6,000,000 bytes, each without the beginning of
# its name; one of a tuple's type has its name.
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
inferno = { version = "=0.12.4", default-features = false }
pprof_util = { version = "=0.8.2", features = ["flamegraph"] }
TOML
cat > src/main.rs <<'RUST'
use std::hint::black_box;

trait Row {
    fn make();
}

trait Key {
    fn hash();
}

impl Row for [u8; 16] {
    #[inline(never)]
    fn make() {
        black_box([[1; 2], [2; 2], [3; 2]]);
    }
}

impl Row for [u8; 32] {
    #[inline(never)]
    fn make() {
        black_box([[4; 2], [5; 2], [6; 2]]);
    }
}

impl Key for [u8; 20] {
    #[inline(never)]
    fn hash() {
        black_box([[7; 2], [8; 2], [9; 2]]);
    }
}

impl Row for (u8, u8) {
    #[inline(never)]
    fn make() {
        black_box([[10; 2], [11; 2], [12; 2]]);
    }
}

fn main() {
    let functions: [fn(); 4] = [<[u8; 16]>::make, <[u8; 32]>::make, <[u8; 20]>::hash, <(u8, u8)>::make];
    // The dump that jemalloc would write: one block for a call within each of them.
    let mut heap = "heap_v2/1\n  t*: 4: 10000000 [0: 0]\n".to_owned();
    for (function, bytes) in functions.into_iter().zip([1_000_000, 2_000_000, 3_000_000, 4_000_000]) {
        heap += &format!("@ {:#x}\n  t*: 1: {bytes} [0: 0]\n", function as usize + 8);
    }
    let profile = pprof_util::parse_jeheap(heap.as_bytes(), None).unwrap();
    let mut options = inferno::flamegraph::Options::default();
    options.count_name = "bytes".to_owned();
    let svg = String::from_utf8(profile.to_flamegraph(&mut options).unwrap()).unwrap();
    // From above, as the picture is drawn: a frame's caller is below it.
    let mut frames: Vec<(u32, String)> = Vec::new();
    for frame in svg.split("<title>").skip(1) {
        let title = frame.split("</title>").next().unwrap();
        let y = frame.split(" y=\"").nth(1).unwrap().split('"').next().unwrap();
        frames.push((y.parse().unwrap(), title.replace("&lt;", "<").replace("&gt;", ">")));
    }
    frames.sort();
    for (y, title) in frames {
        println!("{y}: {title}");
    }
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = '37:  16] as finding::Row>::make (1,000,000 bytes, 10.00%)
37:  20] as finding::Key>::hash (3,000,000 bytes, 30.00%)
37:  32] as finding::Row>::make (2,000,000 bytes, 20.00%)
53: <(u8,u8) as finding::Row>::make (4,000,000 bytes, 40.00%)
53: <[u8 (6,000,000 bytes, 60.00%)
69: all (10,000,000 bytes, 100%)' ]
