//! How much memory may be used, and how much is.

use super::cgroup::{Cgroup, part};
use super::error::GuardError;
use super::kept_file::{KeptFile, line, number};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Says how much memory may be used before services are cancelled: of a cgroup, of the machine, or a number of
/// bytes.
///
/// ```
/// use dogtag::guard::Ceiling;
///
/// let in_a_container = Ceiling::cgroup(0.9);
/// let on_a_machine = Ceiling::physical(0.8);
/// let anywhere = Ceiling::bytes(4 << 30);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling(Kind);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Cgroup(f64),
    Physical(f64),
    Bytes(u64),
}

impl Ceiling {
    /// A fraction of the limit of the process's cgroup: `memory.max` or `memory.high` of version 2,
    /// `memory.limit_in_bytes` of version 1, also of the cgroups above it. Where there are several, the one
    /// of which the least is left counts. A limit that is changed is noticed within a second; one that is
    /// set where there was none when the guard began is not.
    ///
    /// What counts is all that is charged to that cgroup, other processes in it too, without the pages of files
    /// that were not used lately: the kernel takes those back before it ends anybody.
    #[must_use]
    pub const fn cgroup(fraction: f64) -> Self {
        Self(Kind::Cgroup(fraction))
    }

    /// A fraction of the machine's memory. What counts is what the process has in physical memory (its RSS).
    #[must_use]
    pub const fn physical(fraction: f64) -> Self {
        Self(Kind::Physical(fraction))
    }

    /// That many bytes. What counts is what the process has in physical memory (its RSS).
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(Kind::Bytes(bytes))
    }
}

/// What is used at a moment, and what may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) used: u64,
    pub(super) ceiling: u64,
    /// What the process has in physical memory.
    pub(super) own: u64,
}

/// Reads what is used, without an allocation.
#[derive(Debug)]
pub(super) struct Meter {
    statm: KeptFile,
    page: u64,
    counted: Counted,
}

#[derive(Debug)]
enum Counted {
    Process { ceiling: u64 },
    Cgroup { cgroup: Cgroup, fraction: f64, limits_read_at: Duration },
}

impl Meter {
    /// Opens what is to be read, below `root`, which is `/`.
    pub(super) fn open(ceiling: Ceiling, root: &Path) -> Result<Self, GuardError> {
        if let Kind::Cgroup(fraction) | Kind::Physical(fraction) = ceiling.0
            && !(fraction > 0.0 && fraction <= 1.0)
        {
            return Err(GuardError::Fraction { fraction });
        }
        let counted = match ceiling.0 {
            Kind::Bytes(ceiling) => Counted::Process { ceiling },
            Kind::Physical(fraction) => Counted::Process { ceiling: part(physical(root)?, fraction) },
            Kind::Cgroup(fraction) => {
                Counted::Cgroup { cgroup: Cgroup::find(root)?, fraction, limits_read_at: Duration::ZERO }
            }
        };
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let path = root.join("proc/self/statm");
        let statm = KeptFile::open(&path)?;
        let meter = Self { statm, page: page.try_into().unwrap_or(4096), counted };
        match meter.own() {
            Ok(_) => Ok(meter),
            Err(error) => Err(GuardError::Unreadable { path, error }),
        }
    }

    /// Reads, at a time of any clock that does not go back.
    pub(super) fn read(&mut self, now: Duration) -> io::Result<Reading> {
        let own = self.own()?;
        match &mut self.counted {
            Counted::Process { ceiling } => Ok(Reading { used: own, ceiling: *ceiling, own }),
            Counted::Cgroup { cgroup, fraction, limits_read_at } => {
                if now.saturating_sub(*limits_read_at) >= Cgroup::limits_age() {
                    cgroup.renew_limits()?;
                    *limits_read_at = now;
                }
                let held = cgroup.read(now, *fraction)?;
                Ok(Reading { used: held.used, ceiling: part(held.limit, *fraction), own })
            }
        }
    }

    /// What the process has in physical memory.
    fn own(&self) -> io::Result<u64> {
        let pages = self.statm.read(|text| {
            let space = text.iter().position(|byte| *byte == b' ')?;
            number(&text[space..])
        })?;
        Ok(pages * self.page)
    }
}

/// The machine's memory.
fn physical(root: &Path) -> Result<u64, GuardError> {
    let path = root.join("proc/meminfo");
    let read = KeptFile::read_once(&path, |text| line(text, b"MemTotal:"))?;
    let error = || GuardError::Unreadable { path, error: io::ErrorKind::NotFound.into() };
    read.map(|(_, kib)| kib * 1024).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::fixture::Fixture;

    #[test]
    fn of_a_process_its_own_pages_count() {
        let root = Fixture::new("process");
        root.write("proc/self/statm", "9000 700 300 1 0 8000 0\n");
        root.write("proc/meminfo", "MemTotal:       16000 kB\nMemFree:         1 kB\n");
        let mut meter = Meter::open(Ceiling::bytes(1 << 30), root.path()).unwrap();
        let page = meter.page;
        let now = Duration::ZERO;
        assert_eq!(meter.read(now).unwrap(), Reading { used: 700 * page, own: 700 * page, ceiling: 1 << 30 });
        root.write("proc/self/statm", "9000 800 300 1 0 8000 0\n");
        assert_eq!(meter.read(now).unwrap().used, 800 * page);
        let mut half = Meter::open(Ceiling::physical(0.5), root.path()).unwrap();
        assert_eq!(half.read(now).unwrap().ceiling, 8000 << 10);
        root.write("proc/self/statm", "nonsense");
        assert!(meter.read(now).is_err());
    }

    #[test]
    fn of_a_cgroup_all_that_is_in_it_counts() {
        let root = Fixture::new("cgroup, others too");
        root.v2("/pod", &[("/pod", "1000", "max", "700", "inactive_file 100\n")]);
        root.write("proc/self/statm", "9 1 0 0 0 0 0\n");
        let mut meter = Meter::open(Ceiling::cgroup(0.9), root.path()).unwrap();
        let own = meter.page;
        let mut at = |milliseconds| meter.read(Duration::from_millis(milliseconds)).unwrap();
        assert_eq!(at(0), Reading { used: 600, ceiling: 900, own });
        // The limit is changed, which is seen a second later.
        root.write("sys/fs/cgroup/pod/memory.max", "2000\n");
        assert_eq!(at(999), Reading { used: 600, ceiling: 900, own });
        assert_eq!(at(1001), Reading { used: 600, ceiling: 1800, own });
        root.write("sys/fs/cgroup/pod/memory.max", "max\n");
        assert_eq!(at(2001).ceiling, u64::MAX);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let root = Fixture::new("nothing there");
        let open = |ceiling| Meter::open(ceiling, root.path()).map(|_| ()).unwrap_err();
        for fraction in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(open(Ceiling::cgroup(fraction)), GuardError::Fraction { .. }));
            assert!(matches!(open(Ceiling::physical(fraction)), GuardError::Fraction { .. }));
        }
        let is_unreadable =
            |error, name| matches!(error, GuardError::Unreadable { path, .. } if path.ends_with(name));
        assert!(is_unreadable(open(Ceiling::bytes(1)), "statm"));
        assert!(is_unreadable(open(Ceiling::physical(1.0)), "meminfo"));
        assert!(is_unreadable(open(Ceiling::cgroup(1.0)), "self/cgroup"));
        root.write("proc/self/statm", "1\n");
        assert!(is_unreadable(open(Ceiling::bytes(1)), "statm"));
    }
}
