//! Heap profiles of C programs, and of programs that know nothing of the library. The sampled guard, too, which is
//! built with the same library.
#![cfg(all(feature = "jemalloc-stats", not(feature = "memory-check")))]

#[path = "../../../tests/pprof/mod.rs"]
mod pprof;
mod programs;

use pprof::File;
use programs::{Kind, Link, compile, folder, library, run, watch};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROFILED: Kind = Kind {
    name: "profiled",
    features: "interpose,skynet,profile,sampled-guard",
    defines: &["-DINTERPOSED"],
    slowness: 2,
};

const CHECKED: Kind = Kind {
    name: "profiled-checked",
    features: "interpose,skynet,profile,memory-check",
    defines: &["-DINTERPOSED", "-DCHECKED"],
    slowness: 10,
};

/// Without the feature.
const PLAIN: Kind =
    Kind { name: "plain", features: "interpose,skynet", defines: &["-DINTERPOSED"], slowness: 1 };

#[test]
fn blocks_of_all_kinds_are_sampled_until_they_are_freed() {
    for (kind, link) in [(PROFILED, Link::Static), (PROFILED, Link::Shared), (CHECKED, Link::Static)] {
        let folder = Empty::folder("blocks");
        let [middle, end] = ["middle.pb.gz", "end.pb.gz"].map(|name| folder.0.join(name));
        let mut program = Command::new(compile("profile", kind, link));
        program.arg(&middle).arg(&end);
        let ended = run(program);
        assert_eq!(ended.stderr, "");
        let printed = ended.success();
        let (figures, ok) = printed.split_once('\n').unwrap();
        assert_eq!(ok, "ok\n");
        let (live, last) = figures.split_once(' ').unwrap();
        let [live, last]: [i64; 2] = [live, last].map(|figure| figure.parse().unwrap());

        let middle = read(&middle);
        assert_eq!((middle.interval(), middle.default_sample_type()), (1, "inuse_space"));
        assert_eq!(middle.sum("sampled", "inuse_space"), live);
        assert!(middle.sum("sampled", "alloc_space") > 50 * live / 2);
        let stacks = middle.stacks("sampled", "inuse_space");
        let of = |function: &str| -> i64 {
            let with = stacks.iter().filter(|(_, functions)| functions.contains(&function));
            with.map(|(bytes, _)| bytes).sum()
        };
        assert_eq!(of("main"), live, "{stacks:#?}");
        assert_eq!(of("make"), live - last, "{stacks:#?}");
        assert!(0 < of("resized") && of("resized") < of("made"), "{stacks:#?}");

        // One block, so one row: samples that were left would be others.
        let end = read(&end);
        let stacks = end.stacks("sampled", "inuse_space");
        assert_eq!(stacks.len(), 1, "{stacks:#?}");
        assert_eq!((stacks[0].0, stacks[0].1.last()), (last, Some(&"main")));
        assert_eq!(end.sum("sampled", "inuse_objects"), 1);
        assert_eq!(end.stacks("other", "inuse_space"), []);
    }
}

#[test]
fn a_library_without_profiles_says_so() {
    let mut echo = preloaded("/bin/echo", PLAIN);
    echo.arg("ok").env("DOGTAG_PROFILE", "1");
    let ended = run(echo);
    assert!(ended.stderr.contains("DOGTAG_PROFILE is ignored: "), "{}", ended.stderr);
    assert_eq!(ended.success(), "ok\n");
}

/// At its exit, and at that of each child that it forks.
#[test]
fn the_environment_asks_for_a_profile() {
    let folder = Empty::folder("exit");
    let mut forks = Command::new(compile("profile", PROFILED, Link::Shared));
    forks.arg("fork").current_dir(&folder.0);
    forks.env("DOGTAG_PROFILE", "interval=1,file=%p.%n.%x.pb.gz,depth=20");
    run(forks).ok();
    let files = folder.files();
    assert_eq!(files.len(), 2, "{files:?}");
    for path in &files {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.ends_with(".0.%x.pb.gz"), "{name}");
        name.split('.').next().unwrap().parse::<u32>().unwrap();
        let file = read(path);
        assert_eq!(file.interval(), 1);
        assert!(file.sum("unattributed", "inuse_space") > 0, "{name}");
    }

    // The file has a name if none is set, and the interval is the default then.
    let folder = Empty::folder("default");
    let mut echo = preloaded("/bin/echo", PROFILED);
    echo.arg("ok").current_dir(&folder.0).env("DOGTAG_PROFILE", "1");
    run(echo).ok();
    let [path] = &folder.files()[..] else { panic!("{:?}", folder.files()) };
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("heap.") && name.ends_with(".0.pb.gz"), "{name}");
    assert_eq!(read(path).interval(), 512 << 10);
}

#[test]
fn a_signal_asks_for_a_profile() {
    let folder = Empty::folder("signal");
    let mut cat = preloaded("/bin/cat", PROFILED);
    cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    cat.env("DOGTAG_PROFILE", format!("interval=1,file={}/cat.%n.pb.gz", folder.0.display()));
    // Both are asked for by the same signal.
    cat.env("DOGTAG_REPORT", format!("SIGUSR2,file={}/report", folder.0.display()));
    let mut cat = cat.spawn().unwrap();
    let (mut input, mut output) = (cat.stdin.take().unwrap(), BufReader::new(cat.stdout.take().unwrap()));
    let mut say = |word: &str| {
        writeln!(input, "{word}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    };
    // It copies, so its handlers are installed.
    say("first");
    for number in 0..2 {
        // SAFETY: only sends a signal, to a process that is not waited for yet.
        assert_eq!(unsafe { libc::kill(cat.id() as libc::pid_t, libc::SIGUSR2) }, 0);
        let path = folder.0.join(format!("cat.{number}.pb.gz"));
        let file = watch::eventually(|| fs::read(&path));
        assert!(File::read(&file).sum("unattributed", "inuse_space") > 0);
        say("again");
    }
    drop(input);
    let ended = cat.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    read(&folder.0.join("cat.2.pb.gz"));
    assert!(!folder.0.join("cat.3.pb.gz").exists());
    let reports = fs::read_to_string(folder.0.join("report")).unwrap();
    assert_eq!(reports.matches("at a signal").count(), 2, "{reports}");
}

#[test]
fn what_the_environment_gets_wrong_is_told_and_the_program_goes_on() {
    let folder = Empty::folder("wrong");
    let end = compile("profile", PROFILED, Link::Shared);
    for (settings, told) in [
        ("interval=lots", "dogtag: DOGTAG_PROFILE: \"interval=lots\" is no setting of the heap profiler"),
        ("colour=red,interval=1", "\"colour=red\" is no setting"),
        ("interval=1,file=", "\"file=\" is no setting"),
        ("interval=0", "dogtag: DOGTAG_PROFILE: the interval of samples is 0 bytes"),
        ("depth=100000", "100000 frames"),
        ("\u{1}", "is no setting"),
        ("file=/nowhere/heap.pb.gz", "dogtag: no heap profile in /nowhere/heap.pb.gz: No such file"),
        ("file=/", "dogtag: no heap profile in /: "),
        ("file=/dev/full", "dogtag: no heap profile in /dev/full: No space left"),
        ("0", ""),
        ("", ""),
    ] {
        let mut program = Command::new(&end);
        program.arg("end").current_dir(&folder.0).env("DOGTAG_PROFILE", settings);
        let ended = run(program);
        assert!(ended.stderr.contains(told), "{settings:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), usize::from(!told.is_empty()), "{}", ended.stderr);
        assert_eq!(ended.success(), "ok\n");
    }
    assert_eq!(folder.files(), [] as [PathBuf; 0]);
}

fn preloaded(program: &str, kind: Kind) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", library(kind).join("libdogtag_c.so"));
    command
}

fn read(path: &Path) -> File {
    File::read(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// A folder of a test's own, which is removed at its end.
struct Empty(PathBuf);

impl Empty {
    fn folder(name: &str) -> Self {
        let path = folder(PROFILED).join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Each violation of a guarded block of C's ends the process, with a report that is right.
#[test]
fn the_sampled_guard_ends_c_programs_at_the_violation() {
    let at_a = |access: &str, byte: i32| (format!(", in {access}\n"), format!("  wrong      byte {byte}"));
    let cases = [
        ("write after free", "use after free: something wrote to", at_a("a write", 5)),
        ("read after free", "use after free: something read", at_a("a read", 6)),
        ("overrun by 1", "overrun: something wrote past", at_a("dealloc", 100)),
        // The block is aligned to 16.
        ("overrun by 32", "overrun: something wrote past", at_a("a write", 112)),
        ("read past", "overrun: something read past", at_a("a read", 112)),
        ("underrun", "underrun: something wrote in front", at_a("a write", -1)),
        ("double free", "double free: ", (", in dealloc\n".to_owned(), String::new())),
        ("inner free", "invalid free: ", at_a("dealloc", 16)),
        ("size after free", "use after free: ", (", in malloc_usable_size\n".to_owned(), String::new())),
    ];
    let run = |what: &str| {
        let mut program = Command::new(compile("guarded", PROFILED, Link::Shared));
        run({
            // However slow the machine is: the report is to have names.
            program.arg(what).env("DOGTAG_SAMPLED_GUARD", "rate=1,per-second=0,patience=1000");
            program
        })
    };
    for (what, headline, (found, wrong)) in cases {
        let ended = run(what);
        let report = &ended.stderr;
        assert!(report.contains(&format!("dogtag: {headline}")), "{what}: {report}");
        assert!(report.contains(&found) && report.contains(&wrong), "{what}: {report}");
        assert!(report.contains(", 100 bytes aligned to 16\n"), "{what}: {report}");
        let [allocated, met] = ["  allocated at\n", "  met at\n"].map(|part| report.find(part));
        let (allocated, met) = (allocated.unwrap(), met.unwrap());
        assert!(report[allocated..met].contains(": make\n"), "{what}: {report}");
        let culprit = if what == "overrun by 1" { ": main\n" } else { ": commit\n" };
        assert!(report[met..].contains(culprit), "{what}: {report}");
    }
    assert_eq!(run("nothing").success(), "ok\n");
    let mut echo = preloaded("/bin/echo", PLAIN);
    echo.arg("ok").env("DOGTAG_SAMPLED_GUARD", "1");
    let ended = programs::run(echo);
    assert!(ended.stderr.contains("DOGTAG_SAMPLED_GUARD is ignored: "), "{}", ended.stderr);
}
