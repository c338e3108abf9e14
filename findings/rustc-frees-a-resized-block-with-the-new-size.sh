#!/usr/bin/env bash
# A compiler that optimises leaves out a `realloc` whose block is freed next and is not looked at in
# between, and frees the old block, but with the new layout. So a global allocator is given a layout
# that the block never had. Allocators that look a block's size up do not notice; those that go by
# the layout, as `GlobalAlloc` allows for (sized deallocation, counters of live bytes), take the block
# for another one. A program that compares what `realloc` returns with null is spared, and so are
# std's collections.
#
# Seen with rustc 1.95.0 (LLVM's rule for C's `free(realloc(p, n))`, where `free` has no size): with
# -O0 and -O1 one `realloc`, and 3000 bytes are freed of a block that has 3000; with -O2 and -O3 none,
# and 3000 bytes of a block that has 40.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > freed.rs <<'RUST'
use std::alloc::{GlobalAlloc, Layout, System, alloc, dealloc, realloc};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Goes on to C's malloc, for which the layout of a free makes no difference.
struct Noting;
static RESIZED: AtomicUsize = AtomicUsize::new(0);
static FREED: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        FREED.store(layout.size(), Relaxed);
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        RESIZED.fetch_add(1, Relaxed);
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOC: Noting = Noting;

fn main() {
    let (old, new) = (Layout::new::<[u8; 40]>(), Layout::new::<[u8; 3000]>());
    unsafe {
        let block = black_box(alloc(old));
        dealloc(realloc(block, old, new.size()), new);
    }
    println!("{} realloc, {} bytes freed", RESIZED.load(Relaxed), FREED.load(Relaxed));
}
RUST
rustc +1.95.0 --version >/dev/null 2>&1 || rustup toolchain install 1.95.0 --profile minimal
for level in 0 1 2 3; do
    rustc +1.95.0 --edition 2024 -C opt-level=$level freed.rs -o freed
    seen=$(./freed)
    echo "-O$level: $seen"
    expected="1 realloc, 3000 bytes freed"
    [ $level -lt 2 ] || expected="0 realloc, 3000 bytes freed"
    [ "$seen" = "$expected" ]
done
