#!/usr/bin/env bash
# mockalloc 0.1.2 finds bugs of allocation in tests. A `realloc` that is refused leaves the block
# where it is; mockalloc notes it as freed all the same, so a program that asks with `try_reserve`,
# is told no, and then drops its Vec, is accused of a double free.
#
# Seen: `Err(DoubleFree)` with one allocation and two frees, for a program without a fault; without
# the refused request the same program is `Ok(())`.
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
mockalloc = "=0.1.2"
TOML
cat > src/main.rs <<'RUST'
use std::alloc::System;
#[global_allocator]
static ALLOC: mockalloc::Mockalloc<System> = mockalloc::Mockalloc(System);

fn main() {
    for ask in [false, true] {
        let info = mockalloc::record_allocs(|| {
            let mut bytes = std::hint::black_box(Vec::<u8>::with_capacity(100));
            if ask {
                assert!(bytes.try_reserve_exact(1 << 62).is_err());
            }
        });
        println!("{:?}, {} allocated, {} freed", info.result(), info.num_allocs(), info.num_frees());
    }
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = "Ok(()), 1 allocated, 1 freed
Err(DoubleFree), 1 allocated, 2 freed" ]
