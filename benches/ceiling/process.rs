//! What the system tells of this process, and how much of it there may be.

use crate::CEILING;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// As `ulimit -v` does: what there is, and half as much again as the ceiling.
pub fn limit_addresses() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let most = kib(&status, "VmSize:") * 1024 + CEILING / 2 * 3;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: a limit of this process's own, read where it stands.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
}

/// A figure of `/proc/self/status`.
pub fn kib(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What this process has in memory, read without an allocation.
pub struct Resident(File);

impl Resident {
    pub fn new() -> Self {
        Self(File::open("/proc/self/statm").unwrap())
    }

    pub fn bytes(&self) -> u64 {
        let mut text = [0; 200];
        let len = self.0.read_at(&mut text, 0).unwrap();
        let text = str::from_utf8(&text[..len]).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }
}

/// What the process has used: its threads' and the system's milliseconds of the cores, those of dogtag's own
/// threads, and thousands of page faults.
pub struct Used([f64; 4]);

impl Used {
    pub fn now() -> Self {
        // SAFETY: plain numbers, for which 0 is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: writes there.
        assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) }, 0);
        let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
        let own = |task: std::io::Result<fs::DirEntry>| {
            let path = task.ok()?.path();
            let is_own = fs::read_to_string(path.join("comm")).ok()?.trim() == "dogtag";
            let on_core = fs::read_to_string(path.join("schedstat")).ok()?;
            let nanoseconds: f64 = on_core.split(' ').next()?.parse().ok()?;
            is_own.then_some(nanoseconds / 1e6)
        };
        let dogtag = fs::read_dir("/proc/self/task").unwrap().filter_map(own).sum();
        Self([ms(usage.ru_utime), ms(usage.ru_stime), dogtag, usage.ru_minflt as f64 / 1e3])
    }

    pub fn since(&self, before: &Self) -> [f64; 4] {
        std::array::from_fn(|i| self.0[i] - before.0[i])
    }
}
