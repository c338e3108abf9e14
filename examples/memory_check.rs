//! Commits a violation of the memory rules, to show what memory-check reports.
//!
//! `cargo run --features memory-check --example memory_check -- VIOLATION`; without a name it
//! lists the violations. With `DOGTAG_CHECK=backtrace=1` the report has call stacks, with
//! `reaction=leak` the program survives it.

use dogtag::{Service, check};
use std::alloc::{Layout, alloc, realloc};

#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();

/// A name, what is done, and who does it.
const VIOLATIONS: [(&str, &str, fn()); 13] = [
    ("overrun", "writes one byte past the end of a block, and frees it", overrun),
    ("bit-flip", "changes one bit past the end of a block, and resizes it", bit_flip),
    ("underrun", "writes in front of a block, and frees it", underrun),
    ("double-free", "frees a block twice, on two threads", double_free),
    ("write-after-free", "writes to a freed block, and goes on", write_after_free),
    ("wrong-size", "frees a block with another size than it has", wrong_size),
    ("wrong-align", "frees a block with another alignment than it has", wrong_align),
    ("free-stack", "frees a variable on the stack", free_stack),
    ("free-static", "frees a static variable", free_static),
    ("free-interior", "frees a pointer into the middle of a block", free_interior),
    ("free-malloc", "frees what the C library's malloc gave", free_malloc),
    ("unnoticed", "writes past the end of a block that is never freed, and verifies", unnoticed),
    ("leak", "forgets blocks, and asserts that there are no leaks", leak),
];

fn main() -> Result<(), dogtag::RegisterError> {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some((_, what, commit)) = VIOLATIONS.iter().find(|(known, ..)| *known == name) else {
        println!("cargo run --features memory-check --example memory_check -- VIOLATION\n");
        VIOLATIONS.iter().for_each(|(name, what, _)| println!("  {name:<17} {what}"));
        // A name that is not in the list is a mistake.
        std::process::exit(if name.is_empty() { 0 } else { 2 });
    };
    println!("{name} {what}:\n");
    Service::register("careless")?.run(commit);
    println!("survived");
    Ok(())
}

/// A block of 24 bytes, of which the compiler does not know who looks at it: it leaves out what is
/// written to a block that nobody reads.
fn block() -> (*mut u8, Layout) {
    let layout = Layout::new::<[u64; 3]>();
    // SAFETY: the layout is not empty.
    let block = unsafe { alloc(layout) };
    assert!(!block.is_null());
    (std::hint::black_box(block), layout)
}

/// Frees it as if it came from anywhere: the compiler leaves out what is written to a block
/// that it sees freed next.
///
/// # Safety
///
/// As for [`std::alloc::dealloc`].
unsafe fn dealloc(block: *mut u8, layout: Layout) {
    // SAFETY: the block is live and of that layout, unless the violation is that it is not.
    unsafe { std::alloc::dealloc(std::hint::black_box(block), layout) };
}

fn overrun() {
    let (block, layout) = block();
    // SAFETY: none. One byte too many is cleared.
    unsafe {
        block.write_bytes(0, layout.size() + 1);
        dealloc(block, layout);
    }
}

fn bit_flip() {
    let (block, layout) = block();
    // SAFETY: none. The byte is not ours.
    unsafe {
        *block.add(layout.size() + 9) ^= 0x10;
        std::hint::black_box(realloc(block, layout, 100));
    }
}

fn underrun() {
    let (block, layout) = block();
    // SAFETY: none. The bytes are not ours.
    unsafe {
        block.sub(4).copy_from_nonoverlapping(b"oops".as_ptr(), 4);
        dealloc(block, layout);
    }
}

fn double_free() {
    let (block, layout) = block();
    let address = block as usize;
    let janitor = std::thread::Builder::new().name("janitor".to_owned()).spawn(move || {
        // SAFETY: the block is live.
        unsafe { dealloc(address as *mut u8, layout) };
    });
    janitor.expect("threads can be spawned").join().expect("it does not panic");
    // SAFETY: none. The block is freed already.
    unsafe { dealloc(block, layout) };
}

fn write_after_free() {
    let (block, layout) = block();
    // SAFETY: none, from the second line on.
    unsafe {
        dealloc(block, layout);
        block.add(8).copy_from_nonoverlapping(b"still here".as_ptr(), 10);
    }
    // Until the block's memory is to be used again.
    for _ in 0..200_000 {
        drop(std::hint::black_box(Box::new(0)));
    }
}

fn wrong_size() {
    let (block, _) = block();
    // SAFETY: none. The layout is another.
    unsafe { dealloc(block, Layout::new::<[u64; 4]>()) };
}

fn wrong_align() {
    let (block, _) = block();
    // SAFETY: none. The layout is another.
    unsafe { dealloc(block, Layout::new::<[u8; 24]>()) };
}

fn free_stack() {
    let mut variable = [0_u64; 3];
    // SAFETY: none. The variable was not allocated.
    unsafe { dealloc((&raw mut variable).cast(), Layout::new::<[u64; 3]>()) };
}

fn free_static() {
    static VARIABLE: [u64; 3] = [0; 3];
    // SAFETY: none. The variable was not allocated.
    unsafe { dealloc((&raw const VARIABLE).cast_mut().cast(), Layout::new::<[u64; 3]>()) };
}

fn free_interior() {
    let (block, _) = block();
    // SAFETY: none. The block does not begin there.
    unsafe { dealloc(block.add(8), Layout::new::<[u64; 2]>()) };
}

fn free_malloc() {
    // SAFETY: none. The block is the C library's.
    unsafe { dealloc(libc::malloc(24).cast(), Layout::new::<[u64; 3]>()) };
}

fn unnoticed() {
    let (block, layout) = block();
    // SAFETY: none. The byte is not ours.
    unsafe { block.add(layout.size()).write(0) };
    println!("{:?}", check::verify());
}

fn leak() {
    for size in [10, 10, 3000] {
        std::mem::forget(std::hint::black_box(vec![0_u8; size]));
    }
    check::assert_no_leaks(&Service::current());
}
