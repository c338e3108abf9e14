#!/usr/bin/env bash
# `debug = "line-tables-only"` is what is mostly advised for release builds that are profiled: lines, and small
# files. But it has no namespaces. A function that was inlined is called by its last name alone, `leaf` instead of
# `program::deep::er::leaf`; and so is the one that it was inlined into, though the symbol table has the
# full name of that. So whoever looks for a crate or a module among the frames of a call stack (the program's own, the
# allocator's, the standard library's) does not find them, and in an optimised program these are most frames.
# `debug = "limited"` has the names.
#
# Seen with rustc 1.95.0 and backtrace 0.3.77 (addr2line), -O.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "program"
version = "0.0.0"
edition = "2024"
[dependencies]
backtrace = "=0.3.77"
TOML
cat > src/main.rs <<'RUST'
mod deep {
    pub mod er {
        #[inline(always)]
        pub fn leaf() {
            crate::shown();
        }
    }
}

/// Prints the functions that the caller's place is in, as far as the program goes, the innermost first.
#[inline(never)]
fn shown() {
    let mut names = Vec::new();
    backtrace::trace(|frame| {
        backtrace::resolve_frame(frame, |symbol| {
            let name = symbol.name().map(|name| format!("{name:#}")).unwrap_or_default();
            if !names.is_empty() || name.ends_with("shown") {
                names.push(name);
            }
        });
        names.len() < 3
    });
    println!("{}", names[1..3].join(" in "));
}

#[inline(never)]
fn around() {
    deep::er::leaf();
    std::hint::black_box(());
}

fn main() {
    around();
}
RUST
rustc +1.95.0 --version >/dev/null 2>&1 || rustup toolchain install 1.95.0 --profile minimal
for debug in limited line-tables-only; do
    seen=$(CARGO_PROFILE_RELEASE_DEBUG=$debug cargo +1.95.0 run --quiet --release)
    echo "$debug: $seen"
    expected="program::deep::er::leaf in program::around"
    [ $debug = limited ] || expected="leaf in around"
    [ "$seen" = "$expected" ]
done
