//! What the threads of a program have in common, and the model held against what dogtag says.

use super::futures::Task;
use super::homes::Block;
use super::pools::Tree;
use super::program::THREADS;
#[cfg(target_os = "linux")]
use super::regions::Region;
use super::watch::with_peak;
use crate::engine::account::{Account, Held, NONE, expect};
use crate::engine::{Mode, aside};
use dogtag::{Row, Service, Snapshot, Usage};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

pub struct World {
    /// Of this program's services; others' are not looked at.
    prefix: String,
    /// Whether one thread at a time does anything.
    pub in_turn: bool,
    /// All that there were, by name and handle, of which one is nobody else's.
    known: Mutex<HashMap<(String, u32), Arc<Account>>>,
    /// The service of what nobody claims, the harness's blocks among them.
    pub nobody: Arc<Account>,
    pub board: Mutex<Vec<Held>>,
    pub mail: [Mutex<Vec<Block>>; THREADS],
    pub tasks: Mutex<Vec<Task>>,
    pub pool_mail: [Mutex<Vec<Tree>>; THREADS],
    #[cfg(target_os = "linux")]
    pub regions: Mutex<Vec<Arc<Region>>>,
    /// What had ended before.
    ended_before: Usage,
    unique: AtomicU64,
}

impl World {
    pub fn new(in_turn: bool) -> Self {
        static RUNS: AtomicU64 = AtomicU64::new(0);

        let nobody = Arc::new(Account::new("unattributed".into(), 0, None, None));
        Self {
            prefix: format!("{}: ", RUNS.fetch_add(1, SeqCst)),
            in_turn,
            known: Mutex::default(),
            nobody,
            board: Mutex::default(),
            mail: Default::default(),
            tasks: Mutex::default(),
            pool_mail: Default::default(),
            #[cfg(target_os = "linux")]
            regions: Mutex::default(),
            ended_before: dogtag::snapshot().ended,
            unique: AtomicU64::new(0),
        }
    }

    pub fn mode(&self) -> Mode {
        if self.in_turn { Mode::Alone } else { Mode::Among }
    }

    pub fn name(&self, name: usize) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A name that nobody has had, and a number.
    pub fn unique(&self) -> (String, u64) {
        let number = self.unique.fetch_add(1, SeqCst);
        (format!("{}with a handle {number}", self.prefix), number)
    }

    pub fn service(&self, number: usize) -> Option<Held> {
        let board = self.board.lock().unwrap();
        let index = number.checked_rem(board.len())?;
        Some(board[index].clone())
    }

    /// The model of a service, which is a new one's if there is none. That had the limit from
    /// the beginning.
    pub fn known(&self, service: &Service, hard: Option<u64>) -> Arc<Account> {
        let parent = service.parent().map(|parent| self.known(&parent, None));
        let identity = (service.name().to_owned(), service.handle());
        let new =
            || Arc::new(Account::new(service.name().to_owned(), service.handle(), parent.clone(), hard));
        let known = Arc::clone(self.known.lock().unwrap().entry(identity).or_insert_with(new));
        assert!(
            match (&known.parent, &parent) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (one, other) => one.is_none() && other.is_none(),
            },
            "{} has another parent",
            known.name
        );
        known
    }

    /// In turn: the service that is found by a name or handle.
    pub fn living(&self, is_it: impl Fn(&Account) -> bool) -> Option<Arc<Account>> {
        self.note_retired();
        let known = self.known.lock().unwrap();
        known.values().find(|known| is_it(known) && !known.is_retired.load(SeqCst)).cloned()
    }

    /// Services that nobody has a clone of any more.
    pub fn note_retired(&self) {
        let known = self.known.lock().unwrap();
        known
            .values()
            .filter(|known| !known.has_clones())
            .for_each(|known| known.is_retired.store(true, SeqCst));
    }

    /// After a snapshot was taken: what has ended by then.
    fn note_ended(&self) {
        loop {
            self.note_retired();
            let known = self.known.lock().unwrap();
            let mut ended =
                known.values().filter(|known| known.is_quiet() && !known.has_ended.load(SeqCst)).peekable();
            if ended.peek().is_none() {
                return;
            }
            ended.for_each(|known| known.end());
        }
    }

    /// Holds all figures against the model, while nobody does anything.
    pub fn check(&self) {
        aside(|| {
            crate::watch::eventually(|| {
                self.note_retired();
                let snapshot = dogtag::snapshot();
                self.note_ended();
                let Err(error) = self.compare(&snapshot) else { return Ok(()) };
                // Whoever announces what a limit has done holds its service meanwhile.
                let may_wait = self.known.lock().unwrap().values().any(|known| known.is_limited.load(SeqCst));
                let error = format!("{error}\n{snapshot:#}");
                if may_wait { Err(error) } else { panic!("{error}") }
            });
            for held in self.board.lock().unwrap().iter() {
                self.check_one(held);
            }
            #[cfg(target_os = "linux")]
            self.regions.lock().unwrap().iter().for_each(|region| region.check());
            let nobody = self.nobody.usage();
            let usage = Service::unattributed().usage();
            assert!(
                usage.bytes() >= nobody.bytes() && usage.blocks() >= nobody.blocks(),
                "nobody's are missing"
            );
        });
    }

    /// At the end.
    pub fn check_all_ended(&self) {
        for known in self.known.lock().unwrap().values() {
            assert!(known.has_ended.load(SeqCst), "{} has not ended", known.name);
        }
    }

    fn check_one(&self, Held { service, account: known, .. }: &Held) {
        let usage = service.usage();
        expect(&known.name, usage, [&**known]).unwrap();
        let (found, expected) = (service.headroom(), known.headroom());
        assert!(
            found == expected,
            "{known:?}: headroom {found:?}, not {expected:?}, then {:?}",
            service.headroom()
        );
        if self.in_turn {
            let peaks = known.peaks();
            assert!(
                peaks.contains(&usage.peak_bytes),
                "{}: peak {}, not {peaks:?}",
                known.name,
                usage.peak_bytes
            );
        }
    }

    fn compare(&self, snapshot: &Snapshot) -> Result<(), String> {
        let sum = snapshot.rows.iter().map(|row| row.usage).fold(snapshot.ended, |sum, usage| sum + usage);
        let totals = with_peak(sum.peak_bytes, snapshot.totals);
        if sum != totals {
            return Err(format!("the rows and what has ended are {sum:?}, the totals {totals:?}"));
        }
        let rows = snapshot.rows.iter().filter(|row| row.name.starts_with(&self.prefix));
        let mut rows: HashMap<_, _> = rows.map(|row| ((row.name.clone(), row.handle), row)).collect();
        let all: Vec<Arc<Account>> = self.known.lock().unwrap().values().cloned().collect();
        let (ended, there): (Vec<_>, Vec<_>) = all.iter().partition(|known| known.has_ended.load(SeqCst));
        for known in there {
            let row = rows.remove(&(known.name.clone(), known.handle));
            let row = row.ok_or_else(|| format!("there is no row of {known:?}"))?;
            let family = all.iter().map(|below| &**below).filter(|below| below.is_in_family_of(known));
            expect(&format!("{}: with children", known.name), row.usage_with_children, family)?;
            self.compare_row(known, row, snapshot)?;
        }
        if let Some(row) = rows.values().next() {
            return Err(format!("a row of a service that has ended: {row:?}"));
        }
        let ended = ended.into_iter().map(|account| &**account);
        expect("what has ended", snapshot.ended.since(&self.ended_before), ended)
    }

    fn compare_row(&self, known: &Arc<Account>, row: &Row, snapshot: &Snapshot) -> Result<(), String> {
        expect(&known.name, row.usage, [&**known])?;
        let (hard, soft) = (row.hard_limit.unwrap_or(NONE), row.soft_limit.unwrap_or(NONE));
        let parent = row.parent.map(|parent| (&snapshot.rows[parent].name, snapshot.rows[parent].handle));
        let is_as_known = (hard, soft) == (known.hard.load(SeqCst), known.soft.load(SeqCst))
            && parent == known.parent.as_ref().map(|parent| (&parent.name, parent.handle))
            && row.usage.peak_bytes >= row.usage.bytes();
        // Whether it was without clones for a moment, nobody knows who was not alone.
        let is_retired = known.is_retired.load(SeqCst);
        let is_told = row.is_retired == is_retired || (!self.in_turn && !is_retired);
        // Peaks are looked at last: to read one is to change what it may be.
        let is_peak = !self.in_turn || known.peaks().contains(&row.usage.peak_bytes);
        if is_as_known && is_told && is_peak {
            return Ok(());
        }
        let peaks = known.peaks();
        Err(format!(
            "{row:?} is retired {is_retired}, limited to {hard} and {soft}, with a peak of {peaks:?}"
        ))
    }
}
