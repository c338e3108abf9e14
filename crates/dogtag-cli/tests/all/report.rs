//! `dogtag report` and `dogtag diff`.

use crate::place::{Place, word};
use serde_json::Value;
use std::fs;

/// A report with a service that holds so much.
fn line(pid: u32, time: u64, live: u64) -> String {
    format!(
        r#"{{"time":{time},"occasion":"exit","program":"/bin/web","pid":{pid},"rows":[{{"name":"<b>\u001b[2J","handle":1,"usage":{{"allocated_bytes":{live},"allocated_blocks":1,"peak_bytes":{live}}}}}],"totals":{{"allocated_bytes":{live},"allocated_blocks":1,"peak_bytes":{live}}},"balance":{{"services":{live},"resident":{live}}}}}"#
    ) + "\n"
}

#[test]
fn tables_show_one_process_and_list_the_others() {
    let place = Place::new();
    fs::write(place.path("a.json"), line(1, 1, 4096) + &line(2, 2, 1 << 20)).unwrap();
    let done = place.run(["report", "a.json"]);
    assert!(done.out.starts_with("dogtag: /bin/web (pid 2) at its exit\n"), "{done:#?}");
    assert!(done.out.contains("<b>\\u{1b}[2J") && !done.out.contains('\u{1b}'), "{done:#?}");
    assert!(done.out.contains("\nRSS ") && done.out.contains("1.0 MiB"), "{done:#?}");
    assert!(done.out.contains("\nprocess ") && done.out.contains("4.0 KiB"), "{done:#?}");
    let done = place.run(["report", "--pid", "1", "a.json"]);
    assert!(done.out.starts_with("dogtag: /bin/web (pid 1)"), "{done:#?}");
    place
        .run(["report", "--pid", "7", "a.json"])
        .has_status(2)
        .says(&["no report of process 7; there are 1, 2"]);
}

#[test]
fn json_has_all_of_each_report() {
    let place = Place::new();
    let text = line(1, 1, 4096).replace("exit", "interval") + &line(1, 2, 5000);
    fs::write(place.path("a.json"), &text).unwrap();
    let done = place.run(["report", "--json", "a.json"]);
    let document: Value = serde_json::from_str(&done.out).unwrap();
    let reports = document["processes"][0]["reports"].as_array().unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(*reports, lines);
}

#[test]
fn what_is_no_report_ends_with_status_2() {
    let place = Place::new();
    let whole = line(1, 1, 4096);
    fs::write(place.path("cut.json"), &whole[..whole.len() / 2]).unwrap();
    fs::write(place.path("other.json"), "{\"a\": 1}").unwrap();
    fs::write(place.path("text"), "dogtag: x (pid 1) at its exit\n").unwrap();
    fs::write(place.path("whole.json"), &whole).unwrap();
    for (file, message) in [
        ("cut.json", "cut.json is cut off in line 1"),
        ("other.json", "other.json is no report of dogtag's: line 1: missing field"),
        ("text", "text is no report of dogtag's: it is one for people"),
        ("none", "none: No such file"),
        (".", ".: Is a directory"),
        ("/dev/null", "/dev/null is no report of dogtag's: it is empty"),
    ] {
        place.run(["report", file]).has_status(2).says(&[message]);
        place.run(["diff", "whole.json", file]).has_status(2).says(&[message]);
    }
}

#[test]
fn differences_are_shown_by_service() {
    let place = Place::new();
    fs::write(place.path("a.json"), line(1, 1, 4096)).unwrap();
    fs::write(place.path("b.json"), line(2, 1, 1 << 20)).unwrap();
    let done = place.run(["diff", "a.json", "b.json"]);
    assert!(done.out.contains("+1020.0 KiB"), "{done:#?}");
    let done = place.run(["diff", "--json", "b.json", "a.json"]);
    let document: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(document["services"][0]["after"]["live_bytes"], 4096);
    assert_eq!(document["resident_before"], 1 << 20);
}

#[test]
fn a_page_is_written_from_a_run() {
    let place = Place::new();
    // It ends when three lines more have been written.
    let source = "#include <stdlib.h>
        #include <sys/stat.h>
        #include <unistd.h>
        static long long written(void) { struct stat file; return stat(\"x.json\", &file) ? 0 : file.st_size; }
        int main(void) {
            void *kept = malloc(8 << 20);
            for (int line = 0; line < 3; line++) {
                long long before = written();
                for (int wait = 0; wait < 600000 && written() == before; wait++) usleep(1000);
            }
            return kept == 0;
        }";
    let program = place.compile("keeps", source, &[]);
    place
        .run(["run", "--profile=64K", "--every", "10ms", "-o", "x.json", "--", word(&program)])
        .has_status(0);
    let profile = place.files().into_iter().find(|name| name.ends_with(".pb.gz")).unwrap();
    place.run(["report", "x.json", &profile, "--html", "x.html"]).has_status(0);
    let page = place.read("x.html");
    for part in ["<h1>", "Live bytes over time", ">keeps<", "<title>main: 8.0 MiB", "RSS", "</html>"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // A profile alone is for other tools, and one that is cut off for none.
    place.run(["report", "x.json", &profile]).has_status(2).says(&["--html draws it"]);
    let whole = fs::read(place.path(&profile)).unwrap();
    fs::write(place.path("cut.pb.gz"), &whole[..whole.len() - 9]).unwrap();
    place.run(["report", "x.json", "cut.pb.gz", "--html", "x.html"]).has_status(2).says(&["is cut off"]);
}
