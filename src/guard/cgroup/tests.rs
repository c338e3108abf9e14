use super::*;
use crate::guard::fixture::Fixture;

fn read(root: &Fixture, fraction: f64) -> Held {
    Cgroup::find(root.path()).unwrap().read(Duration::ZERO, fraction).unwrap()
}

fn error(root: &Fixture) -> GuardError {
    Cgroup::find(root.path()).unwrap_err()
}

fn is_unreadable(error: GuardError, name: &str) -> bool {
    matches!(error, GuardError::Unreadable { path, .. } if path.ends_with(name))
}

#[test]
fn version_2() {
    let root = Fixture::new("v2");
    root.v2("/pod/job", &[("/pod/job", "1000", "max", "600", "inactive_file 100\n")]);
    assert_eq!(read(&root, 1.0), Held { used: 500, limit: 1000 });
    // A limit that slows down counts as one that ends.
    root.v2("/pod/job", &[("/pod/job", "1000", "800", "600", "inactive_file 100\n")]);
    assert_eq!(read(&root, 1.0), Held { used: 500, limit: 800 });
    // More can be taken back than is used: the figures are of two moments.
    root.v2("/pod/job", &[("/pod/job", "max", "1000", "600", "inactive_file 700\n")]);
    assert_eq!(read(&root, 1.0), Held { used: 0, limit: 1000 });
}

#[test]
fn of_cgroups_one_in_the_other_the_one_with_the_least_left_counts() {
    let root = Fixture::new("nested");
    let groups = |slice: &'static str| {
        [
            ("/slice", "2000", "max", slice, "inactive_file 0\n"),
            ("/slice/pod", "max", "max", "900", "inactive_file 0\n"),
            ("/slice/pod/job", "1000", "max", "700", "inactive_file 100\n"),
        ]
    };
    root.v2("/slice/pod/job", &groups("1500"));
    let mut cgroup = Cgroup::find(root.path()).unwrap();
    assert_eq!(cgroup.levels.len(), 2);
    assert_eq!(cgroup.read(Duration::ZERO, 0.9).unwrap(), Held { used: 600, limit: 1000 });
    // Others fill the one above.
    root.v2("/slice/pod/job", &groups("1790"));
    assert_eq!(cgroup.read(Duration::from_millis(1), 0.9).unwrap(), Held { used: 1790, limit: 2000 });
    // The fraction decides, too: 50 of 1950 are left, and 400 of 1000; of half, less than none.
    root.v2("/slice/pod/job", &groups("1100"));
    assert_eq!(cgroup.read(Duration::from_millis(2), 1.0).unwrap().limit, 1000);
    assert_eq!(cgroup.read(Duration::from_millis(2), 0.4).unwrap(), Held { used: 1100, limit: 2000 });
}

#[test]
fn version_1() {
    let root = Fixture::new("v1");
    let stat = "total_inactive_file 50\n";
    root.v1(
        "/docker/0815",
        "/",
        &[("/docker/0815", "1000", "600", stat), ("", "9223372036854771712", "5", stat)],
    );
    assert_eq!(read(&root, 1.0), Held { used: 550, limit: 1000 });
    // A container sees its own part alone.
    root.v1("/docker/0815/job", "/docker/0815", &[("/job", "500", "400", stat), ("", "1000", "990", stat)]);
    assert_eq!(Cgroup::find(root.path()).unwrap().levels.len(), 2);
    assert_eq!(read(&root, 1.0), Held { used: 940, limit: 1000 });
    // What the one above says holds for itself alone.
    root.write("sys/fs/cgroup v1/memory/memory.use_hierarchy", "0\n");
    assert_eq!(read(&root, 1.0), Held { used: 350, limit: 500 });
}

#[test]
fn a_path_of_elsewhere_is_what_is_mounted() {
    let root = Fixture::new("namespace");
    root.v2("/../../slice/pod", &[("", "1000", "max", "600", "inactive_file 0\n")]);
    assert_eq!(read(&root, 1.0).limit, 1000);
    let other = Fixture::new("namespace of v1");
    other.v1("/elsewhere", "/docker/1", &[("", "1000", "600", "total_inactive_file 0\n")]);
    assert_eq!(read(&other, 1.0).limit, 1000);
}

#[test]
fn pages_of_files_are_looked_at_when_they_matter() {
    let root = Fixture::new("far away");
    root.v2("/job", &[("/job", "1000", "max", "449", "inactive_file 100\n")]);
    let mut cgroup = Cgroup::find(root.path()).unwrap();
    let mut used = |milliseconds| cgroup.read(Duration::from_millis(milliseconds), 0.9).unwrap().used;
    assert_eq!(used(0), 449);
    root.write("sys/fs/cgroup/job/memory.current", "451\n");
    assert_eq!(used(1), 351);
    root.write("sys/fs/cgroup/job/memory.stat", "inactive_file 200\n");
    assert_eq!(used(10), 351);
    assert_eq!(used(11), 251);
}

#[test]
fn wrong_settings_are_told() {
    let root = Fixture::new("wrong");
    assert!(is_unreadable(error(&root), "self/cgroup"));
    root.write("proc/self/cgroup", "3:cpuset:/\n");
    root.write("proc/self/mountinfo", "");
    assert!(matches!(error(&root), GuardError::NoCgroup));
    root.write("proc/self/cgroup", "0::/job\n");
    assert!(matches!(error(&root), GuardError::NoCgroup), "it is not mounted");

    let none = ("/slice/job", "max", "max", "600", "inactive_file 0\n");
    root.v2("/slice/job", &[none]);
    assert!(matches!(error(&root), GuardError::NoLimit { path } if path.ends_with("slice/job")));
    // The root has no limit, and no file for one.
    root.v2("/", &[]);
    std::fs::create_dir_all(root.path().join("sys/fs/cgroup")).unwrap();
    assert!(matches!(error(&root), GuardError::NoLimit { .. }));
    let v1 = Fixture::new("wrong, v1");
    v1.v1("/job", "/", &[("/job", "9223372036854771712", "600", ""), ("", "9223372036854771712", "5", "")]);
    assert!(matches!(error(&v1), GuardError::NoLimit { .. }));

    root.v2("/job", &[("/job", "a lot", "max", "600", "")]);
    assert!(is_unreadable(error(&root), "job/memory.max"));
    root.v2("/job", &[("/job", "1000", "max", "600", "")]);
    let mut cgroup = Cgroup::find(root.path()).unwrap();
    assert!(cgroup.read(Duration::ZERO, 0.9).is_err(), "memory.stat lacks a line");
    std::fs::remove_file(root.path().join("sys/fs/cgroup/job/memory.current")).unwrap();
    assert!(is_unreadable(error(&root), "job/memory.current"));
}

#[test]
fn a_limit_that_is_a_directory_cannot_be_read() {
    let root = Fixture::new("directory");
    root.v2("/job", &[("/job", "1000", "max", "600", "")]);
    std::fs::remove_file(root.path().join("sys/fs/cgroup/job/memory.max")).unwrap();
    std::fs::create_dir(root.path().join("sys/fs/cgroup/job/memory.max")).unwrap();
    assert!(is_unreadable(error(&root), "job/memory.max"));
}
