//! Which frames of a call stack are shown, and which are of the program's own crates.

use super::frame::Frame;
use std::ops::Range;

/// Returns the frames that say something, of a stack from the innermost function outwards: without
/// the allocator at the top, and without what begins the program or the thread at the bottom. One
/// frame is left of any stack.
pub(super) fn shown(stack: &[&Frame]) -> Range<usize> {
    let mut end = stack.len();
    if let Some(begin) =
        stack.iter().position(|frame| frame.function.contains("__rust_begin_short_backtrace"))
    {
        end = begin;
    }
    while end > 1 && begins_threads(&stack[end - 1].function) {
        end -= 1;
    }
    let mut start = 0;
    for (i, frame) in stack[..end].iter().enumerate() {
        if is_allocator(&frame.function) {
            start = i + 1;
        } else if !is_between(&frame.function) {
            break;
        }
    }
    match end {
        0 => 0..stack.len().min(1),
        _ => start.min(end - 1)..end,
    }
}

/// A regular expression for tools that look up names themselves, and leave out functions that it
/// matches as a whole, with all that they called: pprof's `drop_frames`.
pub(super) const DROPPED: &str = "(_rjem_|je_).*|malloc|calloc|realloc|reallocarray|memalign|aligned_alloc\
    |posix_memalign|operator new|operator new[\\[(].*|_Zn[wa].*|__rust_(re)?alloc.*|__rustc::.*|__rdl_.*|__rg_.*\
    |<*(dogtag::(allocator|backend|check|ledger|owner|profile|sampled_guard|sys|unwind)|dogtag_c|tikv_jemallocator\
    |tikv_jemalloc_sys|alloc::alloc|alloc::raw_vec)::.*";

fn is_allocator(function: &str) -> bool {
    const PATHS: [&str; 19] = [
        "dogtag::allocator::",
        "dogtag::backend::",
        "dogtag::check::",
        "dogtag::ledger::",
        "dogtag::owner::",
        "dogtag::profile::",
        "dogtag::sampled_guard::",
        "dogtag::sys::",
        "dogtag::unwind::",
        "dogtag_c::",
        "tikv_jemallocator::",
        "tikv_jemalloc_sys::",
        "alloc::alloc::",
        "alloc::raw_vec::",
        "__rustc::",
        "__rust_alloc",
        "__rust_realloc",
        "__rdl_",
        "__rg_",
    ];
    const C: [&str; 8] = [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "memalign",
        "aligned_alloc",
        "posix_memalign",
        "operator new",
    ];

    let path = function.trim_start_matches('<');
    PATHS.iter().any(|prefix| path.starts_with(prefix))
        || C.contains(&function)
        // Operators new, as C++ names them for the linker, and in words.
        || ["_Znw", "_Zna", "operator new(", "operator new[]"].iter().any(|name| function.starts_with(name))
        || ["_rjem_", "je_"].iter().any(|prefix| function.starts_with(prefix))
}

/// The standard library's adapters, which may stand between functions of the allocator.
fn is_between(function: &str) -> bool {
    let path = function.trim_start_matches('<');
    path.starts_with("core::") || path.starts_with("std::thread::local::")
}

fn begins_threads(function: &str) -> bool {
    matches!(
        function,
        "_start" | "__libc_start_main" | "__libc_start_call_main" | "__libc_start_main_impl"
            | "start_thread" | "clone" | "__clone" | "clone3" | "__clone3" | "thread_start"
    ) || function.starts_with("__libc_start_main@")
        // Of threads of the standard library, with or without their path.
        || (function.starts_with("std::sys::") && function.ends_with("::thread_start"))
}

/// What tells the program's own functions.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The crate that is named like the executable.
    pub(super) name: String,
    /// Whether own functions have paths: then what has none is not the program's, but of dependencies
    /// that were built without debug information.
    pub(super) has_paths: bool,
}

impl Program {
    pub(super) fn new(has_paths: bool) -> Self {
        let program = std::env::current_exe().unwrap_or_default();
        let name = program.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
        Self { name, has_paths }
    }

    /// Whether a function is of the program's own crates. `is_in_program` says that its code is in the
    /// program itself, not in a library beside it.
    pub(super) fn is_own(&self, function: &str, file: Option<&str>, is_in_program: bool) -> bool {
        /// In paths of sources that are not the program's: of crates that Cargo has downloaded, and of
        /// the standard library, as it was built and as it is installed.
        const FOREIGN: [&str; 7] = [
            "/registry/src/",
            "/git/checkouts/",
            "/.cargo/git/",
            "/rustc/",
            "/rust/deps/",
            "/rustlib/src/rust/",
            "/usr/include/",
        ];

        let is_ours = |file: &str| !FOREIGN.iter().any(|foreign| file.contains(foreign));
        let Some(name) = crate_of(function) else {
            // Not Rust's, so the path has to tell, which of the C library is any.
            return is_in_program && file.is_some_and(is_ours);
        };
        if name == self.name {
            return true;
        }
        if is_standard(function) || name == "dogtag" || name.starts_with("dogtag_") {
            return false;
        }
        file.map_or(!self.has_paths, is_ours)
    }
}

/// Whether a function is of the standard library, or of a crate that is part of it.
pub(super) fn is_standard(function: &str) -> bool {
    const STANDARD: [&str; 8] =
        ["std", "core", "alloc", "proc_macro", "test", "std_detect", "hashbrown", "compiler_builtins"];

    crate_of(function).is_some_and(|name| STANDARD.contains(&name))
}

/// Returns the crate of a Rust function: the first part of its path, or of the path of the type (or
/// of the trait, for a generic type) that it is a method of.
fn crate_of(function: &str) -> Option<&str> {
    let mut rest = function;
    loop {
        // What may stand in front of a type's path.
        let before = rest;
        for prefix in ["<", "&", "*const ", "*mut ", "mut ", "dyn ", "[", "("] {
            rest = rest.strip_prefix(prefix).unwrap_or(rest);
        }
        if rest.len() == before.len() {
            break;
        }
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    if end > 0 && rest[end..].starts_with("::") {
        return Some(&rest[..end]);
    }
    // `<T as tower::Service<R>>::call`
    let (_, of) = function.strip_prefix('<')?.split_once(" as ")?;
    let end = of.find("::")?;
    Some(of[..end].trim_start_matches('<'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(functions: &[&str]) -> Vec<Frame> {
        functions
            .iter()
            .map(|function| Frame { function: (*function).to_owned(), ..Frame::default() })
            .collect()
    }

    #[track_caller]
    fn check(functions: &[&str], expected: &[&str]) {
        let stack = stack(functions);
        let stack: Vec<&Frame> = stack.iter().collect();
        let names: Vec<&str> = stack[shown(&stack)].iter().map(|frame| frame.function.as_str()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn the_allocator_and_the_beginning_are_cut_off() {
        check(
            &[
                "dogtag::profile::samples::take",
                "core::option::Option<T>::map_or",
                "dogtag::allocator::plain::allocate_slow",
                "__rustc::__rust_alloc",
                "alloc::alloc::alloc",
                "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
                "alloc::raw_vec::RawVecInner<A>::try_allocate_in",
                "alloc::vec::Vec<T>::with_capacity",
                "rumqttd::router::Router::new",
                "rumqttd::main",
                "std::sys::backtrace::__rust_begin_short_backtrace",
                "std::rt::lang_start",
                "main",
                "__libc_start_call_main",
            ],
            &["alloc::vec::Vec<T>::with_capacity", "rumqttd::router::Router::new", "rumqttd::main"],
        );
        check(
            &["_rjem_malloc", "malloc", "make", "main", "__libc_start_call_main", "_start"],
            &["make", "main"],
        );
        check(&["_Znwm", "Table::grow()", "work", "start_thread", "__clone3"], &["Table::grow()", "work"]);
    }

    #[test]
    fn tools_drop_the_same_functions() {
        // As pprof reads it.
        let dropped = regex::Regex::new(&format!("^({DROPPED})$")).unwrap();
        for (function, expected) in [
            ("malloc", true),
            ("malloc_trim", false),
            ("my_malloc", false),
            ("_rjem_mallocx", true),
            ("je_rallocx", true),
            ("operator new", true),
            ("operator new(unsigned long)", true),
            ("operator new[](unsigned long)", true),
            ("operator newer", false),
            ("_Znwm", true),
            ("_ZnamSt11align_val_t", true),
            ("_ZN5Table4growEv", false),
            ("__rust_alloc_zeroed", true),
            ("__rust_realloc", true),
            ("__rust_begin_short_backtrace", false),
            ("__rustc::__rust_alloc", true),
            ("__rdl_alloc", true),
            ("__rg_realloc", true),
            ("<dogtag::allocator::Dogtag<B> as core::alloc::global::GlobalAlloc>::alloc", true),
            ("dogtag::sys::map", true),
            ("dogtag::service::register::register", false),
            ("dogtag_c::blocks::plain::allocate", true),
            ("dogtag_pool::pool::Pool::new", false),
            ("<tikv_jemallocator::Jemalloc as core::alloc::global::GlobalAlloc>::alloc", true),
            ("alloc::alloc::exchange_malloc", true),
            ("<alloc::alloc::Global as core::alloc::Allocator>::allocate", true),
            ("alloc::raw_vec::RawVec<T,A>::grow_one", true),
            ("alloc::vec::Vec<T,A>::push", false),
            ("app::malloc", false),
        ] {
            assert_eq!(is_allocator(function), expected, "{function}");
            assert_eq!(dropped.is_match(function), expected, "{function}");
        }
    }

    #[test]
    fn what_dogtag_has_for_itself_is_shown() {
        check(
            &["__rust_alloc", "dogtag::service::register::register", "app::main"],
            &["dogtag::service::register::register", "app::main"],
        );
    }

    #[test]
    fn adapters_are_cut_off_between_the_allocators_functions_only() {
        check(&["malloc", "core::iter::adapters::map", "app::f"], &["core::iter::adapters::map", "app::f"]);
    }

    #[test]
    fn a_frame_is_left() {
        check(&[], &[]);
        check(&["malloc", "calloc"], &["calloc"]);
        check(
            &["std::sys::backtrace::__rust_begin_short_backtrace", "main"],
            &["std::sys::backtrace::__rust_begin_short_backtrace"],
        );
        check(&["_start"], &["_start"]);
        check(&["malloc", "std::sys::backtrace::__rust_begin_short_backtrace"], &["malloc"]);
    }

    #[test]
    fn crates_of_functions() {
        for (function, expected) in [
            ("tokio::runtime::task::poll", Some("tokio")),
            ("<alloc::vec::Vec<T> as core::iter::FromIterator<T>>::from_iter", Some("alloc")),
            ("<&mut app::Reader as std::io::Read>::read", Some("app")),
            ("<[app::Item] as alloc::slice::Concat<T>>::concat", Some("app")),
            ("<T as tower::Service<R>>::call", Some("tower")),
            ("<(A,B) as axum::handler::Handler>::call", Some("axum")),
            ("<dyn app::Shape as app::Draw>::draw", Some("app")),
            ("<F as core::future::into_future::IntoFuture>::into_future", Some("core")),
            ("malloc", None),
            ("0x1234", None),
            ("<", None),
            ("", None),
        ] {
            assert_eq!(crate_of(function), expected, "{function}");
        }
    }

    #[test]
    fn own_code_is_what_is_built_where_the_program_is() {
        let program = Program { name: "broker".to_owned(), has_paths: false };
        let registry = Some("/home/x/.cargo/registry/src/index-1/slab-0.4.9/src/lib.rs");
        for (function, file, expected) in [
            ("router::Router::new", Some("/home/x/router/src/lib.rs"), true),
            ("slab::Slab<T>::with_capacity", registry, false),
            ("api::get", Some("/home/x/.cargo/git/checkouts/api-1/2/src/lib.rs"), false),
            ("alloc::vec::Vec<T>::push", Some("/rustc/0123/library/alloc/src/vec/mod.rs"), false),
            // Inlined into the program's code, with the program's path or none.
            ("core::iter::Iterator::map", None, false),
            ("router::inlined", None, true),
            // Installed by Cargo, so that its own sources are downloaded as well.
            ("broker::main", registry, true),
            ("work", Some("/home/x/c/work.c"), true),
            ("work", Some("/home/x/.cargo/registry/src/index-1/zstd-sys-2.0.0/zstd/work.c"), false),
            ("getaddrinfo", None, false),
            ("dogtag::service::handle::Service::run", Some("/home/x/dogtag/src/service/handle.rs"), false),
        ] {
            assert_eq!(program.is_own(function, file, true), expected, "{function}");
        }
        // The C library with debug information, and a plug-in of the program's workspace.
        assert!(!program.is_own("qsort", Some("./stdlib/msort.c"), false));
        assert!(program.is_own("plugin::start", Some("/home/x/plugin/src/lib.rs"), false));
        // Dependencies alone are without debug information.
        let program = Program { has_paths: true, ..program };
        assert!(!program.is_own("slab::Slab<T>::insert", None, true));
        assert!(program.is_own("broker::main", None, true));
    }
}
