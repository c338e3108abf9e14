//! The functions at an address, by debug information.
//!
//! The library that reads it has a lock and a cache, and takes no heed of forks: in a child that was
//! forked while another thread looked something up, both stay as they were, for ever. Such a child
//! asks it no more.

use super::fork::{ForkHook, ForkOrder, at_load, register_fork_hook};
use crate::sync::{AtomicBool, AtomicUsize, Ordering};
use std::ffi::c_void;
#[cfg(any(feature = "memory-check", feature = "sampled-guard"))]
use std::{fmt, ptr};

/// Threads that are looking something up.
static ASKING: AtomicUsize = AtomicUsize::new(0);

/// Whether this process was forked meanwhile.
static IS_STUCK: AtomicBool = AtomicBool::new(false);

/// Calls `each` with the functions that the instruction at `address` is of, innermost first; not at all
/// where nothing is known of it.
pub(crate) fn resolve(address: *mut c_void, each: impl FnMut(&backtrace::Symbol)) {
    // The library takes every address for a return address, and subtracts one.
    ask(|| backtrace::resolve(address.wrapping_byte_add(1), each));
}

/// Writes a call stack, from its return addresses: the functions' names, their files and lines, from where the
/// program or the thread begins. Takes locks, allocates, and is slow.
#[cfg(any(feature = "memory-check", feature = "sampled-guard"))]
pub(crate) fn write_stack(f: &mut fmt::Formatter<'_>, addresses: impl Iterator<Item = usize>) -> fmt::Result {
    let mut shown = 0;
    let mut is_over = false;
    for address in addresses {
        if is_over {
            break;
        }
        // The return address may be the next function's first.
        let call = ptr::without_provenance_mut(address.wrapping_sub(1));
        let mut result = Ok(());
        let mut known = false;
        resolve(call, |symbol| {
            let Some(name) = symbol.name() else { return };
            known = true;
            let name = format!("{name:#}");
            is_over |= name.contains("__rust_begin_short_backtrace");
            if is_over || result.is_err() || (shown == 0 && is_ours(&name)) {
                return;
            }
            shown += 1;
            result = write!(f, "    {shown:>2}: {name}").and_then(|()| {
                match (symbol.filename(), symbol.lineno()) {
                    (Some(file), Some(line)) => writeln!(f, "\n            at {}:{line}", file.display()),
                    _ => writeln!(f),
                }
            });
        });
        result?;
        if !known {
            shown += 1;
            writeln!(f, "    {shown:>2}: {address:#x}")?;
        }
    }
    Ok(())
}

/// Frames between the program's code and the place where the stack was taken.
#[cfg(any(feature = "memory-check", feature = "sampled-guard"))]
fn is_ours(name: &str) -> bool {
    const OURS: [&str; 8] = [
        "dogtag::",
        "<dogtag::",
        "backtrace::",
        "__rust_",
        "__rustc",
        "alloc::alloc::",
        "<alloc::alloc::Global",
        "core::ops::function::FnOnce",
    ];
    OURS.iter().any(|prefix| name.starts_with(prefix))
}

/// Forgets the debug information that was read.
#[cfg(feature = "profile")]
pub(crate) fn clear_cache() {
    ask(backtrace::clear_symbol_cache);
}

fn ask(ask: impl FnOnce()) {
    /// `each` may panic.
    struct Asking;

    impl Drop for Asking {
        fn drop(&mut self) {
            ASKING.fetch_sub(1, Ordering::Release);
        }
    }

    ASKING.fetch_add(1, Ordering::SeqCst);
    let _asking = Asking;
    if !IS_STUCK.load(Ordering::Relaxed) {
        ask();
    }
}

static FORK_HOOK: ForkHook = ForkHook { order: ForkOrder::Last, before: || (), in_parent: || (), in_child };

fn in_child() {
    if ASKING.load(Ordering::SeqCst) != 0 {
        IS_STUCK.store(true, Ordering::Relaxed);
    }
}

fn register() {
    register_fork_hook(&FORK_HOOK);
}

at_load!(register);

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn begins_here(number: u64) -> u64 {
        std::hint::black_box(number) * 3
    }

    #[test]
    fn the_first_instruction_of_a_function_is_its_own() {
        assert_eq!(begins_here(2), 6);
        let mut names = Vec::new();
        resolve(begins_here as *mut c_void, |symbol| {
            names.extend(symbol.name().map(|name| name.to_string()))
        });
        assert!(names.iter().any(|name| name.contains("begins_here")), "{names:?}");
    }
}
