//! `dogtag run`.

use crate::place::{Done, Place, word};
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

#[test]
fn the_program_is_as_without_and_reported() {
    let place = Place::new();
    let done = place.run(["run", "--", "bash", "-c", "echo out; echo err >&2; exit 3"]);
    done.has_status(3).says(&[
        "err\n",
        "dogtag: bash (pid ",
        " at its exit\n\nservice ",
        "\ntotal ",
        "\nRSS ",
    ]);
    done.says(&["dogtag: written to dogtag.bash.json\n"]);
    assert_eq!(done.out, "out\n");
    let report: Value = serde_json::from_str(place.read("dogtag.bash.json").trim_end()).unwrap();
    assert!(report["totals"]["allocated_bytes"].as_u64().unwrap() > 0, "{report}");
    let name = &report["rows"][0]["name"];
    assert!(name == "bash" || report["rows"][1]["name"] == "bash", "{report}");
    // A second run has a file of its own.
    place
        .run(["run", "--by", "main", "bash", "-c", "exit"])
        .has_status(0)
        .says(&["written to dogtag.bash.2.json\n"]);
    assert!(!place.read("dogtag.bash.2.json").contains(r#""name":"bash""#));
    assert_eq!(place.files(), ["dogtag.bash.2.json", "dogtag.bash.json"]);
}

#[test]
fn the_librarys_variables_are_as_the_command_line_says() {
    let place = Place::new();
    let mut command = place.command(["run", "--by", "main", "-o", "x.json", "--", "bash", "-c", "exit"]);
    command.env("DOGTAG_SERVICE", "thread").env("DOGTAG_PROFILE", "interval=1");
    Done::of(command.output().unwrap()).has_status(0);
    assert!(!place.read("x.json").contains(r#""name":"bash""#), "{}", place.read("x.json"));
    assert_eq!(place.files(), ["x.json"]);
}

#[test]
fn children_are_reported_to_the_same_file() {
    let place = Place::new();
    let done = place.run(["run", "-o", "a b.json", "--", "bash", "-c", "ls >/dev/null; ls >/dev/null; true"]);
    done.has_status(0).says(&["2 other processes reported: ls (2); the most was held by ls", "'a b.json'"]);
    assert_eq!(place.read("a b.json").lines().count(), 3);
    // Or each to its own.
    let done = place.run(["run", "-o", "%p.json", "--", "bash", "-c", "ls >/dev/null; true"]);
    done.has_status(0).says(&["one other process reported: ls"]);
    assert_eq!(place.files().len(), 3, "{:?}", place.files());
    // What a former run left is none of this one's.
    place.run(["run", "-o", "a b.json", "--", "true"]).has_status(0);
    assert_eq!(place.read("a b.json").lines().count(), 1);
}

#[test]
fn a_signal_ends_dogtag_too() {
    let place = Place::new();
    let done = place.run(["run", "--", "bash", "-c", "kill -TERM $$"]);
    assert_eq!((done.signal, done.status), (Some(15), None), "{done:#?}");
    done.says(&["no report of the program itself: it was ended by signal 15"]);
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn who_ends_without_its_handlers_is_told_apart() {
    let place = Place::new();
    let program = place.compile("leaves", "#include <unistd.h>\nint main(void) { _exit(3); }", &[]);
    let done = place.run(["run", "--", word(&program)]);
    done.has_status(3).says(&["it ended with status 3, and not by a return from main or by exit"]);
}

#[test]
fn the_status_is_the_programs_whatever_can_be_told_of_it() {
    let place = Place::new();
    let done = place.run(["run", "-o", "x.json", "--", "sh", "-c", "echo '{' >>x.json; exit 3"]);
    done.has_status(3).says(&["dogtag: x.json is cut off in line 1"]);
    let mut command = place.command(["run", "--", "sh", "-c", "exit 5"]);
    command.stderr(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(command.status().unwrap().code(), Some(5));
}

#[test]
fn who_ignores_its_children_has_them_waited_for() {
    let place = Place::new();
    let ignoring = |words: &[&str]| {
        let mut command = place.command(words);
        // SAFETY: `signal` is async-signal-safe, and the action is one of the system's own.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                Ok(())
            });
        }
        Done::of(command.output().unwrap())
    };
    let done = ignoring(&["run", "--", "grep", "SigIgn", "/proc/self/status"]);
    done.has_status(0).says(&["at its exit"]);
    // It is ignored in the program, too.
    let ignored = u64::from_str_radix(done.out.split_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_ne!(ignored & 1 << (libc::SIGCHLD - 1), 0, "{done:#?}");
    ignoring(&["run", "--", "sh", "-c", "exit 3"]).has_status(3);
    fs::write(place.path("script"), "#!/no/such/program\n").unwrap();
    fs::set_permissions(place.path("script"), Permissions::from_mode(0o755)).unwrap();
    ignoring(&["run", "--", "./script"]).has_status(127).says(&["script cannot be run: No such file"]);
}

#[test]
fn signals_reach_the_program() {
    let place = Place::new();
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = place.command(["run", "--", "bash", "-c", script]);
    let mut dogtag = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(dogtag.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    // SAFETY: signals our own child, which was not waited for.
    unsafe { libc::kill(dogtag.id().cast_signed(), libc::SIGTERM) };
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    Done::of(dogtag.wait_with_output().unwrap()).has_status(7).says(&["at its exit"]);
}

#[test]
fn a_profile_is_written_beside_the_reports() {
    let place = Place::new();
    let source = "#include <stdlib.h>\nint main(void) { return malloc(8 << 20) == 0; }";
    let program = place.compile("keeps", source, &[]);
    let done = place.run(["run", "--profile=64K", "-o", "x.json", "--", word(&program)]);
    done.has_status(0).says(&["dogtag report x.json x.heap."]);
    let profiles: Vec<String> = place.files().into_iter().filter(|name| name.ends_with(".pb.gz")).collect();
    let [profile] = &profiles[..] else { panic!("{profiles:?}") };
    assert!(fs::read(place.path(profile)).unwrap().starts_with(&[0x1f, 0x8b]));
}

#[test]
fn what_cannot_be_counted_is_told() {
    let place = Place::new();
    let source = "int main(void) { return 4; }";
    let program = place.compile("alone", source, &["-static"]);
    let done = place.run(["run", "--", word(&program)]);
    done.has_status(4).says(&["alone is linked statically", "the library was not in it"]);

    let own =
        "#include <stddef.h>\nvoid *malloc(size_t n) { (void)n; return 0; }\nint main(void) { return 0; }";
    let program = place.compile("own", own, &["-rdynamic"]);
    place.run(["run", "--", word(&program)]).says(&["own has a malloc of its own"]);

    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        let program = place.compile("rights", source, &[]);
        chown(&program, Some(65_533), None).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o4755)).unwrap();
        let done = place.run(["run", "--", word(&program)]);
        done.has_status(4).says(&["rights runs with more rights than yours (setuid)"]);
    }

    let inside = "void *mi_malloc(unsigned long n) { (void)n; return 0; }\nint main(void) { return 0; }";
    let program = place.compile("inside", inside, &[]);
    place.run(["run", "--", word(&program)]).has_status(0).says(&["inside has mimalloc inside"]);
}

#[test]
fn bad_programs_are_refused_as_shells_do() {
    let place = Place::new();
    place
        .run(["run", "--", "no-such-program"])
        .has_status(127)
        .says(&["there is no program no-such-program"]);
    fs::write(place.path("plain"), "text").unwrap();
    place.run(["run", "--", "./plain"]).has_status(126).says(&["plain cannot be run: Permission denied"]);
    fs::set_permissions(place.path("plain"), Permissions::from_mode(0o755)).unwrap();
    place.run(["run", "--", "./plain"]).has_status(126).says(&["plain cannot be run: Exec format error"]);
    place.run(["run", "-o", "a,b", "--", "true"]).has_status(2).says(&["without commas"]);
    place.run(["run", "-o", "no/such/a", "--", "true"]).has_status(2).says(&["no/such/a: No such file"]);
    place.run(["run"]).has_status(2).says(&["Usage: dogtag run"]);
    place.run(["run", "--every", "1d", "--", "true"]).has_status(2).says(&["as in 500ms"]);
}

#[test]
fn the_library_is_written_once_and_written_anew_when_it_is_damaged() {
    let place = Place::new();
    place.run(["run", "--", "true"]).has_status(0);
    let folder = place.path("cache/dogtag");
    let files = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let [library] = &files()[..] else { panic!("{:?}", files()) };
    let whole = fs::read(library).unwrap();
    fs::write(library, &whole[..whole.len() / 2]).unwrap();
    place.run(["run", "--", "true"]).has_status(0).says(&["at its exit"]);
    assert_eq!(fs::read(library).unwrap(), whole);
    // Where others may write, it is not taken from.
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    place.run(["run", "--", "true"]).has_status(0).says(&["at its exit"]);
    fs::set_permissions(library, Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(files().len(), 1);
    // Nor where they could put another folder in its place.
    fs::remove_file(library).unwrap();
    fs::set_permissions(place.path("cache"), Permissions::from_mode(0o777)).unwrap();
    place.run(["run", "--", "true"]).has_status(0).says(&["at its exit"]);
    assert_eq!(files().len(), 0);
    assert!(place.files().iter().any(|name| name.starts_with("dogtag-")), "{:?}", place.files());
}
