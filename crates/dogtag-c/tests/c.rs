//! Programs in C, compiled by the system's compiler, with the static library and with the shared one
//! preloaded, as they ship and with memory-check. Their sources are in `tests/c`; each prints "ok" if
//! it found everything right.
#![cfg(all(feature = "jemalloc-stats", not(feature = "memory-check")))]

mod programs;

use programs::{Kind, Link, compile, folder, library, root, run, source, watch};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const PLAIN: Kind =
    Kind { name: "plain", features: "interpose,skynet", defines: &["-DINTERPOSED"], slowness: 1 };

const CHECKED: Kind = Kind {
    name: "checked",
    features: "interpose,skynet,memory-check",
    defines: &["-DINTERPOSED", "-DCHECKED"],
    slowness: 10,
};

/// Without `interpose`: beside the C library's own `malloc`.
const BESIDE: Kind = Kind { name: "beside", features: "skynet", defines: &[], slowness: 1 };

const KINDS: [Kind; 2] = [PLAIN, CHECKED];

#[test]
fn every_function_of_the_interface() {
    for kind in [PLAIN, CHECKED, BESIDE] {
        let program = compile("interface", kind, Link::Static);
        run(Command::new(program)).ok();
    }
}

#[test]
fn the_c_librarys_functions() {
    for kind in KINDS {
        run(Command::new(compile("libc", kind, Link::Static))).ok();
        run(Command::new(compile("libc", kind, Link::Shared))).ok();
    }
}

/// `DOGTAG_EFFORT` multiplies the number of operations.
#[test]
fn random_operations_do_not_drift() {
    let operations = watch::random::times(5_000_000);
    for kind in KINDS {
        let mut random = Command::new(compile("random", kind, Link::Static));
        random.arg((operations / kind.slowness).to_string());
        run(random).ok();
    }
}

/// `DOGTAG_EFFORT` multiplies the number of forks.
#[test]
fn forks_threads_plugins_and_exits() {
    let forks = watch::random::times(40).to_string();
    for kind in KINDS {
        let plugin = folder(kind).join("plugin.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&plugin).arg(source("plugin"));
        run(cc).success();
        let mut program = Command::new(compile("processes", kind, Link::Shared));
        program.arg(&plugin).arg(&forks);
        run(program).ok();
    }
}

#[test]
fn violations_are_caught() {
    let program = compile("violations", CHECKED, Link::Shared);
    let mut list = Command::new(&program);
    list.arg("list");
    let list = run(list).success();
    assert!(list.lines().count() > 10, "{list}");
    for line in list.lines() {
        let (name, report) = line.split_once('\t').expect("a name and what is reported");
        let mut violation = Command::new(&program);
        violation.arg(name);
        let ended = run(violation);
        if report == "-" {
            ended.ok();
            continue;
        }
        ended.aborted(&[&format!("dogtag: {report}: "), "culprit"]);
        let mut handled = Command::new(&program);
        handled.args(["handler", name]);
        let told = run(handled).success();
        assert!(told.starts_with("violation=") && told.ends_with("ok\n"), "{name}: {told}");
        assert!(told.contains("report=yes"), "{name}: {told}");
    }
}

/// A program with a handler of its own, on a small stack, which faults and forks.
#[test]
fn handlers_of_faults_and_forks_do_what_they_always_do() {
    for kind in KINDS {
        run(Command::new(compile("faults", kind, Link::Shared))).ok();
    }
    // And what it would be told of is told.
    let mut crime = Command::new(compile("faults", CHECKED, Link::Shared));
    crime.arg("crime");
    run(crime).aborted(&["dogtag: read after free: ", "in an access"]);
    // Its own handler is called for what nobody has taken the access to.
    let mut crime = Command::new(compile("faults", CHECKED, Link::Shared));
    crime.arg("crime").env("DOGTAG_CHECK", "protect=0");
    run(crime).ok();
    // Soon, and before the process ends.
    let mut late = Command::new(compile("faults", CHECKED, Link::Shared));
    late.arg("waits").env("DOGTAG_CHECK", "look=1");
    run(late).aborted(&["dogtag: write after free: ", "in a look at the quarantine"]);
}

#[test]
fn copies_do_what_they_always_do() {
    for kind in KINDS {
        run(Command::new(compile("copies", kind, Link::Static))).ok();
        run(Command::new(compile("copies", kind, Link::Shared))).ok();
    }
}

/// Each kind of violation at each size, in C and in C++, by programs that know nothing of the library:
/// rightly named at the crime or at the next call.
#[test]
fn each_kind_is_ended_at_once() {
    /// What is found at the exit, or by nobody.
    const LATER: &[&str] = &[
        "load past the end",
        "store to freed",
        "store to freed, first byte",
        "store to freed, 50 frees later",
        "load from freed",
    ];
    let preload = library(CHECKED).join("libdogtag_c.so");
    for language in ["c", "c++"] {
        let program = folder(CHECKED).join(format!("kinds-{language}"));
        let mut cc = Command::new("cc");
        cc.args(["-x", language, "-O1", "-fno-builtin", "-w", "-o"]).arg(&program).arg(source("kinds"));
        cc.args(["-ldl", "-lstdc++"]);
        run(cc).success();
        let mut list = Command::new(&program);
        list.arg("list");
        for line in run(list).success().lines() {
            let (name, word) = line.split_once('\t').expect("a name and what is reported");
            for size in ["8", "4096", "262144"] {
                let mut kind = Command::new(&program);
                kind.args([name, size]).env("LD_PRELOAD", &preload);
                let ended = run(kind);
                let is_told = ended.stderr.starts_with(&format!("dogtag: {word}: "))
                    && !ended.output.status.success()
                    && !ended.stdout.contains('n');
                // Beyond the guard of a small block it is the neighbour's.
                let is_far = name == "store 64 past the end" && size == "8";
                // There is no access to large freed blocks.
                let is_protected = cfg!(target_arch = "x86_64") && size == "262144" && name.contains("freed");
                let is_later = (LATER.contains(&name) && !is_protected) || is_far;
                assert!(is_told || is_later, "{name}, {size} bytes: {}\n{}", ended.stdout, ended.stderr);
                assert!(!is_told || !is_later, "{name}, {size} bytes, is found at once by now");
            }
        }
    }
}

/// A report of C's functions that copy names who called them, and leaves `errno` as it is.
#[test]
fn reports_of_copies_have_call_stacks_and_leave_errno() {
    let program = folder(CHECKED).join("kinds-told");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-g", "-rdynamic", "-fno-builtin", "-w", "-o"]).arg(&program).arg(source("kinds"));
    run(cc).success();
    for name in ["memcpy 1 over the end", "snprintf over the end"] {
        let mut kind = Command::new(&program);
        kind.args([name, "8"]).env("LD_PRELOAD", library(CHECKED).join("libdogtag_c.so"));
        kind.env("DOGTAG_CHECK", "backtrace=1,reaction=leak,patience=1000").env("KINDS_ERRNO", "1");
        let ended = run(kind);
        assert!(ended.stderr.contains(" main"), "{name}: {}", ended.stderr);
        assert_eq!(ended.output.status.code(), Some(77), "{name}: {}", ended.stderr);
    }
}

#[test]
fn copies_are_not_looked_at_if_that_is_set() {
    let program = compile("violations", CHECKED, Link::Shared);
    let mut copy = Command::new(program);
    copy.arg("memcpy-from-over").env("DOGTAG_CHECK", "copies=0");
    let ended = run(copy);
    assert!(ended.stderr.contains("nobody has noticed"), "{}", ended.stderr);
}

#[test]
fn what_is_told_of_operators_can_be_set() {
    let program = compile("violations", CHECKED, Link::Shared);
    let told = |name: &str, settings: &str| {
        let mut violation = Command::new(&program);
        violation.arg(name).env("DOGTAG_CHECK", settings);
        let ended = run(violation);
        let passed = ended.output.status.code() == Some(1) && ended.stderr.contains("nobody has noticed");
        if !passed {
            ended.aborted(&["mismatch: "]);
        }
        !passed
    };
    let (none, any_type) = ("alloc-dealloc-mismatch=none", "new-delete-type-mismatch=0");
    let new = "alloc-dealloc-mismatch=new";
    for (name, settings, is_told) in [
        ("delete-of-new[]", none, false),
        ("delete-of-new[]", any_type, true),
        ("delete-wrong-size", any_type, false),
        ("delete-wrong-alignment", any_type, false),
        ("delete-wrong-size", none, true),
        ("free-sized", any_type, true),
        ("delete-of-new[]", new, true),
        ("free-of-new", any_type, true),
        ("free-of-new", new, false),
        ("delete-of-malloc", new, false),
        ("realloc-of-new", new, false),
        ("free-of-new", none, false),
    ] {
        assert_eq!(told(name, settings), is_told, "{name} with {settings:?}");
    }
}

#[test]
fn cxx_operators() {
    for kind in KINDS {
        run(Command::new(compile("operators", kind, Link::Static))).ok();
        run(Command::new(compile("operators", kind, Link::Shared))).ok();
        run(Command::new(compile("replaced", kind, Link::Shared))).ok();
        let mut oom = Command::new(compile("violations", kind, Link::Shared));
        oom.arg("new-without-memory");
        run(oom).aborted(&["dogtag: operator new: out of memory, and no C++ library"]);
    }
}

#[test]
fn as_glibc_has_it() {
    // The program without the library prints what glibc does.
    let alone = folder(PLAIN).join("glibc-alone");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&alone).arg(source("glibc"));
    run(cc).success();
    let expected = run(Command::new(&alone)).success();
    assert!(expected.lines().count() > 300, "{expected}");
    for kind in KINDS {
        let mut preloaded = Command::new(&alone);
        preloaded.env("LD_PRELOAD", library(kind).join("libdogtag_c.so"));
        let found = run(preloaded).success();
        for (expected, found) in expected.lines().zip(found.lines()) {
            assert_eq!(found, expected, "{}", kind.name);
        }
        assert_eq!(found.len(), expected.len(), "{}", kind.name);
    }
}

#[test]
fn a_forks_work_does_not_grow_with_what_was_allocated() {
    for kind in KINDS {
        run(Command::new(compile("forks", kind, Link::Shared))).ok();
    }
}

#[test]
fn skynets_functions() {
    for kind in [PLAIN, CHECKED, BESIDE] {
        let program = compile("skynet", kind, Link::Host);
        run(Command::new(&program)).ok();
        let mut oom = Command::new(program);
        oom.arg("oom");
        run(oom).aborted(&["xmalloc: Out of memory trying to allocate 4611686018427387904 bytes"]);
    }
}

#[test]
fn services_of_threads() {
    for kind in KINDS {
        let program = compile("threads", kind, Link::Shared);
        let report = folder(kind).join("threads.%p.txt");
        let mut threads = Command::new(program);
        threads.env("DOGTAG_SERVICE", "thread");
        threads.env("DOGTAG_REPORT", format!("exit,file={}", report.display()));
        let ended = run(threads);
        let pid = ended.success();
        let path = report.to_str().unwrap().replace("%p", pid.trim());
        let report = fs::read_to_string(&path).unwrap();
        fs::remove_file(path).unwrap();
        assert!(
            report.starts_with("dogtag: ") && report.contains(&format!("(pid {})", pid.trim())),
            "{report}"
        );
        // The KiB that each thread holds in the program.
        for (name, kib) in [
            ("threads-shared", 50),
            ("named-by-itself", 100),
            ("named-by-other", 200),
            ("renamed-later", 300),
        ] {
            let row = report.lines().find(|line| line.starts_with(name));
            let row = row.unwrap_or_else(|| panic!("{name} is missing:\n{report}"));
            let live: f64 = row[name.len()..].split_whitespace().next().unwrap().parse().unwrap();
            assert!((live - f64::from(kib)).abs() < 8.0, "{name} has not {kib} KiB:\n{report}");
        }
        assert!(report.contains("RSS"), "{report}");
    }
}

/// Names of all kinds, in a sandbox too.
#[test]
fn threads_allocate_under_their_names() {
    for kind in KINDS {
        let program = compile("names", kind, Link::Shared);
        let mut names = Command::new(&program);
        names.env("DOGTAG_SERVICE", "thread");
        run(names).ok();
        // The kernel cuts the last character, and the service has the name that is left.
        for (file, service) in [
            ("ééééééééé", "ééééééé\u{FFFD}"),
            ("a b\nc", "a b\nc"),
            ("longer-than-fifteen", "longer-than-fif"),
        ] {
            let copy = folder(kind).join(file);
            fs::copy(&program, &copy).unwrap();
            let mut names = Command::new(&copy);
            names.env("DOGTAG_SERVICE", "thread").arg(service);
            run(names).ok();
            fs::remove_file(copy).unwrap();
        }
    }
}

/// Handlers of forks that allocate, of libraries that come before this one.
#[test]
fn who_is_called_at_forks_may_allocate() {
    for kind in KINDS {
        let library = |number: u32| {
            let path = folder(kind).join(format!("libfork{number}.so"));
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-fPIC", "-pthread", "-o"]).arg(&path);
            cc.arg(format!("-DNUMBER={number}")).arg(source("fork_library"));
            run(cc).success();
            path
        };
        let [first, second, opened] = [1, 2, 3].map(library);
        let folder = folder(kind);
        let build = |name: &str, libraries: &[&Path]| {
            let program = folder.join(name);
            let mut cc = Command::new("cc");
            cc.args(["-std=gnu11", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", "-I"]);
            cc.arg(root().join("include"))
                .arg("-o")
                .arg(&program)
                .arg(source("fork_handlers"))
                .args(libraries);
            cc.args(["-lgcc_s", "-lm", "-ldl"]).arg(format!("-Wl,-rpath,{}", folder.display()));
            run(cc).success();
            program
        };
        let built = self::library(kind);
        let [shared, archive] = ["libdogtag_c.so", "libdogtag_c.a"].map(|name| built.join(name));
        // Whichever order they come in: linked first, in the middle, last, and preloaded.
        for (name, libraries) in [
            ("forks-static", [&*first, &second, &archive]),
            ("forks-first", [&shared, &first, &second]),
            ("forks-middle", [&first, &shared, &second]),
            ("forks-last", [&first, &second, &shared]),
        ] {
            let mut forks = Command::new(build(name, &libraries));
            forks.arg(&opened);
            run(forks).ok();
        }
        let preloaded = build("forks-preloaded", &[&first, &second]);
        for service in ["", "thread"] {
            let mut forks = Command::new(&preloaded);
            forks.env("DOGTAG_SERVICE", service).env("LD_PRELOAD", &shared).arg(&opened);
            run(forks).ok();
        }
    }
}

#[test]
fn modules_share_the_heap_however_they_are_opened() {
    for kind in KINDS {
        let folder = folder(kind).join("modules");
        fs::create_dir_all(folder.join("inner")).unwrap();
        for (name, path) in [("module.so", "$ORIGIN/inner"), ("inner/libinner.so", "")] {
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(source("module"));
            cc.arg(format!("-Wl,-rpath,{path}"));
            run(cc).success();
        }
        for link in [Link::Static, Link::Shared] {
            let mut modules = Command::new(compile("modules", kind, link));
            modules.arg(&folder);
            run(modules).ok();
        }
    }
}

#[test]
fn what_the_environment_gets_wrong_is_told() {
    let library = library(PLAIN).join("libdogtag_c.so");
    let mut wrong = Command::new("/bin/echo");
    wrong.arg("ok").env("LD_PRELOAD", library);
    wrong.env("DOGTAG_REPORT", "sometimes,exit").env("DOGTAG_SERVICE", "process");
    let ended = run(wrong);
    for text in ["DOGTAG_REPORT: \"sometimes\"", "DOGTAG_SERVICE: \"process\"", "echo (pid "] {
        assert!(ended.stderr.contains(text), "{text} is missing:\n{}", ended.stderr);
    }
    assert_eq!(ended.stdout, "ok\n");
}

/// A compiler is a large program that is there wherever this test runs.
#[test]
fn a_compiler_that_knows_nothing_of_it_compiles_the_same() {
    let object = |library: Option<PathBuf>| {
        let object = env::temp_dir().join(format!("dogtag-{}.o", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-c", "-o"])
            .arg(&object)
            .arg(source("interface"))
            .arg("-I")
            .arg(root().join("include"));
        if let Some(library) = library {
            cc.env("LD_PRELOAD", library);
        }
        let ended = run(cc);
        assert_eq!(ended.stderr, "");
        ended.success();
        let compiled = fs::read(&object).unwrap();
        fs::remove_file(object).unwrap();
        compiled
    };
    let alone = object(None);
    for kind in KINDS {
        assert!(object(Some(library(kind).join("libdogtag_c.so"))) == alone, "{}", kind.name);
    }
}

#[test]
fn the_header_is_c99_and_cxx98() {
    for (language, standard) in [("c", "-std=c99"), ("c++", "-std=c++98")] {
        for define in ["-DDOGTAG_SKYNET", "-UDOGTAG_SKYNET"] {
            let mut cc = Command::new("cc");
            cc.args(["-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wno-long-long"]);
            cc.args([standard, define, "-x", language]).arg(root().join("include/dogtag.h"));
            run(cc).success();
        }
    }
}
