#!/usr/bin/env bash
# backtrace 0.3.77: `resolve(addr)`, of which the documentation says that "symbols yielded represent the
# execution at the specified `addr`", looks at the byte before: it takes every address for a return
# address (a comment in its source says so). Whoever passes the instruction pointer of a signal's context, or an
# address from which he has subtracted one himself, is told the function before, or none, where it is a
# function's first instruction: a leaf function that faults at once has no name.
#
# Seen: the address of `second` is `first`, one more is `second`.
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
backtrace = "=0.3.77"
TOML
cat > src/main.rs <<'RUST'
use std::arch::global_asm;
use std::ffi::c_void;

global_asm!(
    ".type first, @function", ".globl first", "first:", "nop", "nop", "nop", "ret", ".size first, . - first",
    ".type second, @function", ".globl second", "second:", "nop", "nop", "nop", "ret", ".size second, . - second",
);

extern "C" {
    fn first();
    fn second();
}

fn name(address: usize) -> String {
    let mut name = "nobody".to_owned();
    backtrace::resolve(address as *mut c_void, |symbol| name = symbol.name().unwrap().to_string());
    name
}

fn main() {
    unsafe { first() };
    let address = second as *const () as usize;
    println!("the address of second: {}; one more: {}", name(address), name(address + 1));
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = "the address of second: first; one more: second" ]
