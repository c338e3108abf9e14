//! `dogtag check`.

use crate::place::{Place, word};
use serde_json::Value;

const OVERRUN: &str = r#"
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **words) {
    volatile char *block = malloc(10);
    if (count > 1 && fork() == 0)
        return 0;
    wait(0);
    block[10] = 1;
    free((void *)block);
    return 5;
}"#;

#[test]
fn violations_are_counted_and_the_program_goes_on() {
    let place = Place::new();
    let program = place.compile("overruns", OVERRUN, &["-O0"]);
    let done = place.run(["check", "--json", "found.json", "--", word(&program), "forks"]);
    done.has_status(1)
        .says(&["dogtag: overrun: something wrote past the end of a block of 10 bytes", "overruns.c:"]);
    done.says(&["dogtag: one violation in one process: 1 × overrun\n"]);
    let found: Value = serde_json::from_str(&place.read("found.json")).unwrap();
    assert_eq!((&found["status"], &found["signal"]), (&5.into(), &Value::Null));
    let violation = &found["violations"][0];
    assert_eq!((&violation["kind"], &violation["size"]), (&"overrun".into(), &10.into()), "{found}");
    assert!(violation["report"].as_str().unwrap().contains("allocated at"), "{found}");
    assert_eq!(place.files(), ["found.json", "overruns"], "the log is gone");
}

#[test]
fn without_violations_the_status_is_the_programs() {
    let place = Place::new();
    let done = place.run(["check", "--json", "-", "--", "sh", "-c", "ls >/dev/null; exit 6"]);
    done.has_status(6).says(&["dogtag: no violations in 2 processes\n"]);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&found["processes"], &found["violations"]), (&2.into(), &Value::Array(vec![])));
}

#[test]
fn the_quarantine_is_as_large_as_is_said() {
    let place = Place::new();
    let done = place.run(["check", "--quarantine", "3M", "--", "sh", "-c", "echo $DOGTAG_CHECK"]);
    done.has_status(0);
    assert!(done.out.contains("quarantine=3M"), "{done:#?}");
}

#[test]
fn the_first_violation_may_end_the_program() {
    let place = Place::new();
    let program = place.compile("overruns", OVERRUN, &["-O0"]);
    let done = place.run(["check", "--abort", "--json", "found.json", "--", word(&program)]);
    done.has_status(1).says(&["one violation"]);
    let found: Value = serde_json::from_str(&place.read("found.json")).unwrap();
    assert_eq!(found["signal"], 6);
}

#[test]
fn what_cannot_be_checked_does_not_pass() {
    let place = Place::new();
    let program = place.compile("alone", "int main(void) { return 0; }", &["-static"]);
    place.run(["check", "--", word(&program)]).has_status(2).says(&["nothing of it can be checked"]);
    place.run(["check", "--", "no-such-program"]).has_status(127);
}

#[test]
fn what_is_cut_off_does_not_pass() {
    let place = Place::new();
    let cut = r#"printf '{"pid":1,"prog' >>$DOGTAG_CHECK_LOG"#;
    let done = place.run(["check", "--json", "-", "--", "sh", "-c", cut]);
    done.has_status(2).says(&["no violations in one process; one line of what was found is cut off"]);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&found["processes"], &found["lines_cut_off"]), (&1.into(), &1.into()));
    let done = place.run(["run", "--check", "--", "sh", "-c", &format!("{cut}; exit 4")]);
    done.has_status(4).says(&["one line of what was found is cut off"]);
}

#[test]
fn violations_show_in_a_run_that_checks() {
    let place = Place::new();
    let program = place.compile("overruns", OVERRUN, &["-O0"]);
    let done = place.run(["run", "--check", "--", word(&program)]);
    done.has_status(5).says(&["at its exit", "dogtag: one violation in one process: 1 × overrun\n"]);
}
