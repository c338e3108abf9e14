//! What is shown, and what keys change of that.

use crate::figures::{Figures, Id, Service};
use crate::size::printable;
use crate::tree::arrange;
use dogtag::Balance;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};

/// Moments of a sparkline.
pub const MOMENTS: usize = 60;

/// By what services are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Live,
    Growth,
    Peak,
    Allocated,
    Blocks,
    Name,
}

impl Sort {
    pub const ALL: [Self; 6] =
        [Self::Live, Self::Growth, Self::Peak, Self::Allocated, Self::Blocks, Self::Name];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Growth => "growth",
            Self::Peak => "peak",
            Self::Allocated => "allocated",
            Self::Blocks => "blocks",
            Self::Name => "name",
        }
    }
}

/// What the program has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    GoOn,
    Quit,
    /// Ctrl-Z.
    Suspend,
}

/// One line of the table.
#[derive(Debug)]
pub struct Line<'a> {
    pub service: &'a Service,
    pub depth: usize,
    /// Of the service, or of its family where that is shown.
    pub live: u64,
    /// Bytes in a second.
    pub growth: i64,
    /// The oldest first.
    pub history: Vec<u64>,
}

/// A service's live bytes, so far.
#[derive(Debug, Default)]
struct History {
    /// At the last moments; where it was not asked for then, what was known.
    moments: VecDeque<u64>,
    /// Bytes in a second, between the last two times that it was asked for.
    growth: i64,
    /// The last time, and what was live.
    last: Option<(u64, u64)>,
}

impl History {
    fn take(&mut self, service: &Service) {
        let (time, live) = (service.read_at, service.usage.bytes());
        push(&mut self.moments, live);
        match self.last {
            Some((before, _)) if before == time => return,
            Some((before, held)) => self.growth = growth(held, live, time.saturating_sub(before)),
            None => {}
        }
        self.last = Some((time, live));
    }
}

/// The bytes in a second, from what was held before and is held now, so many milliseconds later.
fn growth(before: u64, now: u64, milliseconds: u64) -> i64 {
    let growth = i128::from(now) - i128::from(before);
    let limit = if growth < 0 { i64::MIN } else { i64::MAX };
    i64::try_from(growth * 1000 / i128::from(milliseconds.max(1))).unwrap_or(limit)
}

/// All that is known of the process.
#[derive(Debug)]
pub struct State {
    pub program: String,
    pub pid: u32,
    pub figures: Figures,
    pub balance: Option<Balance>,
    /// What is wrong, if something is.
    pub trouble: Option<String>,
    pub has_ended: bool,
    pub sort: Sort,
    pub is_reversed: bool,
    pub is_tree: bool,
    pub is_paused: bool,
    pub has_help: bool,
    /// What is typed of a filter, while it is typed.
    pub typed: Option<String>,
    pub filter: String,
    /// The line that is marked, and the first one that is shown.
    pub marked: usize,
    pub first: usize,
    /// Lines that there is room for, as was drawn last.
    pub height: usize,
    /// Live bytes at the last moments, and their sum.
    histories: HashMap<Id, History>,
    totals: VecDeque<u64>,
    times: VecDeque<u64>,
    costs: VecDeque<u64>,
}

impl State {
    pub fn new(program: &str, pid: u32) -> Self {
        Self {
            program: printable(program, 60),
            pid,
            figures: Figures::default(),
            balance: None,
            trouble: None,
            has_ended: false,
            sort: Sort::Live,
            is_reversed: false,
            is_tree: false,
            is_paused: false,
            has_help: false,
            typed: None,
            filter: String::new(),
            marked: 0,
            first: 0,
            height: 1,
            histories: HashMap::new(),
            totals: VecDeque::new(),
            times: VecDeque::new(),
            costs: VecDeque::new(),
        }
    }

    /// Takes figures of a later moment.
    pub fn take(&mut self, figures: Figures) {
        self.trouble = None;
        if self.is_paused {
            return;
        }
        let mut histories = HashMap::with_capacity(figures.services.len());
        for service in &figures.services {
            let mut history = self.histories.remove(&service.id).unwrap_or_default();
            history.take(service);
            histories.insert(service.id, history);
        }
        // Those of services that have ended go.
        self.histories = histories;
        push(&mut self.totals, figures.totals.bytes());
        push(&mut self.times, figures.time);
        push(&mut self.costs, figures.cost);
        self.figures = figures;
        self.keep_in_view();
    }

    pub fn take_balance(&mut self, balance: Balance) {
        if !self.is_paused {
            self.balance = Some(balance);
        }
    }

    /// The bytes in a second by which all have grown, between the last two moments.
    pub fn total_growth(&self) -> i64 {
        let last_two = |values: &VecDeque<u64>| {
            let mut values = values.iter().rev().copied();
            Some((values.next()?, values.next()?))
        };
        match (last_two(&self.totals), last_two(&self.times)) {
            (Some((now, before)), Some((later, earlier))) => {
                growth(before, now, later.saturating_sub(earlier))
            }
            _ => 0,
        }
    }

    /// The milliseconds since the service was asked for that has waited the longest.
    pub fn age(&self) -> u64 {
        let oldest = self.figures.services.iter().map(|service| service.read_at).min();
        oldest.map_or(0, |oldest| self.figures.time.saturating_sub(oldest))
    }

    /// The slots of the services that are on the screen.
    pub fn seen(&self) -> Vec<u32> {
        self.lines().iter().skip(self.first).take(self.height).map(|line| line.service.id.0).collect()
    }

    pub fn total_history(&self) -> Vec<u64> {
        self.totals.iter().copied().collect()
    }

    /// The milliseconds that so many moments are, to the last one.
    pub fn span(&self, moments: usize) -> u64 {
        let first = self.times.len().saturating_sub(moments);
        let times = (self.times.get(first), self.times.back());
        if let (Some(first), Some(last)) = times { last.saturating_sub(*first) } else { 0 }
    }

    /// The share of a processor that the answers have cost the process, over the moments that are known.
    pub fn cost(&self) -> Option<f64> {
        let (first, last) = (self.costs.front()?, self.costs.back()?);
        let milliseconds = self.times.back()?.saturating_sub(*self.times.front()?);
        (milliseconds > 0).then(|| last.saturating_sub(*first) as f64 / 1e6 / milliseconds as f64)
    }

    /// The lines in their order.
    pub fn lines(&self) -> Vec<Line<'_>> {
        let services = &self.figures.services;
        let place: HashMap<Id, usize> =
            services.iter().enumerate().map(|(place, service)| (service.id, place)).collect();
        let parents: Vec<Option<usize>> =
            services.iter().map(|service| place.get(&service.parent?).copied()).collect();
        let growths: Vec<i64> = services
            .iter()
            .map(|service| self.histories.get(&service.id).map_or(0, |history| history.growth))
            .collect();
        let mut live: Vec<u64> = services.iter().map(|service| service.usage.bytes()).collect();
        let mut growth = growths;
        if self.is_tree {
            // From below, in the order of a tree without keys.
            for (row, _) in arrange(services.len(), |row| parents[row], |_| 0).into_iter().rev() {
                if let Some(parent) = parents[row].filter(|parent| *parent != row) {
                    live[parent] = live[parent].saturating_add(live[row]);
                    growth[parent] = growth[parent].saturating_add(growth[row]);
                }
            }
        }
        let key = |row: usize| -> i128 {
            let usage = &services[row].usage;
            let key: i128 = match self.sort {
                Sort::Live | Sort::Name => live[row].into(),
                Sort::Growth => growth[row].into(),
                Sort::Peak => usage.peak_bytes.into(),
                Sort::Allocated => usage.allocated_bytes.into(),
                Sort::Blocks => usage.blocks().into(),
            };
            if self.is_reversed { -key } else { key }
        };
        let is_wanted = |row: usize| {
            self.filter.is_empty() || services[row].name.to_lowercase().contains(&self.filter.to_lowercase())
        };
        let mut names: Vec<usize> = (0..services.len()).collect();
        names.sort_by(|a, b| services[*a].name.cmp(&services[*b].name));
        let mut order: Vec<(usize, usize)> = if self.is_tree {
            let ranks = ranks(&names, self.is_reversed);
            let by_name = self.sort == Sort::Name;
            arrange(services.len(), |row| parents[row], |row| if by_name { ranks[row] } else { key(row) })
        } else {
            if self.sort == Sort::Name {
                if self.is_reversed {
                    names.reverse();
                }
            } else {
                names.sort_by_key(|row| Reverse(key(*row)));
            }
            names.into_iter().map(|row| (row, 0)).collect()
        };
        order.retain(|(row, _)| is_wanted(*row));
        let lines = order.into_iter().map(|(row, depth)| Line {
            service: &services[row],
            depth,
            live: live[row],
            growth: growth[row],
            history: self
                .histories
                .get(&services[row].id)
                .map(|history| history.moments.iter().copied().collect())
                .unwrap_or_default(),
        });
        lines.collect()
    }

    fn number_of_lines(&self) -> usize {
        if self.filter.is_empty() { self.figures.services.len() } else { self.lines().len() }
    }

    fn mark(&mut self, line: usize) {
        self.marked = line;
        self.keep_in_view();
    }

    /// Keeps the marked line on the table, and on the screen.
    pub fn keep_in_view(&mut self) {
        let lines = self.number_of_lines();
        self.marked = self.marked.min(lines.saturating_sub(1));
        let height = self.height.max(1);
        self.first = self.first.clamp((self.marked + 1).saturating_sub(height), self.marked);
        self.first = self.first.min(lines.saturating_sub(height));
    }

    /// Does what a key says.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Next::Quit,
            KeyCode::Char('z') if control => return Next::Suspend,
            _ => {}
        }
        if let Some(typed) = &mut self.typed {
            match key.code {
                KeyCode::Char(c) if !control => typed.push(c),
                KeyCode::Backspace => drop(typed.pop()),
                KeyCode::Enter => self.typed = None,
                KeyCode::Esc => {
                    self.typed = None;
                    self.filter.clear();
                }
                _ => {}
            }
            if let Some(typed) = &self.typed {
                self.filter.clone_from(typed);
            }
            self.mark(0);
            return Next::GoOn;
        }
        if self.has_help {
            self.has_help = false;
            return Next::GoOn;
        }
        let page = self.height.max(1);
        let position = Sort::ALL.iter().position(|sort| *sort == self.sort).unwrap_or(0);
        match key.code {
            KeyCode::Char('q') | KeyCode::F(10) => return Next::Quit,
            KeyCode::Esc if self.filter.is_empty() => return Next::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.has_help = true,
            KeyCode::Down | KeyCode::Char('j') => self.mark(self.marked + 1),
            KeyCode::Up | KeyCode::Char('k') => self.mark(self.marked.saturating_sub(1)),
            KeyCode::PageDown => self.mark(self.marked.saturating_add(page)),
            KeyCode::PageUp => self.mark(self.marked.saturating_sub(page)),
            KeyCode::Home => self.mark(0),
            KeyCode::End => self.mark(usize::MAX - 1),
            KeyCode::Char('M') => self.sort_by(Sort::Live),
            KeyCode::Char('G') => self.sort_by(Sort::Growth),
            KeyCode::Char('P') => self.sort_by(Sort::Peak),
            KeyCode::Char('A') => self.sort_by(Sort::Allocated),
            KeyCode::Char('B') => self.sort_by(Sort::Blocks),
            KeyCode::Char('N') => self.sort_by(Sort::Name),
            KeyCode::Char('>') | KeyCode::Right => self.sort_by(Sort::ALL[(position + 1) % Sort::ALL.len()]),
            KeyCode::Char('<') | KeyCode::Left => {
                self.sort_by(Sort::ALL[(position + Sort::ALL.len() - 1) % Sort::ALL.len()]);
            }
            KeyCode::Char('R' | 'I') => {
                self.is_reversed = !self.is_reversed;
                self.mark(0);
            }
            KeyCode::Char('t' | 'V') | KeyCode::F(5) => {
                self.is_tree = !self.is_tree;
                self.mark(0);
            }
            KeyCode::Char('/' | '\\') | KeyCode::F(4) => self.typed = Some(self.filter.clone()),
            KeyCode::Char(' ' | 'Z') => self.is_paused = !self.is_paused,
            _ => {}
        }
        Next::GoOn
    }

    fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.is_reversed = false;
        self.mark(0);
    }
}

/// Keys by which rows get into the order of a list.
fn ranks(order: &[usize], is_reversed: bool) -> Vec<i128> {
    let mut ranks = vec![0; order.len()];
    for (rank, row) in order.iter().enumerate() {
        let rank = rank as i128;
        ranks[*row] = if is_reversed { rank } else { -rank };
    }
    ranks
}

fn push(history: &mut VecDeque<u64>, value: u64) {
    if history.len() == MOMENTS {
        history.pop_front();
    }
    history.push_back(value);
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::figures::tests::sent;

    type Sent<'a> = &'a [(&'a str, u32, Option<u32>, u64)];

    pub fn state(moments: &[Sent<'_>]) -> State {
        let mut state = State::new("/bin/web", 12);
        state.height = 2;
        for (time, services) in (0..).zip(moments) {
            state.take(Figures::parse(&sent(time * 1000, services)).unwrap());
        }
        state
    }

    pub fn press(state: &mut State, keys: &str) -> Next {
        keys.chars().map(|c| state.key(KeyCode::Char(c).into())).last().unwrap()
    }

    fn names(state: &State) -> Vec<String> {
        state.lines().iter().map(|line| format!("{}{}", "-".repeat(line.depth), line.service.name)).collect()
    }

    const BEFORE: Sent<'_> = &[("a", 1, None, 100), ("b", 2, Some(1), 50), ("c", 3, None, 120)];
    const AFTER: Sent<'_> =
        &[("a", 1, None, 100), ("b", 2, Some(1), 80), ("c", 3, None, 110), ("d", 4, None, 1)];

    #[test]
    fn services_are_sorted_as_keys_say() {
        let mut state = state(&[BEFORE, AFTER]);
        assert_eq!(names(&state), ["c", "a", "b", "d"]);
        for (keys, expected) in [
            ("G", ["b", "a", "d", "c"]),
            ("R", ["c", "a", "d", "b"]),
            ("N", ["a", "b", "c", "d"]),
            ("R", ["d", "c", "b", "a"]),
            (">", ["c", "a", "b", "d"]),
            ("t", ["a", "-b", "c", "d"]),
            ("N", ["a", "-b", "c", "d"]),
            ("R", ["d", "c", "a", "-b"]),
        ] {
            press(&mut state, keys);
            assert_eq!(names(&state), expected, "{keys}");
        }
        press(&mut state, "M");
        let lines = state.lines();
        assert_eq!((lines[0].live, lines[0].growth, lines[0].history.clone()), (180, 30, vec![100, 100]));
    }

    #[test]
    fn services_that_are_not_asked_for_keep_their_growth() {
        let mut state = state(&[BEFORE, AFTER]);
        let taken = |state: &State| {
            let line = |line: &Line<'_>| (line.live, line.growth, line.history.clone());
            (line(&state.lines()[2]), state.age())
        };
        assert_eq!(taken(&state), ((80, 30, vec![50, 80]), 0));
        let mut figures = Figures::parse(&sent(5000, AFTER)).unwrap();
        figures.services[1].read_at = 1000;
        state.take(figures.clone());
        assert_eq!(taken(&state), ((80, 30, vec![50, 80, 80]), 4000));
        // Asked for again: it grew over all that time.
        figures.time = 6000;
        figures.services.iter_mut().for_each(|service| service.read_at = 6000);
        figures.services[1].usage.allocated_bytes += 100;
        state.take(figures);
        assert_eq!(
            state.lines().iter().map(|line| (line.live, line.growth)).collect::<Vec<_>>(),
            [(180, 20), (110, 0), (100, 0), (1, 0)]
        );
        assert_eq!(state.age(), 0);
        // The second and third are on the screen.
        state.first = 1;
        assert_eq!(state.seen(), [3, 1]);
    }

    #[test]
    fn the_mark_stays_on_the_table_and_on_the_screen() {
        let mut state = state(&[AFTER]);
        press(&mut state, "jj");
        assert_eq!((state.marked, state.first), (2, 1));
        state.key(KeyCode::End.into());
        assert_eq!((state.marked, state.first), (3, 2));
        state.take(Figures::parse(&sent(9, BEFORE)).unwrap());
        assert_eq!((state.marked, state.first), (2, 1));
        state.key(KeyCode::PageUp.into());
        assert_eq!((state.marked, state.first), (0, 0));
        state.take(Figures::default());
        press(&mut state, "j");
        assert_eq!((state.marked, state.first), (0, 0));
    }

    #[test]
    fn filters_are_typed() {
        let mut state = state(&[AFTER]);
        press(&mut state, "/Bq");
        assert_eq!(names(&state), Vec::<String>::new());
        state.key(KeyCode::Backspace.into());
        state.key(KeyCode::Enter.into());
        assert_eq!(names(&state), ["b"]);
        assert_eq!(state.key(KeyCode::Esc.into()), Next::GoOn);
        assert_eq!(names(&state).len(), 4);
        assert_eq!(state.key(KeyCode::Esc.into()), Next::Quit);
    }

    #[test]
    fn a_pause_keeps_what_is_shown() {
        let mut state = state(&[BEFORE]);
        press(&mut state, " ");
        state.take(Figures::parse(&sent(9, AFTER)).unwrap());
        assert_eq!(state.figures.services.len(), 3);
        press(&mut state, " ");
        state.take(Figures::parse(&sent(9, AFTER)).unwrap());
        assert_eq!(state.figures.services.len(), 4);
    }

    #[test]
    fn moments_have_the_times_that_were_told() {
        let mut state = state(&[BEFORE, AFTER]);
        state.take(Figures::parse(&sent(61_000, AFTER)).unwrap());
        assert_eq!([0, 1, 2, 3, 60].map(|moments| state.span(moments)), [0, 0, 60_000, 61_000, 61_000]);
        assert_eq!(self::state(&[]).span(60), 0);
    }

    #[test]
    fn what_it_costs_is_known() {
        let state = state(&[BEFORE, AFTER]);
        // A thousand nanoseconds a millisecond.
        assert!((state.cost().unwrap() - 0.001).abs() < 1e-9);
        assert_eq!(self::state(&[]).cost(), None);
    }

    #[test]
    fn keys_end_it() {
        let mut state = state(&[]);
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(press(&mut state, "q"), Next::Quit);
        assert_eq!(state.key(control('c')), Next::Quit);
        assert_eq!(state.key(control('z')), Next::Suspend);
        press(&mut state, "?");
        assert!(state.has_help);
        assert_eq!(press(&mut state, "q"), Next::GoOn);
        assert!(!state.has_help);
    }
}
