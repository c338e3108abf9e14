//! What the path of a Rust source file says: the crate, and the module in it.
//!
//! With `debug = "line-tables-only"` functions that were inlined have but their last name, and the path of their
//! file. So the path has to do: `/rustc/HASH/library/alloc/src/vec/mod.rs` is `alloc::vec`.

use super::frame::Frame;
use std::collections::BTreeMap;

/// The names of crates by their directories, as functions have them whose whole path is known. A
/// directory may be called otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct Crates {
    names: BTreeMap<String, String>,
    /// Whether the program's own code has paths at all.
    pub(super) have_paths: bool,
}

impl Crates {
    /// Notes the crate of a function whose path is known, if its file is where that says.
    pub(super) fn learn(&mut self, frame: &Frame) {
        let Some(source) = frame.file.as_deref().and_then(Source::of) else { return };
        // Methods of traits are named by their types, which may be of other crates.
        if is_bare(&frame.function) || frame.function.starts_with('<') || source.is_crate_known() {
            return;
        }
        let mut path = frame.function.split("::");
        let Some(name) = path.next() else { return };
        if source.modules.iter().all(|module| path.next() == Some(module)) && path.next().is_some() {
            self.names.entry(source.directory.to_owned()).or_insert_with(|| name.to_owned());
        }
    }

    /// Returns the name of a function that debug information gives without its path: with the crate
    /// and the module of its source file. Of a function that is not Rust's it is the name as it is.
    pub(super) fn full_name(&self, function: &str, file: Option<&str>) -> Option<String> {
        let source = file.filter(|_| is_bare(function)).and_then(Source::of)?;
        let learned = self.names.get(source.directory).filter(|_| !source.is_crate_known());
        let name = learned.cloned().or_else(|| source.crate_name())?;
        let end = function.find('<').filter(|end| *end > 0).unwrap_or(function.len());
        let function = if function.starts_with('{') && !function.starts_with("{{") {
            "{{closure}}"
        } else {
            &function[..end]
        };
        let path: Vec<&str> = [&*name].into_iter().chain(source.modules).chain([function]).collect();
        Some(path.join("::"))
    }
}

/// Whether a name is without its path, as of C's functions and of those in line tables.
pub(super) fn is_bare(function: &str) -> bool {
    let end = function.find('<').unwrap_or(function.len());
    !function[..end].contains("::") && !function.starts_with('<')
}

/// Whether a path is of a Rust source file.
pub(super) fn is_rust(file: &str) -> bool {
    file.ends_with(".rs")
}

/// Where a Rust source file is.
struct Source<'a> {
    /// The crate's.
    directory: &'a str,
    modules: Vec<&'a str>,
    /// The name of a target of its own: of `src/bin/NAME.rs`, and of a file outside of `src`.
    target: Option<&'a str>,
}

impl<'a> Source<'a> {
    fn of(file: &'a str) -> Option<Self> {
        let path = file.strip_suffix(".rs")?;
        let (directory, rest) = match path.rsplit_once("/src/") {
            Some(parts) => parts,
            None => match path.strip_prefix("src/") {
                Some(rest) => ("", rest),
                None => {
                    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
                    let folder = directory.rsplit('/').next();
                    let target = if is_root(name) { folder } else { Some(name) };
                    return Some(Self { directory, modules: Vec::new(), target });
                }
            },
        };
        let mut modules: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
        let mut target = None;
        if modules.len() > 1 && modules[0] == "bin" {
            target = Some(modules[1]);
            modules.drain(..2);
        }
        if modules.last().is_some_and(|last| is_root(last)) {
            modules.pop();
        }
        Some(Self { directory, modules, target })
    }

    fn folder(&self) -> &'a str {
        self.directory.rsplit('/').next().unwrap_or_default()
    }

    /// Whether the path has the crate's name: of the standard library, of registries, of targets.
    fn is_crate_known(&self) -> bool {
        self.target.is_some()
            || without_version(self.folder()).is_some()
            || self.directory.rsplit_once('/').is_some_and(|(parent, _)| parent.ends_with("/library"))
    }

    fn crate_name(&self) -> Option<String> {
        let folder = self.folder();
        let name = self.target.or_else(|| without_version(folder)).unwrap_or_else(|| {
            // `git/checkouts/NAME-HASH/REVISION`
            let mut parents = self.directory.rsplit('/').skip(1);
            match (parents.next().and_then(|name| name.rsplit_once('-')), parents.next()) {
                (Some((name, _)), Some("checkouts")) => name,
                _ => folder,
            }
        });
        (!name.is_empty()).then(|| name.replace('-', "_"))
    }
}

/// Whether a file is called like those that are no module by themselves.
fn is_root(name: &str) -> bool {
    matches!(name, "lib" | "main" | "mod")
}

/// Returns the name in `NAME-1.2.3`.
fn without_version(folder: &str) -> Option<&str> {
    folder.match_indices('-').map(|(at, _)| folder.split_at(at)).find_map(|(name, version)| {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        let mut parts = version[1..].splitn(3, '.');
        let is_version = parts.next().is_some_and(is_number)
            && parts.next().is_some_and(is_number)
            && parts.next().is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        is_version.then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: &str) -> Frame {
        Frame { function: function.to_owned(), file: Some(file.to_owned()), ..Frame::default() }
    }

    #[test]
    fn paths_say_crates_and_modules() {
        let registry = "/home/x/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
        for (function, file, expected) in [
            (
                "with_capacity<u8, alloc::alloc::Global>",
                "/rustc/0123/library/alloc/src/vec/mod.rs",
                "alloc::vec::with_capacity",
            ),
            ("alloc", "/rustc/0123/library/alloc/src/alloc.rs", "alloc::alloc::alloc"),
            ("map", "/x/lib/rustlib/src/rust/library/core/src/option.rs", "core::option::map"),
            ("resize", "/rust/deps/hashbrown-0.16.0/src/raw/mod.rs", "hashbrown::raw::resize"),
            ("insert", &format!("{registry}/foo-2d-1.0.0-rc.1+a.b/src/lib.rs"), "foo_2d::insert"),
            ("{closure#0}", "/home/x/router/src/router/mod.rs", "router::router::{{closure}}"),
            ("work", "/home/x/src/app/src/main.rs", "app::work"),
            ("work", "/home/x/app/src/bin/my-tool.rs", "my_tool::work"),
            ("work", "/home/x/app/src/bin/tool/args.rs", "tool::args::work"),
            ("work", "/home/x/app/examples/heap.rs", "heap::work"),
            ("work", "/home/x/app/tests/all/main.rs", "all::work"),
            ("get", "/home/x/.cargo/git/checkouts/web-api-0123abcd/89ef/src/lib.rs", "web_api::get"),
            (
                "get",
                "/home/x/.cargo/git/checkouts/web-0123abcd/89ef/crates/api-core/src/a.rs",
                "api_core::a::get",
            ),
        ] {
            assert_eq!(Crates::default().full_name(function, Some(file)).as_deref(), Some(expected));
        }
        for (function, file) in [
            ("work", Some("/home/x/c/work.c")),
            ("malloc", None),
            ("app::work", Some("/home/x/app/src/main.rs")),
            ("<app::A as app::B>::c", Some("/home/x/app/src/main.rs")),
            ("work", Some("src/main.rs")),
        ] {
            assert_eq!(Crates::default().full_name(function, file), None, "{function}");
        }
    }

    #[test]
    fn a_crate_may_be_called_otherwise_than_its_directory() {
        let mut crates = Crates::default();
        for other in [
            // Of a trait, in a file of another crate; in a module that is not the file's; without its path.
            frame("<other::Type as app::Trait>::f", "/home/x/checkout/src/table.rs"),
            frame("other::f", "/home/x/checkout/src/table.rs"),
            frame("f", "/home/x/checkout/src/table.rs"),
        ] {
            crates.learn(&other);
        }
        let name = |crates: &Crates| crates.full_name("g", Some("/home/x/checkout/src/a/b.rs")).unwrap();
        assert_eq!(name(&crates), "checkout::a::b::g");
        crates.learn(&frame("app::table::Table<T>::f", "/home/x/checkout/src/table.rs"));
        assert_eq!(name(&crates), "app::a::b::g");
        // Where the path says it, nothing is learned.
        crates.learn(&frame("app::f", "/rustc/0123/library/alloc/src/lib.rs"));
        let name = crates.full_name("f", Some("/rustc/0123/library/alloc/src/slice.rs"));
        assert_eq!(name.as_deref(), Some("alloc::slice::f"));
    }
}
