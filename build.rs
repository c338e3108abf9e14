//! Does nothing. Cargo wants a build script of a package that has `links`, which keeps two
//! versions of dogtag out of one program.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
