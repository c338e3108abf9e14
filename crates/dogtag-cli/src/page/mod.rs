//! One page for browsers, from what was written: no scripts, nothing from elsewhere.

mod chart;
mod flame;

use crate::pprof::Profile;
use crate::reports::{Process, Report, title};
use crate::size::{bytes, grouped};
use crate::tree::arrange;
use chart::Chart;
use dogtag::Row;
use flame::Flame;
use std::fmt::{self, Display, Write};

/// Processes in the list.
const PROCESSES: usize = 200;

/// Writes the page of a process, with the others in a list, and flame graphs of profiles.
pub fn page(chosen: &Process, all: &[Process], profiles: &[(String, Profile)], most: usize) -> String {
    let report = chosen.last();
    let mut text = String::new();
    // A string takes all that is written.
    let _ = write!(
        text,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>dogtag: {}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>\n{}</style>\n</head>\n<body>\n",
        Escaped(&chosen.name()),
        include_str!("style.css"),
    );
    let _ = write!(
        text,
        "<header><h1>{}</h1><p class=\"soft\">process {} {}, {}</p></header>\n{}",
        Escaped(&report.program),
        report.pid,
        report.when(),
        utc(report.time),
        Figures(report),
    );
    let chart = Chart::of(&chosen.reports);
    let _ = match &chart {
        Some(chart) => write!(text, "<section>\n<h2>Live bytes over time</h2>\n{chart}</section>\n"),
        None => writeln!(
            text,
            "<p class=\"soft note\">There is one report of this process: with <code>dogtag run --every 1s</code> \
             there are more, and a chart.</p>"
        ),
    };
    let _ = write!(text, "<section>\n<h2>Services</h2>\n{}</section>\n", Services { report, most });
    if let Some(balance) = &report.snapshot.balance {
        let _ = write!(
            text,
            "<section>\n<h2>Where the process’s memory is</h2>\n{}</section>\n",
            Balance(balance)
        );
    }
    for (name, profile) in profiles {
        for (flame, what) in [
            (Flame::of(profile, |stack| stack.live_bytes), "held when the profile was taken"),
            (Flame::of(profile, |stack| stack.allocated_bytes), "allocated since sampling began"),
        ] {
            let _ = write!(
                text,
                "<section>\n<h2>Which code: {what}</h2>\n<p class=\"soft note\">{}</p>\n{flame}</section>\n",
                Escaped(name),
            );
        }
    }
    if all.len() > 1 {
        let _ = write!(text, "<section>\n<h2>All processes</h2>\n{}</section>\n", List(all));
    }
    text.push_str("</body>\n</html>\n");
    text
}

/// Writes a text so that it means nothing to a browser.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => write!(f, "{}", c.escape_debug())?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The largest figures.
struct Figures<'a>(&'a Report);

impl Display for Figures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report) = self;
        let snapshot = &report.snapshot;
        let mut figures = vec![
            ("live", bytes(snapshot.totals.bytes())),
            ("peak of services", bytes(report.peak())),
            ("allocated", bytes(snapshot.totals.allocated_bytes)),
            ("blocks allocated", grouped(snapshot.totals.allocated_blocks)),
            ("services", grouped(snapshot.rows.len() as u64)),
        ];
        if let Some(resident) = snapshot.balance.as_ref().and_then(|balance| balance.resident) {
            figures.insert(2, ("in memory (RSS)", bytes(resident)));
        }
        for (number, what) in [(snapshot.totals.denied, "denied"), (snapshot.lost.blocks, "lost blocks")] {
            if number > 0 {
                figures.push((what, grouped(number)));
            }
        }
        f.write_str("<dl class=\"figures\">")?;
        for (name, value) in figures {
            write!(f, "<div><dt>{name}</dt><dd>{value}</dd></div>")?;
        }
        f.write_str("</dl>\n")
    }
}

/// The services, children below their parents.
struct Services<'a> {
    report: &'a Report,
    most: usize,
}

impl Display for Services<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = &self.report.snapshot.rows;
        let key = |row: &Row| {
            if self.report.is_last() { row.usage.peak_bytes } else { row.usage_with_children.bytes() }
        };
        let order = arrange(rows.len(), |row| rows[row].parent, |row| key(&rows[row]));
        let whole = rows.iter().map(|row| row.usage.peak_bytes.max(row.usage.bytes())).max().unwrap_or(0);
        // Most programs have none of these.
        let has_limits = rows.iter().any(|row| row.hard_limit.is_some());
        let has_denied = rows.iter().any(|row| row.usage.denied > 0);
        f.write_str(
            "<div class=\"wide services\"><table><thead><tr><th scope=\"col\">service</th>\
             <th scope=\"col\">live</th><th scope=\"col\">peak</th><th scope=\"col\" class=\"bars\">\
             <span class=\"hidden\">live of peak</span></th>",
        )?;
        let columns =
            [(has_limits, "hard limit"), (true, "blocks"), (true, "allocated"), (has_denied, "denied")];
        let shown = columns.iter().filter(|(is_shown, _)| *is_shown);
        for (_, name) in shown.clone() {
            write!(f, "<th scope=\"col\">{name}</th>")?;
        }
        f.write_str("</tr></thead><tbody>\n")?;
        for (row, depth) in order.iter().take(self.most) {
            let row = &rows[*row];
            let usage = &row.usage;
            write!(
                f,
                "<tr><th scope=\"row\" style=\"padding-left:{}rem\"><span class=\"name\">{}</span></th><td>{}</td>\
                 <td>{}</td><td class=\"bars\">{}</td>",
                (*depth).min(8),
                Escaped(&title(row)),
                bytes(usage.bytes()),
                bytes(usage.peak_bytes),
                Bar { part: usage.bytes(), mark: usage.peak_bytes, whole },
            )?;
            if has_limits {
                write!(f, "<td>{}</td>", row.hard_limit.map_or("–".to_owned(), bytes))?;
            }
            write!(f, "<td>{}</td><td>{}</td>", grouped(usage.blocks()), bytes(usage.allocated_bytes))?;
            if has_denied {
                write!(f, "<td>{}</td>", grouped(usage.denied))?;
            }
            f.write_str("</tr>\n")?;
        }
        if order.len() > self.most {
            let hidden = order.len() - self.most;
            writeln!(
                f,
                "<tr><th scope=\"row\" class=\"soft\" colspan=\"{}\">{} more</th></tr>",
                4 + shown.count(),
                grouped(hidden as u64)
            )?;
        }
        f.write_str("</tbody></table></div>\n")
    }
}

/// A bar of a part, in front of a paler one, both of a whole.
struct Bar {
    part: u64,
    mark: u64,
    whole: u64,
}

impl Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64| 100.0 * part as f64 / self.whole.max(1) as f64;
        write!(
            f,
            "<svg class=\"bar\" aria-hidden=\"true\"><rect class=\"pale\" width=\"{:.2}%\" height=\"100%\"/>\
             <rect width=\"{:.2}%\" height=\"100%\"/></svg>",
            share(self.mark.min(self.whole)),
            share(self.part.min(self.whole)),
        )
    }
}

/// The parts of RSS.
struct Balance<'a>(&'a dogtag::Balance);

impl Display for Balance<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.lines();
        let whole = lines.iter().map(|line| line.bytes.unsigned_abs()).max().unwrap_or(0);
        f.write_str("<div class=\"wide\"><table><tbody>\n")?;
        for line in lines.iter().filter(|line| line.bytes != 0 || line.part == "unexplained") {
            let size = line.bytes.unsigned_abs();
            let sign = if line.bytes < 0 { "−" } else { "" };
            writeln!(
                f,
                "<tr{}><th scope=\"row\">{}</th><td>{sign}{}</td><td class=\"bars\">{}</td>\
                 <td class=\"text soft\">{}</td></tr>",
                if line.bytes < 0 { " class=\"minus\"" } else { "" },
                Escaped(line.part),
                bytes(size),
                Bar { part: size, mark: 0, whole },
                Escaped(line.meaning),
            )?;
        }
        let resident = self.0.resident.map_or("unknown".to_owned(), bytes);
        writeln!(
            f,
            "</tbody><tfoot><tr><th scope=\"row\">RSS</th><td>{resident}</td><td class=\"bars\"></td>\
             <td class=\"text soft\">what the process has in memory</td></tr></tfoot></table></div>"
        )
    }
}

/// The processes, those with the highest peak first.
struct List<'a>(&'a [Process]);

impl Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut processes: Vec<&Process> = self.0.iter().collect();
        processes.sort_by_key(|process| std::cmp::Reverse(process.peak()));
        f.write_str(
            "<div class=\"wide\"><table><thead><tr><th scope=\"col\">process</th><th scope=\"col\">pid</th>\
             <th scope=\"col\">reports</th><th scope=\"col\">live</th><th scope=\"col\">peak</th></tr></thead><tbody>\n",
        )?;
        for process in processes.iter().take(PROCESSES) {
            writeln!(
                f,
                "<tr><th scope=\"row\"><span class=\"name\">{}</span></th><td>{}</td><td>{}</td><td>{}</td>\
                 <td>{}</td></tr>",
                Escaped(&process.name()),
                process.pid,
                process.reports.len(),
                bytes(process.last().snapshot.totals.bytes()),
                bytes(process.peak()),
            )?;
        }
        if processes.len() > PROCESSES {
            let hidden = processes.len() - PROCESSES;
            writeln!(f, "<tr><th scope=\"row\" class=\"soft\" colspan=\"5\">{hidden} more</th></tr>")?;
        }
        f.write_str("</tbody></table></div>\n")
    }
}

/// A time in milliseconds since 1970 as a date.
fn utc(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that a leap day is the last one.
    let days = days as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pprof;

    fn process(reports: usize) -> Process {
        let line = |time: usize| {
            format!(
                r#"{{"time":{},"occasion":"interval","program":"<script>","pid":7,"rows":[
                {{"name":"a&b","usage":{{"allocated_bytes":{time}}},"usage_with_children":{{"allocated_bytes":{time}}}}},
                {{"name":"child","parent":0}}],
                "totals":{{"allocated_bytes":{time}}},"balance":{{"services":{time},"not_in_memory":3,"resident":9}}}}"#,
                1_700_000_000_000_usize + time * 1000
            )
        };
        let reports = (0..reports).map(|number| Report::parse(&line(1000 * (number + 1))).unwrap()).collect();
        Process { pid: 7, program: "<script>".to_owned(), reports }
    }

    #[test]
    fn the_page_has_all_parts_and_is_whole_by_itself() {
        let all = [process(3), process(1)];
        let profile = Profile::read("x", &pprof::tests::file()).unwrap();
        let page = page(&all[0], &all, &[("heap".to_owned(), profile)], 10);
        for part in
            ["<h2>Live bytes over time", "<h2>Services", "<h2>Where", "<h2>Which code", "<h2>All processes"]
        {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("<script") && !page.contains("a&b") && page.contains("a&amp;b"), "{page}");
        for outside in ["src=", "url(", "http", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("padding-left:1rem") && page.contains("−3 B"), "{page}");
    }

    #[test]
    fn columns_that_would_be_empty_are_left_out() {
        let mut all = [process(1)];
        let has =
            |all: &[Process], column: &str| page(&all[0], all, &[], 10).contains(&format!(">{column}</th>"));
        assert_eq!(["blocks", "hard limit", "denied"].map(|column| has(&all, column)), [true, false, false]);
        all[0].reports[0].snapshot.rows[1].hard_limit = Some(3 << 20);
        assert_eq!(["blocks", "hard limit", "denied"].map(|column| has(&all, column)), [true, true, false]);
        assert!(page(&all[0], &all, &[], 10).contains("<td>3.0 MiB</td>"));
        all[0].reports[0].snapshot.rows[0].usage.denied = 4321;
        assert!(has(&all, "denied") && page(&all[0], &all, &[], 10).contains("<td>4,321</td></tr>"));
    }

    #[test]
    fn one_report_has_no_chart() {
        let all = [process(1)];
        let page = page(&all[0], &all, &[], 1);
        assert!(page.contains("--every 1s") && !page.contains("All processes") && page.contains(">1 more<"));
    }

    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_827_696_789), "2000-02-29 12:34:56 UTC");
        assert_eq!(utc(1_767_225_599_000), "2025-12-31 23:59:59 UTC");
    }
}
