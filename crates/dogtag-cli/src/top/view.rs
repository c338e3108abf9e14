//! The screen of `dogtag top`.

use super::state::{Line as Row, MOMENTS, Sort, State};
use crate::size::{bytes, difference, grouped, printable, time};
use dogtag::Balance;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let [head, bar, legend, table, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(state)), head);
    let parts = state.balance.as_ref().map(parts).unwrap_or_default();
    frame.render_widget(balance_bar(&parts, bar.width), bar);
    frame.render_widget(balance_legend(&parts, legend.width), legend);
    state.height = usize::from(table.height.saturating_sub(1));
    state.keep_in_view();
    frame.render_widget(Paragraph::new(rows(state, table.width)), table);
    frame.render_widget(Paragraph::new(footer(state)), foot);
    if state.has_help {
        help(frame);
    }
}

fn heading(state: &State) -> Vec<Line<'static>> {
    let totals = &state.figures.totals;
    let mut first = vec![
        Span::from(state.program.clone()).bold(),
        format!(" (pid {})", state.pid).into(),
        format!("   {} services", grouped(state.figures.services.len() as u64)).into(),
    ];
    if let Some(resident) = state.balance.as_ref().and_then(|balance| balance.resident) {
        first.push(format!("   RSS {}", bytes(resident)).into());
    }
    if state.age() >= 2000 {
        first.push(format!("   off screen up to {} old", time(state.age())).into());
    }
    if let Some(cost) = state.cost() {
        first.push(format!("   asking costs it {:.2} %", 100.0 * cost).into());
    }
    let mut second = vec![
        "live ".into(),
        Span::from(bytes(totals.bytes())).bold(),
        format!("   {}/s   ", difference(state.total_growth().into())).into(),
        Span::from(sparkline(&state.total_history())).cyan(),
    ];
    let warnings = [(totals.denied, "denied"), (state.figures.lost_blocks, "lost")];
    for (number, what) in warnings.into_iter().filter(|(number, _)| *number > 0) {
        second.push(Span::from(format!("   {} {what}", grouped(number))).red().bold());
    }
    if let Some(trouble) = &state.trouble {
        second.push(Span::from(format!("   {trouble}")).red().bold());
    }
    if state.is_paused {
        second.push(Span::from("   paused").yellow().bold());
    }
    vec![first.into(), second.into()]
}

/// A part of the balance with its colour.
struct Part {
    name: &'static str,
    bytes: u64,
    color: Color,
}

/// The parts of RSS, as few as people can tell apart. What is not in memory is taken from the services.
fn parts(balance: &Balance) -> Vec<Part> {
    let part = |name, bytes, color| Part { name, bytes, color };
    let allocator = [
        balance.cookies,
        balance.quarantine,
        balance.rounding,
        balance.thread_caches,
        balance.free_slots,
        balance.dirty_pages,
        balance.metadata,
        balance.ledger,
    ];
    let others = [balance.regions, balance.other_mappings, balance.other_allocators];
    let sum = |parts: &[u64]| parts.iter().copied().fold(0, u64::saturating_add);
    let unexplained = u64::try_from(balance.unexplained()).unwrap_or(0);
    vec![
        part("services", balance.services, Color::Blue),
        part("unattributed", balance.unattributed, Color::Cyan),
        part("allocator", sum(&allocator), Color::Green),
        part("files", balance.files, Color::Yellow),
        part("stacks", balance.stacks, Color::Magenta),
        part("other", sum(&others), Color::Gray),
        part("unexplained", unexplained, Color::Red),
    ]
}

/// Colours and letters, since not every terminal has colours.
fn balance_bar(parts: &[Part], width: u16) -> Line<'static> {
    let whole: u128 = parts.iter().map(|part| u128::from(part.bytes)).sum();
    let mut spans = Vec::new();
    let (mut so_far, mut drawn) = (0_u128, 0);
    for part in parts.iter().filter(|part| part.bytes > 0) {
        so_far += u128::from(part.bytes);
        let end = usize::try_from(so_far * u128::from(width) / whole.max(1)).unwrap_or(0);
        let cells = end.saturating_sub(drawn);
        let text: String = part.name.chars().chain(std::iter::repeat(' ')).take(cells).collect();
        spans.push(Span::styled(text, Style::new().bg(part.color).fg(Color::Black)));
        drawn = end;
    }
    spans.into()
}

fn balance_legend(parts: &[Part], width: u16) -> Paragraph<'static> {
    let mut lines = vec![Line::default()];
    let mut used = 0;
    for part in parts.iter().filter(|part| part.bytes > 0) {
        let text = format!("{} {}  ", part.name, bytes(part.bytes));
        let length = text.chars().count();
        if used + length > usize::from(width) && used > 0 {
            lines.push(Line::default());
            used = 0;
        }
        used += length;
        if let Some(line) = lines.last_mut() {
            line.push_span(Span::from(text).fg(part.color));
        }
    }
    Paragraph::new(lines)
}

/// How wide each column is beside the name's, and from which width of the screen it is shown.
const LIVE: usize = 11;
const GROWTH: usize = 12;
const PEAK: usize = 11;
const LIMIT: usize = 11;
const BLOCKS: usize = 13;

fn rows(state: &State, width: u16) -> Vec<Line<'static>> {
    let width = usize::from(width);
    // The least that a name has, and then columns as long as they fit.
    let mut left = width.saturating_sub(16 + 1 + LIVE);
    let mut fits = |column: usize| {
        let fits = left > column;
        left = if fits { left - column - 1 } else { 0 };
        fits
    };
    let (growth, peak) = (fits(GROWTH), fits(PEAK));
    let history = if fits(16) { 16 } else { 0 };
    let (limit, blocks) = (fits(LIMIT), fits(BLOCKS));
    let history = if history > 0 { (history + left.saturating_sub(24)).min(MOMENTS) } else { 0 };
    let columns = [(growth, GROWTH), (history > 0, history), (peak, PEAK), (limit, LIMIT), (blocks, BLOCKS)];
    let name = width.saturating_sub(
        1 + LIVE
            + columns.iter().filter(|(is_shown, _)| *is_shown).map(|(_, column)| column + 1).sum::<usize>(),
    );
    let mark = |sort: Sort, title: &str| {
        let arrow = if state.is_reversed { '▲' } else { '▼' };
        if state.sort == sort { format!("{title}{arrow}") } else { title.to_owned() }
    };
    let mut head = format!("{:<name$} {:>LIVE$}", mark(Sort::Name, "SERVICE"), mark(Sort::Live, "LIVE"));
    let mut add = |is_shown: bool, text: String, column: usize| {
        if is_shown {
            head.push_str(&format!(" {text:>column$}"));
        }
    };
    add(growth, mark(Sort::Growth, "GROWTH/s"), GROWTH);
    add(history > 0, format!("LAST {}", time(state.span(history))), history);
    add(peak, mark(Sort::Peak, "PEAK"), PEAK);
    add(limit, "LIMIT".to_owned(), LIMIT);
    add(blocks, mark(Sort::Blocks, "BLOCKS"), BLOCKS);
    let mut lines = vec![Line::from(head).style(Style::new().add_modifier(Modifier::REVERSED))];
    let all = state.lines();
    for (place, row) in all.iter().enumerate().skip(state.first).take(state.height) {
        let mut spans = vec![Span::from(format!("{:<name$} {:>LIVE$}", title(row, name), bytes(row.live)))];
        if growth {
            let text = if row.growth == 0 { "–".to_owned() } else { difference(row.growth.into()) };
            let span = Span::from(format!(" {text:>GROWTH$}"));
            spans.push(match row.growth {
                1.. => span.red(),
                0 => span,
                _ => span.green(),
            });
        }
        if history > 0 {
            let from = row.history.len().saturating_sub(history);
            spans.push(Span::from(format!(" {:>history$}", sparkline(&row.history[from..]))).cyan());
        }
        if peak {
            spans.push(format!(" {:>PEAK$}", bytes(row.service.usage.peak_bytes)).into());
        }
        if limit {
            let bytes = row.service.hard_limit.map_or("–".to_owned(), bytes);
            let span = Span::from(format!(" {bytes:>LIMIT$}"));
            spans.push(if row.service.usage.denied > 0 { span.red().bold() } else { span });
        }
        if blocks {
            spans.push(format!(" {:>BLOCKS$}", grouped(row.service.usage.blocks())).into());
        }
        let line = Line::from(spans);
        let is_marked = place == state.marked;
        lines.push(if is_marked {
            line.style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED))
        } else {
            line
        });
    }
    lines
}

/// A name that is as wide as its column at most.
fn title(row: &Row<'_>, width: usize) -> String {
    let indent = (2 * row.depth).min(width / 2);
    let retired = if row.service.is_retired { " (retired)" } else { "" };
    let left = width.saturating_sub(indent + retired.chars().count());
    format!("{}{}{retired}", " ".repeat(indent), printable(&row.service.name, left.max(1)))
}

/// A letter for each moment: of the highest one the highest.
fn sparkline(history: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

    let highest = history.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: &u64| BARS[(u128::from(*value) * 7 / u128::from(highest)) as usize];
    history.iter().map(bar).collect()
}

fn footer(state: &State) -> Line<'static> {
    if let Some(typed) = &state.typed {
        return format!("/{}▏  Enter keeps the filter, Esc drops it", printable(typed, 60)).into();
    }
    let filter = if state.filter.is_empty() {
        String::new()
    } else {
        format!("   filter: {}", printable(&state.filter, 40))
    };
    let tree = if state.is_tree { "list" } else { "tree" };
    format!(
        "q quit   ? help   ↑↓ move   ←→ sort: {}   t {tree}   / filter   space pause{filter}",
        state.sort.name()
    )
    .into()
}

const HELP: &str = " q  Esc        quit
 ↑ ↓  j k      move; PgUp PgDn Home End as well
 ← →  < >      sort by the next column
 M G P A B N   sort by memory, growth, peak, all that was
               allocated, blocks, name
 R             reverse the order
 t             families as a tree, with their sums
 /             show names that have a text in them
 space         pause
 Ctrl-Z        to the background

 LIVE is what a service has allocated and not freed. The
 bar is the process's memory (RSS), by what it is used for.

 any key goes back";

fn help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let (width, height) = (62.min(area.width), 18.min(area.height));
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" dogtag top ")), place);
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{press, state};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    fn screen(state: &mut State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn shown() -> State {
        let mut state = state(&[
            &[("tenant", 1, None, 1000), ("query\u{1b}[2J", 2, Some(1), 2048)],
            &[("tenant", 1, None, 1000), ("query\u{1b}[2J", 2, Some(1), 4096)],
        ]);
        state.take_balance(
            serde_json::from_str(r#"{"services":5096,"files":4000,"free_slots":904,"resident":10000}"#)
                .unwrap(),
        );
        state
    }

    #[test]
    fn the_screen_has_every_figure() {
        let screen = screen(&mut shown(), 110, 12);
        let expected = [
            "/bin/web (pid 12)   2 services   RSS 9.8 KiB   asking costs it 0.10 %",
            "live 5.0 KiB   +2.0 KiB/s   ▅█",
            "services",
            "services 5.0 KiB  allocator 904 B  files 3.9 KiB",
            "",
        ];
        assert_eq!(screen[..2], expected[..2]);
        assert!(
            screen[2].starts_with(expected[2])
                && screen[2].contains("allocator")
                && screen[2].contains("files")
        );
        assert_eq!(screen[3..5], expected[3..5]);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            words(&screen[5]),
            ["SERVICE", "LIVE▼", "GROWTH/s", "LAST", "1", "s", "PEAK", "LIMIT", "BLOCKS"]
        );
        assert_eq!(words(&screen[6]), words("query\\u{1b}[2J 4.0 KiB +2.0 KiB ▄█ 4.0 KiB 1.0 MiB 1"));
        assert_eq!(words(&screen[7]), words("tenant 1000 B – ██ 1009 B – 1"));
        assert!(screen[11].starts_with("q quit   ? help") && screen[11].contains("sort: live"), "{screen:?}");
    }

    #[test]
    fn families_are_a_tree_with_sums() {
        let mut state = shown();
        press(&mut state, "t");
        let screen = screen(&mut state, 110, 12);
        assert!(screen[6].starts_with("tenant ") && screen[6].contains("5.0 KiB"), "{screen:?}");
        assert!(screen[7].starts_with("  query"), "{screen:?}");
    }

    #[test]
    fn narrow_and_low_screens_show_what_fits() {
        let mut state = shown();
        for (width, height) in [(40, 12), (20, 8), (5, 3), (1, 1), (300, 100)] {
            let screen = screen(&mut state, width, height);
            assert_eq!(screen.len(), usize::from(height));
        }
        let screen = screen(&mut state, 40, 12);
        assert!(screen[6].contains("4.0 KiB") && !screen[5].contains("PEAK"), "{screen:?}");
    }

    #[test]
    fn trouble_pauses_and_help_are_seen() {
        let mut state = shown();
        state.trouble = Some("process 12 is stopped".to_owned());
        press(&mut state, " ");
        let text = screen(&mut state, 110, 24).join("\n");
        assert!(text.contains("process 12 is stopped") && text.contains("paused"), "{text}");
        press(&mut state, "?");
        let text = screen(&mut state, 110, 24).join("\n");
        assert!(text.contains("dogtag top") && text.contains("any key goes back"), "{text}");
        press(&mut state, "x/qu");
        let text = screen(&mut state, 110, 24).join("\n");
        assert!(text.contains("/qu▏") && !text.contains("tenant"), "{text}");
        state.key(KeyCode::Enter.into());
        assert!(screen(&mut state, 110, 24).join("\n").contains("filter: qu"));
    }
}
