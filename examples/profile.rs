//! Reads heap profiles that were kept as JSON, and writes them for other tools.
//!
//! ```sh
//! cargo run --features profile,serde --example profile -- heap.json earlier.json
//! ```
//!
//! Prints the table of each, and of the difference of the first to the second, if there are two.
//! Beside each `heap.json` it writes `heap.pb.gz`, for `go tool pprof` and others; `heap.addresses.pb.gz`,
//! without names; `heap.folded`, for flame graphs; and what is in the tables, as JSON. A program keeps a
//! profile with `serde_json::to_writer(file, &dogtag::profile::live())`.
//!
//! Its exit status is 0 if all files were read and written.

use dogtag::profile::Profile;
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut profiles = Vec::new();
    for file in &files {
        let text = fs::read(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
        let profile: Profile = serde_json::from_slice(&text)
            .map_err(|error| format!("{} is no profile: {error}", file.display()))?;
        write(&profile, file)?;
        profiles.push(profile);
    }
    match &profiles[..] {
        [] => {
            return Err("name the profile to read, and an earlier one to compare it with, if you like".into());
        }
        [later, earlier, ..] => {
            write(&later.difference(earlier), &files[0].with_extension("difference.json"))?
        }
        _ => {}
    }
    Ok(())
}

fn write(profile: &Profile, file: &Path) -> Result<(), Box<dyn Error>> {
    println!("{}\n\n{profile:.5}\n{:.10}\n{}", file.display(), profile.by_function(), profile.by_service());
    let create = |extension| File::create(file.with_extension(extension));
    profile.write_pprof(create("pb.gz")?)?;
    profile.pprof().without_names().write(create("addresses.pb.gz")?)?;
    profile.write_folded(create("folded")?)?;
    serde_json::to_writer(create("services.json")?, &profile.by_service().rows)?;
    serde_json::to_writer(create("functions.json")?, &profile.by_function().rows)?;
    serde_json::to_writer(create("code.json")?, &profile.by_own_code().rows)?;
    Ok(())
}
