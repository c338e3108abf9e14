//! Looks whether jemalloc has `free_sized`, which is shorter than `sdallocx`: 5.3.1 has it, and with another version of
//! tikv-jemalloc-sys, or by `JEMALLOC_OVERRIDE`, it may be older.
//!
//! (Cargo also wants a build script of a package that has `links`, which keeps two versions of dogtag out of one
//! program.)

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(dogtag_free_sized, dogtag_free_sized_prefixed)");
    // What tikv-jemalloc-sys has built; it says nothing where it has built none.
    let Some(root) = std::env::var_os("DEP_JEMALLOC_ROOT") else { return };
    let header = Path::new(&root).join("include/jemalloc/jemalloc.h");
    let Ok(text) = std::fs::read_to_string(&header) else { return };
    println!("cargo::rerun-if-changed={}", header.display());
    let name = text.lines().find_map(|line| Some(line.split_once("define je_free_sized ")?.1.trim()));
    let is_prefixed = name == Some("_rjem_free_sized");
    if is_prefixed {
        println!("cargo::rustc-cfg=dogtag_free_sized_prefixed");
    }
    if is_prefixed || name == Some("free_sized") {
        println!("cargo::rustc-cfg=dogtag_free_sized");
    }
}
