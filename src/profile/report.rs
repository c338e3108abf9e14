//! A profile: what was sampled, calibrated by the ledger's exact figures.

#[cfg(feature = "serde")]
mod stored;
#[cfg(test)]
pub(super) mod tests;

use super::calibrate::calibrate;
use super::collect::{Collected, CollectedRow, Kind, ServiceTotal};
use super::frame::Frame;
use super::frames;
use super::mappings::{self, Mapping};
use super::own;
use super::row::{Estimate, Origin, ProfileRow, ProfileService};
use super::symbols::Names;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Holds what services have allocated, by call stack.
///
/// A row is an estimate, of samples. The rows of a service add up to the service's exact figures, to
/// the byte: what is missing is spread over them by their errors. What was allocated before sampling began, and what
/// there is no sample of, is in rows [without a stack](Origin).
///
/// Names of functions are looked up when they are first needed, on the calling thread, each address
/// once: they are kept for the profiles to come, up to 16 MiB of them. That reads the program's debug
/// information, and takes the time and, until it is done, the memory that this needs (charged to the
/// service `dogtag::profile`, as all that profiles take). [`Pprof::without_names`] does without.
///
/// `Display` writes a table: [`by_own_code`](Self::by_own_code). A precision bounds the lines of
/// each service: `format!("{profile:.5}")` shows the five largest.
///
/// With the feature `serde` it is written with the names, and can be read where the program does not
/// run; it is read from JSON that lacks fields, which are then as in `Profile::default()`.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let profile = dogtag::profile::Profile::default();
/// println!("{profile}");
/// println!("{:.20}", profile.by_function());
/// profile.write_pprof(std::fs::File::create(std::env::temp_dir().join("heap.pb.gz"))?)?;
/// # std::fs::remove_file(std::env::temp_dir().join("heap.pb.gz"))
/// # }
/// ```
///
/// [`Pprof::without_names`]: super::Pprof::without_names
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "stored::Stored", from = "stored::Stored"))]
#[non_exhaustive]
pub struct Profile {
    /// What the figures count.
    pub kind: Kind,
    /// Whether this is what changed between two profiles: [`difference`](Self::difference). Figures
    /// are negative then where less is live than before.
    pub is_difference: bool,
    /// The mean number of bytes between two samples; 0 if sampling had been stopped.
    pub interval: u64,
    /// Samples, or their call stacks, that were dropped because a table was full, since the process began. Up to
    /// one in a hundred, the rows make up for them; what is missing beyond that is
    /// [not sampled](Origin::NotSampled).
    pub dropped: u64,
    /// When sampling began; of a difference, when the earlier profile was taken.
    pub began: SystemTime,
    /// When the profile was taken.
    pub taken: SystemTime,
    /// The exact figures of each service, the one with the most bytes first.
    pub services: Vec<ProfileService>,
    /// What each service allocated with each call stack, the row with the most bytes first.
    pub rows: Vec<ProfileRow>,
    pub(super) mappings: Arc<[Mapping]>,
    pub(super) names: OnceLock<Arc<Names>>,
}

impl Default for Profile {
    /// Returns a profile without rows, taken at the Unix epoch.
    fn default() -> Self {
        Self {
            kind: Kind::Live,
            is_difference: false,
            interval: 0,
            dropped: 0,
            began: SystemTime::UNIX_EPOCH,
            taken: SystemTime::UNIX_EPOCH,
            services: Vec::new(),
            rows: Vec::new(),
            mappings: Arc::new([]),
            names: OnceLock::new(),
        }
    }
}

impl Profile {
    /// Returns the profile of what was collected.
    pub(crate) fn new(collected: Collected) -> Self {
        // Reports are nobody's, whatever the limit of the service that asks.
        let _scope = own::enter();
        let Collected { kind, rows, services, interval, dropped, began, taken } = collected;
        // One in a hundred is less than the samples' own error.
        let samples: u64 = rows.iter().map(|row| row.samples).sum();
        let is_complete = interval != 0 && dropped <= samples / 100;
        let (services, rows) = calibrated(services, rows, is_complete);
        let mappings = mappings::all().into();
        Self { kind, interval, dropped, began, taken, services, rows, mappings, ..Self::default() }
    }

    /// Returns the sum of all rows' requested bytes: exact, as each service's sum.
    #[must_use]
    pub fn bytes(&self) -> i64 {
        self.rows.iter().map(|row| row.bytes).sum()
    }

    /// Returns the sum of all rows' blocks: exact, as each service's sum.
    #[must_use]
    pub fn objects(&self) -> i64 {
        self.rows.iter().map(|row| row.objects).sum()
    }

    /// Returns the number of samples that the profile is made of.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.rows.iter().map(|row| row.samples).sum()
    }

    /// Returns what changed since an earlier profile of the same process.
    ///
    /// Rows are matched by service (name and handle) and call stack. Of live profiles each row is
    /// what has come to be live since then, negative where less is. Of profiles of what was allocated
    /// it is what was allocated between the two, and never negative. Rows that are as before are
    /// left out. Of two profiles of different kinds it is the difference of their figures.
    ///
    /// The services' figures are exact here, too. The error of a row is that of both profiles
    /// together: much of it is in both, so the row is closer to the truth than it says.
    ///
    /// ```
    /// # let (before, after) = (dogtag::profile::Profile::default(), dogtag::profile::Profile::default());
    /// let growth = after.difference(&before);
    /// println!("{growth}");
    /// ```
    #[must_use]
    pub fn difference(&self, earlier: &Self) -> Self {
        let _scope = own::enter();
        let both_allocated = self.kind == Kind::Allocated && earlier.kind == Kind::Allocated;
        let (services, rows) =
            if both_allocated { self.allocated_since(earlier) } else { self.growth_since(earlier) };
        let names = OnceLock::new();
        if self.names.get().is_some() || earlier.names.get().is_some() {
            let _ = names.set(Arc::new(self.names().and(earlier.names())));
        }
        Self {
            kind: self.kind,
            is_difference: true,
            interval: self.interval,
            dropped: self.dropped.saturating_sub(earlier.dropped),
            began: earlier.taken,
            taken: self.taken,
            services,
            rows,
            mappings: Arc::clone(&self.mappings),
            names,
        }
    }

    /// Samples of what was allocated are never taken back, so those between two profiles are the
    /// difference of the estimates, and add up to what the services allocated between.
    fn allocated_since(&self, earlier: &Self) -> (Vec<ProfileService>, Vec<ProfileRow>) {
        let since = |now: i64, then: i64| now.saturating_sub(then).max(0).unsigned_abs();
        let then = by_service(&earlier.services);
        let services: Vec<ServiceTotal> = self
            .services
            .iter()
            .map(|now| {
                let (objects, bytes) =
                    then.get(&(&*now.name, now.handle)).map_or((0, 0), |then| (then.objects, then.bytes));
                ServiceTotal {
                    name: now.name.as_str().into(),
                    handle: now.handle,
                    bytes: since(now.bytes, bytes),
                    blocks: since(now.objects, objects),
                    bytes_before: 0,
                    blocks_before: 0,
                }
            })
            .collect();
        let places: HashMap<(&str, u32), usize> =
            services.iter().zip(0..).map(|(service, i)| ((&*service.name, service.handle), i)).collect();
        let mut then: HashMap<Key<'_>, (u64, Estimate)> = HashMap::new();
        for row in &earlier.rows {
            then.insert(key(row), (row.samples, row.estimate));
        }
        let mut rows = Vec::new();
        for row in &self.rows {
            let Origin::Stack(stack) = &row.origin else { continue };
            let Some(service) = places.get(&(&*row.service, row.handle)) else { continue };
            let (samples, then) = then.get(&key(row)).copied().unwrap_or_default();
            if row.samples <= samples {
                continue;
            }
            rows.push(CollectedRow {
                service: *service,
                stack: stack.as_slice().into(),
                samples: row.samples - samples,
                objects: row.estimate.objects - then.objects,
                bytes: row.estimate.bytes - then.bytes,
                objects_variance: row.estimate.objects_variance - then.objects_variance,
                bytes_variance: row.estimate.bytes_variance - then.bytes_variance,
            });
        }
        calibrated(services, rows, true)
    }

    fn growth_since(&self, earlier: &Self) -> (Vec<ProfileService>, Vec<ProfileRow>) {
        let mut services = self.services.clone();
        let mut places: HashMap<(String, u32), usize> = HashMap::new();
        for (place, service) in services.iter().enumerate() {
            places.insert((service.name.clone(), service.handle), place);
        }
        for then in &earlier.services {
            let place = *places.entry((then.name.clone(), then.handle)).or_insert_with(|| {
                let (name, handle) = (then.name.clone(), then.handle);
                services.push(ProfileService { name, handle, objects: 0, bytes: 0 });
                services.len() - 1
            });
            services[place].objects -= then.objects;
            services[place].bytes -= then.bytes;
        }
        services.retain(|service| service.bytes != 0 || service.objects != 0);

        let mut rows = self.rows.clone();
        let mut places: HashMap<Key<'_>, usize> = HashMap::new();
        for (place, row) in self.rows.iter().enumerate() {
            places.insert(key(row), place);
        }
        for then in &earlier.rows {
            let place = *places.entry(key(then)).or_insert_with(|| {
                let (service, origin) = (then.service.clone(), then.origin.clone());
                rows.push(ProfileRow { service, handle: then.handle, origin, ..ProfileRow::default() });
                rows.len() - 1
            });
            rows[place].objects -= then.objects;
            rows[place].bytes -= then.bytes;
            rows[place].standard_error = rows[place].standard_error.hypot(then.standard_error);
            rows[place].samples += then.samples;
        }
        rows.retain(|row| row.bytes != 0 || row.objects != 0);
        (sorted_services(services), sorted_rows(rows))
    }

    /// Returns the functions of a row's call stack, innermost first, with those that the compiler
    /// inlined; none for a row without a stack.
    ///
    /// Functions of the allocator and of `alloc::alloc` are left out at the top, and what begins the
    /// program or the thread at the bottom.
    ///
    /// ```
    /// # let profile = dogtag::profile::Profile::default();
    /// for row in &profile.rows {
    ///     println!("{} B of {}, allocated in", row.bytes, row.service);
    ///     for frame in profile.frames(row) {
    ///         println!("    {}", frame.function);
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn frames(&self, row: &ProfileRow) -> Vec<&Frame> {
        let names = self.names();
        let all: Vec<&Frame> = row.origin.stack().iter().flat_map(|address| names.frames(*address)).collect();
        let shown = frames::shown(&all);
        all[shown].to_vec()
    }

    pub(super) fn names(&self) -> &Names {
        self.names.get_or_init(|| {
            let addresses = self.rows.iter().flat_map(|row| row.origin.stack()).copied();
            Arc::new(Names::look_up(addresses, &self.mappings))
        })
    }
}

/// What makes a row the same as one of another profile.
type Key<'a> = (&'a str, u32, &'a Origin);

fn key(row: &ProfileRow) -> Key<'_> {
    (&row.service, row.handle, &row.origin)
}

fn by_service(services: &[ProfileService]) -> HashMap<(&str, u32), &ProfileService> {
    services.iter().map(|service| ((&*service.name, service.handle), service)).collect()
}

fn calibrated(
    services: Vec<ServiceTotal>,
    sampled: Vec<CollectedRow>,
    is_complete: bool,
) -> (Vec<ProfileService>, Vec<ProfileRow>) {
    let mut by_service: Vec<Vec<CollectedRow>> = services.iter().map(|_| Vec::new()).collect();
    let mut places: HashMap<(usize, Arc<[usize]>), usize> = HashMap::new();
    for row in sampled {
        let Some(rows) = by_service.get_mut(row.service) else { continue };
        let place = *places.entry((row.service, Arc::clone(&row.stack))).or_insert(rows.len());
        if let Some(same) = rows.get_mut(place) {
            same.samples += row.samples;
            same.objects += row.objects;
            same.bytes += row.bytes;
            same.objects_variance += row.objects_variance;
            same.bytes_variance += row.bytes_variance;
        } else {
            rows.push(row);
        }
    }
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for (service, sampled) in services.iter().zip(by_service) {
        let calibrated = calibrate(service, sampled, is_complete);
        if calibrated.is_empty() {
            continue;
        }
        figures.push(ProfileService {
            name: service.name.to_string(),
            handle: service.handle,
            objects: calibrated.iter().map(|row| row.objects).sum(),
            bytes: calibrated.iter().map(|row| row.bytes).sum(),
        });
        rows.extend(calibrated);
    }
    (sorted_services(figures), sorted_rows(rows))
}

fn sorted_services(mut services: Vec<ProfileService>) -> Vec<ProfileService> {
    services
        .sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| (&a.name, a.handle).cmp(&(&b.name, b.handle))));
    services
}

fn sorted_rows(mut rows: Vec<ProfileRow>) -> Vec<ProfileRow> {
    rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| key(a).cmp(&key(b))));
    rows
}
