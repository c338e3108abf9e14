//! `dogtag top`: who holds the memory of a process now, as it changes.

mod rounds;
mod state;
mod view;

use crate::arguments::Top as Arguments;
use crate::failure::{Context, Failure};
use crate::figures::Figures;
use crate::process::{NONE, Process};
use crate::report::print;
use crate::reports::base_name;
use crate::size::bytes;
use crate::stop;
use dogtag::Balance;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use rounds::{Question, Rounds};
use state::{Next, State};
use std::io::{IsTerminal, stdin, stdout};
use std::iter;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Services in the table that is printed once.
const ROWS: usize = 30;

/// How often a signal is looked for, and whether the terminal is still there.
const TICK: Duration = Duration::from_millis(100);

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let has_terminal = stdin().is_terminal() && stdout().is_terminal();
    if arguments.pid.is_none() {
        let mut found = Process::all()?;
        if found.is_empty() {
            return Err(Failure::new(NONE));
        }
        if found.len() > 1 || !has_terminal && !arguments.once && !arguments.json {
            return print(&list(&mut found));
        }
    }
    let mut process = Process::chosen(arguments.pid)?;
    if arguments.json {
        let figures = process.figures()?;
        return print(&(serde_json::to_string(&figures).context("JSON")? + "\n"));
    }
    if arguments.once {
        return print(&process.report()?.table(ROWS));
    }
    if !has_terminal {
        return Err(Failure::new("there is no terminal: --once prints a table, and --json all figures"));
    }
    let program = process.hello()?.program;
    let state = State::new(&program, process.pid);
    let (sender, receiver) = sync_channel(1);
    let interval = arguments.delay.map(Duration::from_millis);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&seen);
    let keys = sender.clone();
    thread::spawn(move || ask(process, interval, &asked, &sender));
    stop::heed();
    // From here on a panic restores the terminal, too.
    let mut terminal = ratatui::try_init().context("the terminal")?;
    thread::spawn(move || read_events(&keys));
    let shown = show(&mut terminal, state, &seen, &receiver);
    ratatui::restore();
    shown.context("the terminal")?;
    match stop::signal() {
        // As if it had not been heeded.
        Some(signal) => std::process::exit(128 + signal),
        None => Ok(()),
    }
}

/// Lists processes with what they hold. All are asked at once, so that some that do not answer take no more
/// time than one.
fn list(processes: &mut [Process]) -> String {
    let mut text =
        format!("{:>9}  {:<32}  {:>11}  {:>11}  {:>9}\n", "pid", "program", "live", "peak", "services");
    text.push_str(&"─".repeat(80));
    text.push('\n');
    thread::scope(|scope| {
        let lines: Vec<_> = processes.iter_mut().map(|process| scope.spawn(|| line(process))).collect();
        lines.into_iter().filter_map(|line| line.join().ok()).for_each(|line| text.push_str(&line));
    });
    text.push_str("\ndogtag top PID shows one of them.\n");
    text
}

fn line(process: &mut Process) -> String {
    match process.hello().and_then(|hello| Ok((hello, process.figures()?))) {
        Ok((hello, figures)) => format!(
            "{:>9}  {:<32}  {:>11}  {:>11}  {:>9}\n",
            process.pid,
            base_name(&hello.program),
            bytes(figures.totals.bytes()),
            bytes(peak(&figures)),
            figures.services.len(),
        ),
        Err(failure) => format!("{:>9}  {failure}\n", process.pid),
    }
}

/// A total's peak is that of its readings only.
fn peak(figures: &Figures) -> u64 {
    let services = figures.services.iter().map(|service| service.usage.peak_bytes);
    services.chain([figures.totals.peak_bytes]).max().unwrap_or(0)
}

/// How often the process is asked, and for how much: figures may cost it seven ten-thousandths of its time,
/// and balances three.
struct Pace {
    /// Between two figures, whatever they cost.
    interval: Option<Duration>,
    /// What was asked for last, what had been spent then, and whether a balance was asked for, too.
    last: Option<(Question, u64, bool)>,
    /// What all figures have cost, and what a part of them.
    costs: (Duration, Duration),
    next_balance: Instant,
    rounds: Rounds,
}

/// Between two figures.
const USUAL: Duration = Duration::from_secs(1);

/// What figures may cost, as a share of the time between them: one part of so many.
const FIGURES: u32 = 1430;

/// The same of balances.
const BALANCES: u32 = 3330;

impl Pace {
    fn new(interval: Option<Duration>, now: Instant) -> Self {
        let rounds = Rounds::default();
        Self { interval, last: None, costs: (Duration::ZERO, Duration::ZERO), next_balance: now, rounds }
    }

    /// Returns what is to be asked for, with the services that are seen.
    fn question(&self, seen: &[u32]) -> Question {
        // Somebody has said how often all shall be asked for.
        if self.interval.is_some() { Question::All } else { self.rounds.question(seen) }
    }

    /// Takes an answer: returns all figures, and whether it is time for a balance.
    fn take(&mut self, question: Question, figures: Figures, now: Instant) -> (Figures, bool) {
        let spent = figures.cost;
        if let Some((before, spent_before, had_balance)) = &self.last {
            let cost = Duration::from_nanos(spent.saturating_sub(*spent_before));
            let of_figures = if *before == Question::All { &mut self.costs.0 } else { &mut self.costs.1 };
            if *had_balance {
                let pause = cost.saturating_sub(*of_figures) * BALANCES;
                self.next_balance = now + pause.clamp(Duration::from_secs(5), Duration::from_secs(60));
            } else {
                *of_figures = cost;
                self.rounds.heed(before, cost, USUAL / FIGURES);
            }
        }
        // First it has to be known what figures cost.
        let has_balance =
            self.last.as_ref().is_some_and(|(.., had_balance)| !had_balance) && now >= self.next_balance;
        let figures = self.rounds.take(&question, figures);
        self.last = Some((question, spent, has_balance));
        (figures, has_balance)
    }

    /// The time from one question to the next.
    fn pause(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(60);

        let cost = match self.question(&[]) {
            Question::All => self.costs.0,
            // Should it cost too much, the next one is smaller.
            Question::Part(first, end, _) if end - first > rounds::LEAST => Duration::ZERO,
            Question::Part(..) => self.costs.1,
        };
        self.interval.unwrap_or((cost * FIGURES).clamp(USUAL, LONGEST))
    }
}

/// What the process has said, or the terminal.
enum News {
    Figures(Figures),
    Balance(Balance),
    /// It may answer again.
    Trouble(String),
    Ended(String),
    Terminal(std::io::Result<Event>),
}

/// Asks the process, for as long as somebody wants to know: a thread of its own, so that nothing else waits
/// for a process that does not answer.
fn ask(mut process: Process, interval: Option<Duration>, seen: &Mutex<Vec<u32>>, sender: &SyncSender<News>) {
    let mut pace = Pace::new(interval, Instant::now());
    loop {
        let begun = Instant::now();
        let question = pace.question(&seen.lock().map(|seen| seen.clone()).unwrap_or_default());
        let answer = match &question {
            Question::All => process.figures(),
            Question::Part(first, end, others) => process.part(*first, *end, others),
        };
        let mut news = Vec::new();
        match answer {
            Ok(figures) => {
                let (figures, has_balance) = pace.take(question, figures, begun);
                news.push(Ok(News::Figures(figures)));
                if has_balance {
                    news.push(process.balance().map(News::Balance));
                }
            }
            Err(failure) => news.push(Err(failure)),
        }
        for news in news {
            let is_trouble = news.is_err();
            let news = news.unwrap_or_else(|failure| reconnected(&mut process, failure));
            let is_end = matches!(news, News::Ended(_));
            if sender.send(news).is_err() || is_end {
                return;
            }
            if is_trouble {
                // It may be another program by now.
                pace = Pace::new(interval, Instant::now());
                break;
            }
        }
        thread::sleep(pace.pause().saturating_sub(begun.elapsed()));
    }
}

/// Connects anew: a daemon has closed the connection with all others, or an answer came too late.
fn reconnected(process: &mut Process, failure: Failure) -> News {
    match Process::connect(process.pid) {
        Ok(new) => {
            *process = new;
            News::Trouble(failure.message)
        }
        Err(_) if !process.is_there() => News::Ended(format!("process {} has ended", process.pid)),
        Err(failure) => News::Ended(failure.message),
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    mut state: State,
    seen: &Mutex<Vec<u32>>,
    receiver: &Receiver<News>,
) -> std::io::Result<()> {
    terminal.draw(|frame| view::draw(frame, &mut state))?;
    while stop::signal().is_none() {
        if has_hung_up() {
            return Err(std::io::Error::other("it has hung up"));
        }
        let first = match receiver.recv_timeout(TICK) {
            Ok(news) => news,
            Err(RecvTimeoutError::Timeout) => continue,
            // Nobody asks and nobody reads any more.
            Err(RecvTimeoutError::Disconnected) => break,
        };
        for news in iter::once(first).chain(receiver.try_iter()) {
            match news {
                News::Figures(figures) => state.take(figures),
                News::Balance(balance) => state.take_balance(balance),
                News::Trouble(message) => state.trouble = Some(message),
                News::Ended(message) => {
                    state.trouble = Some(format!("{message}; q quits"));
                    state.has_ended = true;
                }
                News::Terminal(event) => match event? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => match state.key(key) {
                        Next::GoOn => {}
                        Next::Quit => return Ok(()),
                        Next::Suspend => suspend(terminal)?,
                    },
                    // Drawn anew, should it be a new size.
                    _ => {}
                },
            }
        }
        terminal.draw(|frame| view::draw(frame, &mut state))?;
        if let Ok(mut seen) = seen.lock() {
            *seen = state.seen();
        }
    }
    Ok(())
}

/// Passes on what the terminal says: a thread of its own, since crossterm does not come back from a terminal
/// that goes away, which it reads until it would block.
fn read_events(sender: &SyncSender<News>) {
    loop {
        let event = event::read();
        let is_last = event.is_err();
        if sender.send(News::Terminal(event)).is_err() || is_last {
            return;
        }
    }
}

/// Whether nobody shows the terminal any more.
fn has_hung_up() -> bool {
    let mut terminal = libc::pollfd { fd: libc::STDIN_FILENO, events: 0, revents: 0 };
    // SAFETY: one entry, which outlives the call.
    unsafe { libc::poll(&mut terminal, 1, 0) > 0 }
}

/// Stops this program as the terminal does where it is not asked for keys.
fn suspend(terminal: &mut DefaultTerminal) -> std::io::Result<()> {
    ratatui::restore();
    // SAFETY: only sends a signal, whose default action is to stop.
    unsafe { libc::raise(libc::SIGTSTP) };
    // It is empty, as at the beginning. To have it cleared would ask the terminal where its cursor is, and
    // the answer would come to whoever reads events.
    *terminal = ratatui::try_init()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks and answers, when so many nanoseconds have been spent.
    fn taken(pace: &mut Pace, spent: u64, now: Instant) -> (Question, bool) {
        let question = pace.question(&[1]);
        let figures = Figures { cost: spent, slots: 10_000, ..Figures::default() };
        let (_, has_balance) = pace.take(question.clone(), figures, now);
        (question, has_balance)
    }

    #[test]
    fn what_costs_more_is_asked_for_less_often() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut pace = Pace::new(None, now);
        assert_eq!(taken(&mut pace, 1_000_000, now), (Question::All, false));
        assert_eq!(pace.pause(), USUAL);
        // All figures take 7 ms, and a balance 10 ms.
        assert_eq!(taken(&mut pace, 8_000_000, after(1)), (Question::All, true));
        assert_eq!(pace.pause(), USUAL);
        let part = |first, end| Question::Part(first, end, if first == 0 { vec![] } else { vec![1] });
        assert_eq!(taken(&mut pace, 25_000_000, after(2)), (part(0, 960), false));
        // A part takes 0.7 ms.
        assert_eq!(taken(&mut pace, 25_700_000, after(3)), (part(960, 1920), false));
        assert_eq!(pace.pause(), USUAL);
        assert_eq!(taken(&mut pace, 26_400_000, after(34)), (part(1920, 2816), false));
        assert_eq!(taken(&mut pace, 27_100_000, after(36)), (part(2816, 3712), true));
        assert_eq!(taken(&mut pace, 40_000_000, after(37)), (part(3712, 4544), false));
        // Something has disturbed it; the next one is as small as can be.
        assert_eq!(taken(&mut pace, 80_000_000, after(38)), (part(4544, 5376), false));
        assert_eq!(pace.pause(), Duration::from_millis(57_200));
        assert_eq!(taken(&mut pace, 80_100_000, after(39)), (part(5376, 5440), false));
        assert_eq!(pace.pause(), USUAL);
        let mut fixed = Pace::new(Some(Duration::from_millis(50)), now);
        assert_eq!(taken(&mut fixed, 0, now), (Question::All, false));
        assert_eq!(taken(&mut fixed, 9_000_000, after(1)), (Question::All, true));
        assert_eq!(taken(&mut fixed, 40_000_000, after(2)), (Question::All, false));
        assert_eq!(fixed.pause(), Duration::from_millis(50));
    }
}
