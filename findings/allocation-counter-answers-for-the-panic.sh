#!/usr/bin/env bash
# allocation-counter 0.8.1: `measure` gives its level back behind the closure, not by a drop. When a
# closure within panics and the panic is caught, as test harnesses and servers do it, the level
# stays, and the measurement around it answers for the wrong one: all that it had seen before is
# missing. (Each such panic costs a level for good; there are 64 of them.)
#
# Seen: of 1000 bytes kept before the caught panic and 100 kept behind it a `measure` around all
# reports 100; without the panic it reports 1100.
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
allocation-counter = "=0.8.1"
TOML
cat > src/main.rs <<'RUST'
use std::hint::black_box;
use std::panic::catch_unwind;

fn keep(bytes: usize) {
    std::mem::forget(black_box(vec![1_u8; bytes]));
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    for panics in [false, true] {
        let info = allocation_counter::measure(|| {
            keep(1000);
            let inner = || allocation_counter::measure(|| assert!(!panics));
            drop(catch_unwind(inner));
            keep(100);
        });
        println!("panics: {panics}, kept: {} bytes", info.bytes_current);
    }
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = "panics: false, kept: 1100 bytes
panics: true, kept: 100 bytes" ]
