//! Reports of programs, as their users see them: each test runs this program again, whose `main` does
//! as a task says, and looks at what it has written and how it ended.

#[path = "../watch/mod.rs"]
mod watch;

mod tasks;

use dogtag::Dogtag;
use serde_json::Value;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// The names of tests, and the tests.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        const TESTS: &[(&str, fn())] = &[$((stringify!($name), $name)),+];
    };
}

tests! {
    a_report_at_every_kind_of_exit,
    a_signal_asks_for_reports,
    reports_come_by_the_clock,
    forked_children_report_for_themselves,
    a_program_without_standard_error_goes_on,
    what_cannot_be_written_is_told,
    subscribers_and_closures_get_reports,
    the_environment_asks_for_reports,
    the_environment_asks_for_services_and_profiles,
    what_the_environment_gets_wrong_is_told,
    what_cannot_be_had_is_an_error,
    reports_are_nobodys,
    a_profile_is_part_of_a_report,
    a_page_is_served_by_one_call,
    silent_connections_are_closed,
    a_socket_answers_its_own_user,
}

/// Runs the tests whose names have an argument in them; or a task, as a test wants it.
fn main() -> ExitCode {
    if let Ok(task) = std::env::var("DOGTAG_TEST_TASK") {
        return tasks::run(&task);
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let chosen = TESTS.iter().filter(|(name, _)| is_wanted(name));
    let mut failed = 0;
    for (name, test) in chosen {
        let ended = std::panic::catch_unwind(test);
        println!("test {name} ... {}", if ended.is_ok() { "ok" } else { "FAILED" });
        failed += u8::from(ended.is_err());
    }
    ExitCode::from(failed)
}

/// A folder of a test's own, which is removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dogtag-reports-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// This program, for a task, with what the task may need to know.
fn task(task: &str, argument: &str) -> Command {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.env("DOGTAG_TEST_TASK", task).env("DOGTAG_TEST_ARGUMENT", argument).env_remove("DOGTAG_REPORT");
    program.process_group(0);
    program
}

/// How it ended: all tasks end with this status, unless they say otherwise.
const OWN: i32 = 7;

fn ended(mut program: Command, status: i32) -> (String, String) {
    let Output { status: found, stdout, stderr } = watch::output(&mut program);
    let [out, err] = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert_eq!(found.code(), Some(status), "{program:?}: {found}\n{out}{err}");
    (out, err)
}

/// Checks that a text has a report of this occasion, and what comes before it.
#[track_caller]
fn check(text: &str, occasion: &str) {
    let heading = text.lines().find(|line| line.starts_with("dogtag: ") && line.contains(" (pid "));
    assert!(heading.is_some_and(|line| line.ends_with(occasion)), "no report {occasion}:\n{text}");
    for part in ["service ", "kept ", "97.7 KiB", "total ", "balance ", "RSS "] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

/// Reads a line of JSON that is a report.
#[track_caller]
fn json(line: &str, occasion: &str) -> Value {
    let report: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(report["occasion"], occasion);
    let kept = report["rows"].as_array().unwrap().iter().find(|row| row["name"] == "kept").unwrap();
    assert_eq!((&kept["usage"]["live_bytes"], &kept["usage"]["live_blocks"]), (&100_000.into(), &1.into()));
    report
}

fn a_report_at_every_kind_of_exit() {
    for (exit, status) in [("return", OWN), ("exit", OWN), ("exit-elsewhere", OWN), ("panic", 101)] {
        let (out, err) = ended(task(exit, ""), status);
        assert_eq!(out, "working\n");
        check(&err, "at its exit");
        assert_eq!(err.matches("(pid ").count(), 1, "{err}");
        assert_eq!(err.contains("main has failed"), exit == "panic", "{err}");
    }
    // Nobody can write one there.
    let output = watch::output(&mut task("abort", ""));
    assert_eq!((output.status.code(), output.stderr.len()), (None, 0), "{output:?}");
}

fn a_signal_asks_for_reports() {
    let folder = Folder::new("signal");
    let (_, err) = ended(task("signal", &folder.path("report")), OWN);
    assert_eq!(err.matches("a closure has failed").count(), 2, "{err}");
    let reports = folder.read("report");
    check(&reports, "at a signal");
    assert_eq!(reports.matches("at a signal").count(), 2, "{reports}");
}

fn reports_come_by_the_clock() {
    let folder = Folder::new("clock");
    ended(task("clock", &folder.path("%p.json")), OWN);
    let name = fs::read_dir(&folder.0).unwrap().next().unwrap().unwrap().file_name();
    let name = name.to_str().unwrap();
    let lines = folder.read(name);
    let reports: Vec<Value> = lines.lines().map(|line| json(line, "interval")).collect();
    assert!(reports.len() >= 3, "{lines}");
    let times: Vec<u64> = reports.iter().map(|report| report["time"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(name, format!("{}.json", reports[0]["pid"]));
    // Left out, as asked for.
    assert_eq!(reports[0]["balance"], Value::Null);
}

/// Whatever was asked for before the fork.
fn forked_children_report_for_themselves() {
    let folder = Folder::new("fork");
    let (out, err) = ended(task("fork", &folder.path("%p")), OWN);
    assert_eq!(err, "");
    let [parent, child] = out.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{out}") };
    for process in [parent, child] {
        let reports = folder.read(process);
        for (occasion, number) in [("at a signal", 1), ("at its exit", 1)] {
            let heading = format!("(pid {process}) {occasion}");
            assert_eq!(reports.matches(&heading).count(), number, "{heading}:\n{reports}");
        }
        check(&reports, "by the clock");
        assert!(reports.contains(&format!("(pid {process}) by the clock")), "{reports}");
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);
}

fn a_program_without_standard_error_goes_on() {
    // Closed by the program itself: it is kept open.
    let (out, err) = ended(task("close-stderr", ""), OWN);
    assert_eq!(out, "working\n");
    check(&err, "at its exit");
    // Given to a file of the program's, which stays as it is.
    let folder = Folder::new("stderr");
    let (_, err) = ended(task("reuse-stderr", &folder.path("own")), OWN);
    check(&err, "at its exit");
    assert_eq!(folder.read("own"), "own");
    // There never was one.
    for redirection in ["2>&-", "2>/dev/full", "2>/dev/null"] {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("exec \"$0\" {redirection}")).arg(std::env::current_exe().unwrap());
        shell.env("DOGTAG_TEST_TASK", "return").process_group(0);
        let (out, err) = ended(shell, OWN);
        assert_eq!((out.as_str(), err.as_str()), ("working\n", ""));
    }
    // Nobody reads it.
    let mut program = task("return", "");
    program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(OWN));
}

fn what_cannot_be_written_is_told() {
    for (destination, why) in
        [("/dev/full", "No space left on device"), ("lost", "No such file or directory")]
    {
        let folder = Folder::new("full");
        let path = if destination == "lost" { folder.path("gone/report") } else { destination.to_owned() };
        let (out, err) = ended(task("file", &path), OWN);
        assert_eq!(out, "working\n");
        assert_eq!(
            err,
            format!(
                "dogtag: no report in {path}: {why} (os error {})\n",
                if destination == "lost" { 2 } else { 28 }
            )
        );
    }
}

fn subscribers_and_closures_get_reports() {
    let (out, err) = ended(task("subscriber", ""), OWN);
    check(&err, "at its exit");
    assert!(out.contains("INFO dogtag: a report of the program's memory"), "{out}");
    assert!(out.contains(r#"occasion="exit""#), "{out}");
    assert!(out.contains("report=\"dogtag: ") && out.contains("kept "), "{out}");

    // The second one panics, which the program survives.
    let (out, err) = ended(task("closure", ""), OWN);
    assert_eq!(out, "working\nkept has 100000 bytes in 1 block, at the exit\n");
    assert!(err.contains("a closure has failed"), "{err}");
    check(&err, "at its exit");
}

fn the_environment_asks_for_reports() {
    let folder = Folder::new("environment");
    let mut program = task("environment", "");
    program.env("DOGTAG_REPORT", format!("exit, json,SIGUSR2,file={}/%p.json", folder.0.display()));
    let (out, err) = ended(program, OWN);
    assert_eq!(err, "");
    let pid = out.strip_prefix("Ok(true) ").unwrap().trim();
    let lines = folder.read(&format!("{pid}.json"));
    let [signal, exit] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
    json(signal, "signal");
    assert!(json(exit, "exit")["balance"]["resident"].as_u64().unwrap() > 0);

    for (settings, answer) in [
        (None, "Ok(false)"),
        (Some(""), "Ok(false)"),
        (Some(" ,"), "Ok(false)"),
        (Some("exit,sometimes"), "Err(Setting { setting: \"sometimes\" })"),
        (Some("json"), "Err(NoOccasion)"),
        (Some("exit,file=/nowhere/x"), "Err(File { path: \"/nowhere/x\", error: Os { code: 2"),
    ] {
        let mut program = task("environment", "");
        if let Some(settings) = settings {
            program.env("DOGTAG_REPORT", settings);
        }
        let (out, err) = ended(program, OWN);
        assert!(out.starts_with(answer), "{settings:?}: {out}");
        assert_eq!(err, "", "{settings:?}");
    }
}

/// A program whose only line is `report::init()`.
fn started_with(variables: &[(&str, &str)]) -> (String, String) {
    let mut program = task("init", "");
    program.env_remove("DOGTAG_PROFILE").env_remove("DOGTAG_SERVICE").envs(variables.iter().copied());
    ended(program, OWN)
}

fn the_environment_asks_for_services_and_profiles() {
    for (service, main, worker) in [
        (None, "unattributed", "unattributed"),
        (Some(""), "unattributed", "unattributed"),
        (Some("thread"), "startup", "worker-*"),
        (Some(" thread\n"), "startup", "worker-*"),
    ] {
        let variables: Vec<_> = service.iter().map(|service| ("DOGTAG_SERVICE", *service)).collect();
        let expected = format!("main works for {main}\nworker-1 works for {worker}\n");
        assert_eq!(started_with(&variables), (expected, String::new()), "{service:?}");
    }

    let folder = Folder::new("init");
    let settings = format!("exit,json,file={}", folder.path("report"));
    let all = [("DOGTAG_SERVICE", "thread"), ("DOGTAG_PROFILE", "interval=1"), ("DOGTAG_REPORT", &settings)];
    // Without the profiler only that is missing.
    let variables = if cfg!(feature = "profile") { &all[..] } else { &[all[0], all[2]] };
    let (out, err) = started_with(variables);
    assert_eq!(out, "main works for startup\nworker-1 works for worker-*\n");
    assert_eq!(err, "");
    let report = json(folder.read("report").trim_end(), "exit");
    let workers = report["rows"].as_array().unwrap().iter().find(|row| row["name"] == "worker-*").unwrap();
    assert!(workers["usage"]["live_bytes"].as_u64().unwrap() >= 5000, "{workers}");
    if cfg!(feature = "profile") {
        let rows = report["profile"]["rows"].as_array().unwrap();
        let bytes = |row: &Value| row["bytes"].as_i64().unwrap();
        assert!(rows.iter().any(|row| row["service"] == "worker-*" && bytes(row) >= 5000), "{rows:?}");
    }
}

fn what_the_environment_gets_wrong_is_told() {
    const PROCESS: &str = "dogtag: DOGTAG_SERVICE: \"process\" says nothing of services; there is thread, for services named after threads\n";

    let by_nobody = "main works for unattributed\nworker-1 works for unattributed\n";
    assert_eq!(started_with(&[("DOGTAG_SERVICE", "process")]), (by_nobody.to_owned(), PROCESS.to_owned()));
    // The others hold, whichever is wrong.
    let (out, err) = started_with(&[("DOGTAG_SERVICE", "process"), ("DOGTAG_REPORT", "exit")]);
    assert_eq!(out, by_nobody);
    assert!(err.starts_with(PROCESS), "{err}");
    check(&err, "at its exit");

    let (out, err) = started_with(&[("DOGTAG_SERVICE", "thread"), ("DOGTAG_REPORT", "exit,sometimes")]);
    assert_eq!(out, "main works for startup\nworker-1 works for worker-*\n");
    assert!(
        err.starts_with("dogtag: DOGTAG_REPORT: \"sometimes\" is no setting of reports; there are exit, "),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1, "{err}");

    let (_, err) = started_with(&[("DOGTAG_PROFILE", "interval=lots"), ("DOGTAG_REPORT", "exit")]);
    let told = if cfg!(feature = "profile") {
        "dogtag: DOGTAG_PROFILE: \"interval=lots\" is no setting of the heap profiler; there are interval=BYTES"
    } else {
        "dogtag: DOGTAG_PROFILE: there is no heap profiler in this program; with the feature `profile` of dogtag"
    };
    assert!(err.starts_with(told), "{err}");
    check(&err, "at its exit");
    // Nothing is asked for.
    for nothing in ["", "0", " 0 "] {
        assert_eq!(started_with(&[("DOGTAG_PROFILE", nothing)]), (by_nobody.to_owned(), String::new()));
    }

    // Typed, for programs that want it so; the reports are there all the same.
    let mut program = task("environment", "");
    program.env("DOGTAG_SERVICE", "process").env("DOGTAG_REPORT", "exit");
    let (out, err) = ended(program, OWN);
    assert!(out.starts_with("Err(Service { value: \"process\" })"), "{out}");
    check(&err, "at its exit");
}

fn what_cannot_be_had_is_an_error() {
    let (out, err) = ended(task("errors", ""), OWN);
    assert_eq!(out, "as expected\n");
    // Of all that was refused nothing is reported, and what was there before is.
    check(&err, "at its exit");
    assert_eq!(err.matches("(pid ").count(), 1, "{err}");
}

fn reports_are_nobodys() {
    let folder = Folder::new("nobodys");
    let (out, _) = ended(task("nobodys", &folder.path("report")), OWN);
    assert_eq!(out, "as expected\n");
}

fn a_profile_is_part_of_a_report() {
    if !cfg!(feature = "profile") {
        return;
    }
    let folder = Folder::new("profile");
    let (_, err) = ended(task("profile", &folder.path("json")), OWN);
    check(&err, "at its exit");
    assert!(err.contains(" samples: every allocation was one"), "{err}");
    let report = json(folder.read("json").trim_end(), "exit");
    let rows = report["profile"]["rows"].as_array().unwrap();
    let kept: Vec<&Value> = rows.iter().filter(|row| row["service"] == "kept").collect();
    assert_eq!(kept.iter().map(|row| row["bytes"].as_i64().unwrap()).sum::<i64>(), 100_000, "{kept:?}");
    assert!(kept.iter().any(|row| row["function"].as_str().unwrap().contains("keep")), "{kept:?}");
}

fn a_page_is_served_by_one_call() {
    let (out, err) = ended(task("serve", ""), OWN);
    assert_eq!((out.as_str(), err.as_str()), ("as expected\n", ""));
}

fn a_socket_answers_its_own_user() {
    #[cfg(target_os = "linux")]
    {
        let (out, err) = ended(task("socket", ""), OWN);
        assert_eq!((out.as_str(), err.as_str()), ("as expected\n", ""));
    }
}

fn silent_connections_are_closed() {
    let (out, err) = ended(task("silent", ""), OWN);
    assert_eq!((out.as_str(), err.as_str()), ("as expected\n", ""));
}
