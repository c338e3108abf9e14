//! What stands under other people's tests: dogtag as the global allocator, and a look at its
//! books when the process ends. Without a feature there is nothing: how the tests do by themselves.
//!
//! `.ci/suites` makes a crate of this file and has each of their test programs link it.
#![cfg(feature = "plain")]

use std::fs;
use std::io::Write;

#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();

// Before `main`, so that the look is taken after everything else that is done at exit.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    // SAFETY: the function is there as long as the program, and does not unwind.
    assert_eq!(unsafe { libc::atexit(look) }, 0, "atexit has no place left");
}

/// Says in a file what was found; `.ci/suites` misses it if nothing could be said.
extern "C" fn look() {
    let Some(directory) = std::env::var_os("UNDERNEATH") else { return };
    let found = books().and_then(|fine| blocks().map(|also| fine + &also));
    let (word, text) = match &found {
        Ok(text) => ("fine", text),
        Err(text) => ("wrong", text),
    };
    let path = std::path::Path::new(&directory).join(std::process::id().to_string());
    // A program may be forked, or be another one after `exec`: all that it says is kept.
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(format!("{word}: {text}\n").as_bytes()));
    if found.is_err() || written.is_err() {
        // SAFETY: ends the process; what else is done at exit is before this.
        unsafe { libc::_exit(86) };
    }
}

/// The ledger says nothing that cannot be.
fn books() -> Result<String, String> {
    let snapshot = dogtag::snapshot();
    if snapshot.lost.blocks > 0 {
        return Err(format!("{:?}", snapshot.lost));
    }
    for (name, usage) in
        snapshot.rows.iter().map(|row| (row.name.as_str(), row.usage)).chain([("all", snapshot.totals)])
    {
        if usage.freed_blocks > usage.allocated_blocks || usage.freed_bytes > usage.allocated_bytes {
            return Err(format!("{name} has freed more than it has allocated: {usage:?}"));
        }
        if usage.bytes() < usage.blocks() || (usage.blocks() == 0) != (usage.bytes() == 0) {
            return Err(format!("{name} has no byte for each live block: {usage:?}"));
        }
    }
    if snapshot.totals.blocks() == 0 || snapshot.totals.freed_blocks == 0 {
        return Err(format!("hardly anything was counted: {:?}", snapshot.totals));
    }
    // The two are read one after the other: threads that still run may do much in between.
    let mut held = (0, 0);
    for _ in 0..100 {
        let snapshot = dogtag::snapshot();
        let jemalloc = snapshot.jemalloc.ok_or("jemalloc holds nothing")?;
        held = (snapshot.totals.bytes(), jemalloc.allocated);
        if held.0 <= held.1 {
            return Ok(format!("{} blocks", snapshot.totals.allocated_blocks));
        }
        std::thread::yield_now();
    }
    Err(format!("{} bytes are live, and jemalloc holds only {}", held.0, held.1))
}

/// Nothing was done to a block that is still there.
#[cfg(feature = "memory-check")]
fn blocks() -> Result<String, String> {
    let verified = dogtag::check::verify();
    if verified.violations > 0 || verified.live_blocks == 0 {
        return Err(format!("{verified:?}"));
    }
    Ok(format!(", {} looked at", verified.live_blocks + verified.quarantined_blocks))
}

#[cfg(not(feature = "memory-check"))]
fn blocks() -> Result<String, String> {
    Ok(String::new())
}
