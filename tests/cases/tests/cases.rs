//! What is right of each case. `.ci/cases` builds what is needed, and says where it is.

#[path = "../../watch/mod.rs"]
mod watch;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// What a case has said, when it has ended well.
struct Said(String);

impl Said {
    /// The lines that begin so; what is behind that in each.
    fn after(&self, begin: &str) -> Vec<&str> {
        self.0.lines().filter_map(|line| line.strip_prefix(begin)).collect()
    }

    /// Has these lines, from the first to the last.
    #[track_caller]
    fn is(&self, lines: &[&str]) {
        assert_eq!(self.0.lines().collect::<Vec<_>>(), lines);
    }

    /// Has one such line.
    #[track_caller]
    fn has(&self, line: &str) {
        assert!(self.0.lines().any(|its| its == line), "{line:?} is missing:\n{}", self.0);
    }
}

/// Runs a program, which has to end well and without a complaint.
#[track_caller]
fn run(command: &mut Command) -> Said {
    let output = watch::output(command);
    let [said, complaint] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{complaint}", output.status);
    // What std says of a panic that is meant is none.
    let complaints: Vec<_> = complaint.lines().filter(|line| line.contains("dogtag: ")).collect();
    assert!(complaints.is_empty(), "{command:?}:\n{said}\n{complaint}");
    Said(said)
}

/// Runs a program of `src/bin`.
macro_rules! case {
    ($name:literal $(, $argument:expr)*) => {
        run(Command::new(env!(concat!("CARGO_BIN_EXE_", $name))).args::<&[&str], _>(&[$($argument),*]))
    };
}

// Counts that safe code can drive.

#[test]
fn b1_clones_that_are_forgotten() {
    let said = case!("b1_revive");
    let name = "victim-with-a-name-on-the-heap";
    assert!(said.after("by_name: ")[0].contains(name), "{}", said.0);
    said.has("registered again: same? true");
    let (before, after) = said.after("lost before ")[0].split_once(" after ").unwrap();
    assert_eq!(before, after);
    let usage = said.after("usage of victim after its block was freed on another thread: ")[0];
    for figure in ["allocated_bytes: 100,", "freed_bytes: 100,"] {
        assert!(usage.contains(figure), "{usage}");
    }
}

#[test]
fn b8_scopes_that_are_forgotten() {
    let said = case!("b8_scopes");
    assert!(said.after("current after the last clone is gone: ")[0].contains("in-for-good"), "{}", said.0);
    assert!(said.after("other: ")[0].ends_with("; current() == other: false"), "{}", said.0);
    let usage = said.after("usage of other, which nobody has entered: ")[0];
    assert!(usage.contains("allocated_bytes: 0,"), "{usage}");
    said.has(r#"name borrowed from `cur`: "in-for-good""#);
    said.has(r#"the same name, borrowed all along: "in-for-good""#);
}

#[test]
fn b9_scopes_that_are_forgotten_on_one_thread() {
    let said = case!("b9_scopes_uaf");
    assert!(said.after("current after the last clone is gone: ")[0].contains("in-for-good"), "{}", said.0);
    said.has("cur == other: false");
    said.has(r#"name borrowed from `cur`: "in-for-good""#);
    said.has(r#"the same &str, borrowed all along: "in-for-good""#);
}

// Spans, and layers that are exchanged.

#[test]
fn layers_are_exchanged_between_subscribers() {
    let said = case!("d1_reload");
    for place in ["in b, which never named a service: ", "now: "] {
        assert!(said.after(place)[0].contains("unattributed"), "{}", said.0);
    }
    said.has("cur == other: false");
    said.has(r#"borrowed: "unattributed""#);
    said.has(r#"the same &str: "unattributed""#);
}

#[test]
fn a_layer_is_exchanged_within_a_span() {
    case!("t09_reload2", "new").is(&["no span is entered: thread is in unattributed; charged to auth: 0"]);
}

#[test]
fn filters_are_exchanged_and_hide_spans() {
    case!("t09_reload2", "filter").is(&[
        "in auth",
        "left after the filter went off: unattributed",
        "off: unattributed",
        "left: unattributed",
        "child of a span that was filtered out: unattributed",
        "child of one that was not: auth",
        "end unattributed",
    ]);
    case!("t09_reload2", "hidden").is(&[
        "child of a hidden root: unattributed",
        "in a hidden one within outer: outer",
        "inner: outer",
        "end unattributed",
    ]);
    case!("t09_reload2", "env").is(&["fmt off: auth"]);
}

// Users' code that panics.

#[test]
fn callbacks_panic() {
    for what in ["bomb", "plain", "nothing"] {
        case!("b4_bomb", what).is(&[&format!("{what}: soft limit callback calls: 5 (expected 5)")]);
    }
    case!("e1_dropbomb").is(&["drop(service) panicked: false"]);
}

// Blocks become smaller where there is no space.

#[test]
fn blocks_become_smaller_at_the_limit() {
    case!("b5_shrink").is(&["shrinking a 1 MiB buffer to 200 kB in a service of 100 kB", "ok 200000"]);
    let begins = |which: &str, lines: &[&str]| {
        let said = case!("t01_shrink", which);
        assert_eq!(said.0.lines().count(), lines.len(), "{}", said.0);
        for (line, begin) in said.0.lines().zip(lines) {
            assert!(line.starts_with(begin), "{begin:?} is not how this begins: {line:?}");
        }
    };
    begins("lowered", &["before 900000 limit Some(100000)", "ok own: cap 500000 usage 500000 denied 0"]);
    begins(
        "foreign",
        &["before svc 1048476 other 100000", "ok foreign: len 50000 svc 1048476 other 50000 denied 0"],
    );
    begins("parent", &["ok parent: cap 500000 usage 500000 denied 0"]);
    begins("small", &["ok small: cap 1500 usage 1500 denied 0"]);
    begins("unattributed_to_full", &["ok u2f: 20 usage 1048568 denied 0"]);
    begins(
        "grow",
        &["grow in place of itself: Ok(()) usage 1000000 denied 0", "past: true usage 1000000 denied 1"],
    );
    begins(
        "rollback",
        &[
            "rollback: usage 1000000 (want 1000000) denied 2000 headroom Some(48576)",
            "rollback: after free 0 headroom Some(1048576)",
        ],
    );
}

// What is shown.

#[test]
fn a_deep_family_is_shown() {
    let size = |rows: usize| -> usize {
        let said = case!("b7_tree", &rows.to_string());
        said.after(&format!("{rows} rows: "))[0].split(' ').next().unwrap().parse().unwrap()
    };
    let (few, many) = (size(33_000), size(132_000));
    assert!(few > 33_000 && many < 5 * few, "{few} bytes and {many}");
}

#[test]
fn a_region_that_nobody_counts_is_no_rounding() {
    let said = case!("c1_bal");
    // Of both balances: before 100 MiB of the region were written to, and after.
    let roundings: Vec<_> =
        said.0.lines().filter(|line| line.trim_start().starts_with("rounding ")).collect();
    assert_eq!(roundings.len(), 2, "{}", said.0);
    let more = bytes(roundings[1]) - bytes(roundings[0]);
    assert!(more.abs() < f64::from(16 << 20), "{}", said.0);
}

/// The first figure of a line of the balance.
fn bytes(line: &str) -> f64 {
    let mut words = line.split_whitespace().skip_while(|word| word.parse::<f64>().is_err());
    let number: f64 = words.next().unwrap().parse().unwrap();
    let unit = ["B", "KiB", "MiB", "GiB"].iter().position(|unit| Some(*unit) == words.clone().next());
    number * 1024_f64.powi(unit.unwrap() as i32)
}

// A pool of threads.

#[test]
fn a_waiting_thread_runs_others_jobs() {
    for argument in ["outer", "inner"] {
        assert!(case!("t11_rayon2", argument).0.starts_with("inner scope "));
    }
}

// Libraries that are opened late.

/// One of ours, under so many names that are those of different libraries.
fn plugins(number: usize) -> Vec<PathBuf> {
    let plugin = built("DOGTAG_CASES_PLUGIN");
    let copy = |n| {
        let copy = folder().join(format!("libplug{n}.so"));
        std::fs::copy(&plugin, &copy).unwrap();
        copy
    };
    static COPIED: Once = Once::new();
    COPIED.call_once(|| (0..MOST).map(copy).for_each(drop));
    (0..number).map(|n| folder().join(format!("libplug{n}.so"))).collect()
}

const MOST: usize = 8;

/// How much is in the service of the library, which has 100,000 bytes.
#[track_caller]
fn has_worked(line: &str) {
    let bytes = line.rsplit(' ').next().and_then(|bytes| bytes.parse::<u64>().ok());
    assert!(bytes.is_some_and(|bytes| bytes >= 4096), "{line}");
}

#[test]
fn a_library_is_opened_and_closed() {
    let load = compiled("load", &[]);
    let plugin = &plugins(1)[0];
    for (place, times, calls) in [("main", 1, "1"), ("main", 1, "2"), ("thread", 3, "1"), ("thread", 3, "2")]
    {
        let said = run(Command::new(&load).arg(place).arg(plugin).arg(calls));
        let worked = said.after("work -> ");
        assert_eq!((worked.len(), said.after("dlclose -> 0").len()), (times, times), "{}", said.0);
        worked.iter().for_each(|bytes| has_worked(bytes));
        assert!(said.after("done; still mapped: ").len() == 1, "{}", said.0);
    }
    let said = run(Command::new(&load).arg("multi").args(plugins(MOST)));
    assert_eq!(said.0.lines().count(), MOST, "{}", said.0);
    said.0.lines().for_each(has_worked);
}

#[test]
fn python_opens_a_library() {
    let program =
        "import ctypes, sys; print('work ->', ctypes.CDLL(sys.argv[1]).work(ctypes.c_size_t(100000)))";
    let said = run(Command::new("python3").args(["-c", program]).arg(&plugins(1)[0]));
    has_worked(said.0.trim());
}

// C's programs, with the library preloaded.

#[test]
fn a_name_that_is_no_text() {
    let program = compiled("nameutf", &[]);
    run(preloaded(&program).env("DOGTAG_SERVICE", "thread")).is(&[]);
    // A program's own name as well.
    use std::os::unix::ffi::OsStringExt;
    let named = folder().join(std::ffi::OsString::from_vec(b"cut \xff".to_vec()));
    std::fs::copy(&program, &named).unwrap();
    run(preloaded(&named).env("DOGTAG_SERVICE", "thread")).is(&[]);
}

#[test]
fn a_library_has_handlers_of_forks() {
    let library = folder().join("af1lib.so");
    cc(&["-shared", "-fPIC", "-o"], &library, &[], "af1lib");
    let program = compiled("af1", &[&library]);
    for when in ["before", "parent", "child"] {
        for size in ["16", "3000", "100000", "3000000"] {
            for service in ["", "thread"] {
                let mut program = preloaded(&program);
                program.env("WHEN", when).env("SIZE", size);
                if !service.is_empty() {
                    program.env("DOGTAG_SERVICE", service);
                }
                run(&mut program).is(&["child ended with 0"]);
            }
        }
    }
}

#[test]
fn a_sandbox_lets_allocators_through() {
    let program = compiled("seccomp", &[]);
    for end in [&[][..], &["_exit"]] {
        run(preloaded(&program).args(end)).is(&["through"]);
        run(preloaded(&program).args(end).env("DOGTAG_SERVICE", "thread")).is(&["through"]);
    }
}

fn preloaded(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", built("DOGTAG_CASES_LIBRARY"));
    command
}

/// What `.ci/cases` has built.
fn built(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set, which .ci/cases does")).into()
}

/// A program of `c`, linked with others. Not optimised: pairs of malloc and free would be left out.
fn compiled(name: &str, linked: &[&Path]) -> PathBuf {
    let program = folder().join(name);
    cc(&["-o"], &program, linked, name);
    program
}

fn cc(options: &[&str], to: &Path, linked: &[&Path], name: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c").join(name).with_extension("c");
    let mut cc = Command::new("cc");
    cc.args(["-O0", "-pthread", "-w"]).args(options).arg(to).arg(source).args(linked);
    let output = cc.output().unwrap();
    assert!(output.status.success(), "{cc:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
