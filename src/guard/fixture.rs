//! Directories that look like those in which the system tells figures, for tests.

use std::path::{Path, PathBuf};

/// A directory in place of `/`.
pub(super) struct Fixture(PathBuf);

impl Fixture {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dogtag guard {} {name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file anew; who has it open sees that.
    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// A process in a cgroup of version 2; and what its cgroups have: path, `memory.max`, `memory.high`,
    /// `memory.current`, `memory.stat`.
    pub(super) fn v2(&self, own: &str, groups: &[(&str, &str, &str, &str, &str)]) {
        self.write("proc/self/cgroup", &format!("0::{own}\n"));
        self.write(
            "proc/self/mountinfo",
            "22 28 0:21 / /proc rw - proc proc rw\n\
             31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        for (path, max, high, current, stat) in groups {
            let file = |name: &str, text: &str| self.write(&format!("sys/fs/cgroup{path}/{name}"), text);
            file("memory.max", &format!("{max}\n"));
            file("memory.high", &format!("{high}\n"));
            file("memory.current", &format!("{current}\n"));
            file("memory.stat", &format!("anon 1\nfile 2\nactive_file 3\n{stat}"));
        }
    }

    /// A process in a cgroup of version 1, beside a version 2 that counts no memory; and what its cgroups
    /// have: path, limit, usage, `memory.stat`.
    pub(super) fn v1(&self, own: &str, root: &str, groups: &[(&str, &str, &str, &str)]) {
        self.write(
            "proc/self/cgroup",
            &format!("9:name=systemd:/\n4:cpu,memory:{own}\n1:cpuset:/\n0::/other\n"),
        );
        self.write(
            "proc/self/mountinfo",
            &format!(
                "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                 35 31 0:32 {root} /sys/fs/cgroup\\040v1/memory rw,relatime - cgroup cgroup rw,cpu,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            ),
        );
        for (path, limit, usage, stat) in groups {
            let file =
                |name: &str, text: &str| self.write(&format!("sys/fs/cgroup v1/memory{path}/{name}"), text);
            file("memory.limit_in_bytes", &format!("{limit}\n"));
            file("memory.usage_in_bytes", &format!("{usage}\n"));
            file("memory.stat", &format!("cache 1\ninactive_file 1\ntotal_cache 2\n{stat}"));
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
