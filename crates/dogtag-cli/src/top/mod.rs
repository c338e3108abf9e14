//! `dogtag top`: who holds the memory of a process now, as it changes.

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
use state::{Next, State};
use std::fmt::Write;
use std::io::{IsTerminal, stdin, stdout};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Services in the table that is printed once.
const ROWS: usize = 30;

/// How long keys are waited for before a signal is noticed, or what has come is drawn.
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
    thread::spawn(move || ask(process, interval, &sender));
    stop::heed();
    // From here on a panic restores the terminal, too.
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let shown = show(&mut terminal, state, &receiver);
    ratatui::restore();
    shown.context("the terminal")?;
    match stop::signal() {
        // As if it had not been heeded.
        Some(signal) => std::process::exit(128 + signal),
        None => Ok(()),
    }
}

/// Lists processes with what they hold.
fn list(processes: &mut [Process]) -> String {
    let mut text =
        format!("{:>9}  {:<32}  {:>11}  {:>11}  {:>9}\n", "pid", "program", "live", "peak", "services");
    text.push_str(&"─".repeat(80));
    text.push('\n');
    for process in processes {
        let line = process.hello().and_then(|hello| Ok((hello, process.figures()?)));
        // A string takes all that is written.
        let _ = match line {
            Ok((hello, figures)) => writeln!(
                text,
                "{:>9}  {:<32}  {:>11}  {:>11}  {:>9}",
                process.pid,
                base_name(&hello.program),
                bytes(figures.totals.bytes()),
                bytes(peak(&figures)),
                figures.services.len(),
            ),
            Err(failure) => writeln!(text, "{:>9}  {failure}", process.pid),
        };
    }
    text.push_str("\ndogtag top PID shows one of them.\n");
    text
}

/// A total's peak is that of its readings only.
fn peak(figures: &Figures) -> u64 {
    let services = figures.services.iter().map(|service| service.usage.peak_bytes);
    services.chain([figures.totals.peak_bytes]).max().unwrap_or(0)
}

/// How often the process is asked: figures may cost it a thousandth of its time, and balances half of that.
struct Pace {
    /// Between two figures, whatever they cost.
    interval: Option<Duration>,
    /// What had been spent when the last ones were asked for, and whether a balance was, too.
    last: Option<(u64, bool)>,
    cost_of_figures: Duration,
    next_balance: Instant,
}

impl Pace {
    fn new(interval: Option<Duration>, now: Instant) -> Self {
        Self { interval, last: None, cost_of_figures: Duration::ZERO, next_balance: now }
    }

    /// Notes what has been spent so far, and returns whether it is time for a balance.
    fn begin(&mut self, spent: u64, now: Instant) -> bool {
        if let Some((before, had_balance)) = self.last {
            let cost = Duration::from_nanos(spent.saturating_sub(before));
            if had_balance {
                let pause = cost.saturating_sub(self.cost_of_figures) * 2000;
                self.next_balance = now + pause.clamp(Duration::from_secs(5), Duration::from_secs(60));
            } else {
                self.cost_of_figures = cost;
            }
        }
        // First it has to be known what figures cost.
        let has_balance = self.last.is_some_and(|(_, had_balance)| !had_balance) && now >= self.next_balance;
        self.last = Some((spent, has_balance));
        has_balance
    }

    /// The time from one question to the next.
    fn pause(&self) -> Duration {
        const USUAL: Duration = Duration::from_secs(1);
        const LONGEST: Duration = Duration::from_secs(60);

        self.interval.unwrap_or((self.cost_of_figures * 1000).clamp(USUAL, LONGEST))
    }
}

/// What the process has said.
enum News {
    Figures(Figures),
    Balance(Balance),
    /// It may answer again.
    Trouble(String),
    Ended(String),
}

/// Asks the process, for as long as somebody wants to know: a thread of its own, so that nothing else waits
/// for a process that does not answer.
fn ask(mut process: Process, interval: Option<Duration>, sender: &SyncSender<News>) {
    let mut pace = Pace::new(interval, Instant::now());
    loop {
        let begun = Instant::now();
        let mut news = vec![process.figures().map(News::Figures)];
        if let Some(Ok(News::Figures(figures))) = news.first()
            && pace.begin(figures.cost, begun)
        {
            news.push(process.balance().map(News::Balance));
        }
        for news in news {
            let is_trouble = news.is_err();
            let news = news.unwrap_or_else(|failure| reconnected(&mut process, failure));
            let is_end = matches!(news, News::Ended(_));
            if sender.send(news).is_err() || is_end {
                return;
            }
            if is_trouble {
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

fn show(terminal: &mut DefaultTerminal, mut state: State, receiver: &Receiver<News>) -> std::io::Result<()> {
    let mut is_new = true;
    while stop::signal().is_none() {
        loop {
            match receiver.try_recv() {
                Ok(News::Figures(figures)) => state.take(figures),
                Ok(News::Balance(balance)) => state.take_balance(balance),
                Ok(News::Trouble(message)) => state.trouble = Some(message),
                Ok(News::Ended(message)) => {
                    state.trouble = Some(format!("{message}; q quits"));
                    state.has_ended = true;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
            is_new = true;
        }
        if is_new {
            terminal.draw(|frame| view::draw(frame, &mut state))?;
            is_new = false;
        }
        if !event::poll(TICK)? {
            continue;
        }
        is_new = true;
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            match state.key(key) {
                Next::GoOn => {}
                Next::Quit => break,
                Next::Suspend => suspend(terminal)?,
            }
        }
    }
    Ok(())
}

/// Stops this program as the terminal does where it is not asked for keys.
fn suspend(terminal: &mut DefaultTerminal) -> std::io::Result<()> {
    ratatui::restore();
    // SAFETY: only sends a signal, whose default action is to stop.
    unsafe { libc::raise(libc::SIGTSTP) };
    *terminal = ratatui::try_init()?;
    terminal.clear()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_more_is_asked_for_less_often() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut pace = Pace::new(None, now);
        assert!(!pace.begin(1_000_000, now));
        assert_eq!(pace.pause(), Duration::from_secs(1));
        // Figures take 7 ms, and a balance 10 ms.
        assert!(pace.begin(8_000_000, after(1)));
        assert_eq!(pace.pause(), Duration::from_secs(7));
        assert!(!pace.begin(25_000_000, after(8)));
        assert_eq!(pace.pause(), Duration::from_secs(7));
        assert!(!pace.begin(32_000_000, after(27)));
        assert!(pace.begin(39_000_000, after(28)));
        let mut fixed = Pace::new(Some(Duration::from_millis(50)), now);
        assert!(!fixed.begin(0, now));
        assert!(fixed.begin(9_000_000, after(1)));
        assert_eq!(fixed.pause(), Duration::from_millis(50));
    }
}
