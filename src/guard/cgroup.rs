//! What a cgroup may hold, and what it holds, by the files of version 1 and 2.
//!
//! A limit of any cgroup above the process's own counts too, with what is used there by others. What the
//! kernel takes back before it ends a process is not counted: pages of files that were not used lately
//! (`inactive_file`), as the kubelet does.

use super::error::GuardError;
use super::kept_file::{KeptFile, line, number};
use std::io;
use std::path::Path;
use std::time::Duration;

/// The process's cgroup, and those above it that have limits.
#[derive(Debug)]
pub(super) struct Cgroup {
    levels: Vec<Level>,
}

/// What there is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) used: u64,
    pub(super) limit: u64,
}

/// A cgroup that has a limit.
#[derive(Debug)]
struct Level {
    limits: Vec<KeptFile>,
    /// The least of the limits; `u64::MAX` for none.
    limit: u64,
    usage: KeptFile,
    stat: KeptFile,
    version: &'static Version,
    /// What of the use can be taken back.
    inactive: u64,
    inactive_at: Option<Duration>,
}

/// The names of one version's files.
#[derive(Debug)]
struct Version {
    file_system: &'static str,
    limits: &'static [&'static str],
    usage: &'static str,
    inactive: &'static [u8],
}

/// (A soft limit of version 1 ends nobody, and slows nobody down.)
static V1: Version = Version {
    file_system: "cgroup",
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    inactive: b"total_inactive_file ",
};

static V2: Version = Version {
    file_system: "cgroup2",
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    inactive: b"inactive_file ",
};

/// How old a figure of `memory.stat` may be, for which the kernel adds up much; and a limit, which
/// somebody changes by hand.
const STAT_AGE: Duration = Duration::from_millis(10);
const LIMIT_AGE: Duration = Duration::from_secs(1);

impl Cgroup {
    /// Finds the cgroups of this process, below `root`, which is `/`.
    pub(super) fn find(root: &Path) -> Result<Self, GuardError> {
        let read = |path: &str| {
            let path = root.join(path);
            std::fs::read_to_string(&path).map_err(|error| GuardError::Unreadable { path, error })
        };
        let own = read("proc/self/cgroup")?;
        let (version, path) = membership(&own).ok_or(GuardError::NoCgroup)?;
        let mounts = read("proc/self/mountinfo")?;
        let (mount, path) = place(&mounts, version, path).ok_or(GuardError::NoCgroup)?;
        let mount = root.join(mount.trim_start_matches('/'));
        let mut at = mount.join(path.trim_start_matches('/'));
        if !at.is_dir() {
            // A namespace's path, from elsewhere: what is mounted is the process's own.
            at = mount.clone();
        }
        let directory = at.clone();
        let mut levels = Vec::new();
        loop {
            levels.extend(Level::of(&at, version)?);
            let is_heeded = |above: &Path| {
                // Version 1 could have limits that end at a directory.
                let path = above.join("memory.use_hierarchy");
                KeptFile::read_once(&path, number).map(|read| read.is_none_or(|(_, heeded)| heeded != 0))
            };
            if at == mount || !at.pop() || !is_heeded(&at)? {
                break;
            }
        }
        if levels.is_empty() {
            return Err(GuardError::NoLimit { path: directory });
        }
        Ok(Self { levels })
    }

    /// Reads what is used where the least is left, if each may use that fraction of its limit.
    pub(super) fn read(&mut self, now: Duration, fraction: f64) -> io::Result<Held> {
        let mut least: Option<(i128, Held)> = None;
        for level in &mut self.levels {
            let held = level.read(now, fraction)?;
            let left = i128::from(part(held.limit, fraction)) - i128::from(held.used);
            if least.is_none_or(|(known, _)| left < known) {
                least = Some((left, held));
            }
        }
        least.map(|(_, held)| held).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Reads the limits again, if it is time.
    pub(super) fn renew_limits(&mut self) -> io::Result<()> {
        self.levels.iter_mut().try_for_each(Level::read_limit)
    }

    pub(super) const fn limits_age() -> Duration {
        LIMIT_AGE
    }
}

/// A fraction of a number of bytes.
pub(super) fn part(bytes: u64, fraction: f64) -> u64 {
    if bytes == u64::MAX { bytes } else { (bytes as f64 * fraction) as u64 }
}

impl Level {
    /// `None` if there is no limit there.
    fn of(directory: &Path, version: &'static Version) -> Result<Option<Self>, GuardError> {
        let mut limits = Vec::new();
        let mut limit = u64::MAX;
        for name in version.limits {
            if let Some((file, bytes)) = KeptFile::read_once(&directory.join(name), limit_of)? {
                limits.push(file);
                limit = limit.min(bytes);
            }
        }
        if limit == u64::MAX {
            return Ok(None);
        }
        let usage = KeptFile::open(&directory.join(version.usage))?;
        let stat = KeptFile::open(&directory.join("memory.stat"))?;
        Ok(Some(Self { limits, limit, usage, stat, version, inactive: 0, inactive_at: None }))
    }

    fn read_limit(&mut self) -> io::Result<()> {
        let least = |least: u64, file: &KeptFile| Ok::<u64, io::Error>(least.min(file.read(limit_of)?));
        self.limit = self.limits.iter().try_fold(u64::MAX, least)?;
        Ok(())
    }

    fn read(&mut self, now: Duration, fraction: f64) -> io::Result<Held> {
        let usage = self.usage.read(number)?;
        let is_old = self.inactive_at.is_none_or(|at| now.saturating_sub(at) >= STAT_AGE);
        // Far below, it is no matter what of it is what.
        if is_old && usage >= part(self.limit, fraction) / 2 {
            self.inactive = self.stat.read(|text| line(text, self.version.inactive))?;
            self.inactive_at = Some(now);
        }
        Ok(Held { used: usage.saturating_sub(self.inactive), limit: self.limit })
    }
}

/// A limit, as a file has it; `u64::MAX` for none.
fn limit_of(text: &[u8]) -> Option<u64> {
    // What version 1 says for none is the most pages that it can count.
    const NONE: u64 = 1 << 60;

    if text.trim_ascii() == b"max" {
        return Some(u64::MAX);
    }
    number(text).map(|bytes| if bytes >= NONE { u64::MAX } else { bytes })
}

/// In which cgroup the process is, as `/proc/self/cgroup` tells: of the version that counts memory.
fn membership(text: &str) -> Option<(&'static Version, &str)> {
    let mut lines = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some((parts.next()?, parts.next()?))
    });
    let is_v1 = |(controllers, _): &(&str, &str)| controllers.split(',').any(|name| name == "memory");
    match lines.clone().find(is_v1) {
        Some((_, path)) => Some((&V1, path)),
        None => lines.find(|(controllers, _)| controllers.is_empty()).map(|(_, path)| (&V2, path)),
    }
}

/// Where the cgroups are mounted, and where the process's is below that, as `/proc/self/mountinfo` tells.
fn place<'a>(mounts: &str, version: &Version, path: &'a str) -> Option<(String, &'a str)> {
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut kind = file_system.split(' ');
        if kind.next()? != version.file_system {
            return None;
        }
        let mut has = kind.nth(1)?.split(',');
        if version.file_system == V1.file_system && !has.any(|option| option == "memory") {
            return None;
        }
        let mut words = mount.split(' ').skip(3);
        let (root, point) = (words.next()?, words.next()?);
        // A container sees a part of the tree, which has its own path as root.
        let below = if root == "/" { path } else { path.strip_prefix(root).unwrap_or("/") };
        Some((unescaped(point), below))
    })
}

/// A path without the escapes for spaces and the like: `\040`.
fn unescaped(path: &str) -> String {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        match octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests;
