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

/// The balance costs the process at most this share of its time.
const SHARE_OF_BALANCE: u32 = 2000;

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
    let interval = Duration::from_millis(arguments.delay);
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
fn ask(mut process: Process, interval: Duration, sender: &SyncSender<News>) {
    let mut next_balance = Instant::now();
    let mut last_cost = 0;
    loop {
        let begun = Instant::now();
        let mut news = vec![process.figures().map(News::Figures)];
        if let (true, Some(Ok(News::Figures(figures)))) = (begun >= next_balance, news.first()) {
            // Of the time since the last one, which had a balance in it, too.
            let cost = Duration::from_nanos(figures.cost.saturating_sub(last_cost));
            last_cost = figures.cost;
            let pause = (cost * SHARE_OF_BALANCE).clamp(Duration::from_secs(5), Duration::from_secs(60));
            next_balance = begun + pause;
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
        thread::sleep(interval.saturating_sub(begun.elapsed()));
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
