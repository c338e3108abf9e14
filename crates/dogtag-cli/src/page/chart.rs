//! Live bytes over time, the largest services stacked.

use super::Escaped;
use crate::reports::Report;
use crate::size::bytes;
use std::collections::HashMap;
use std::fmt::{self, Display};

/// Services with a colour of their own.
const SERVICES: usize = 8;

/// Moments that are drawn; of more, every second, third and so on.
const MOMENTS: usize = 400;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 300.0;

/// Stacked areas of a process's reports.
pub struct Chart {
    /// Milliseconds.
    times: Vec<u64>,
    /// From the lowest to the highest, which is all others together.
    areas: Vec<Area>,
    /// What the height stands for.
    most: u64,
}

struct Area {
    name: String,
    values: Vec<u64>,
}

impl Chart {
    /// Draws reports, in the order of time; none of a single moment.
    pub fn of(reports: &[Report]) -> Option<Self> {
        let step = reports.len().div_ceil(MOMENTS).max(1);
        // The last one is always there.
        let mut moments: Vec<&Report> = reports.iter().rev().step_by(step).collect();
        moments.reverse();
        let mut times: Vec<u64> = moments.iter().map(|report| report.time).collect();
        times.dedup();
        if times.len() < 2 {
            return None;
        }
        let times: Vec<u64> = moments.iter().map(|report| report.time).collect();
        let mut series: HashMap<&str, Vec<u64>> = HashMap::new();
        for (moment, report) in moments.iter().enumerate() {
            for row in &report.snapshot.rows {
                let values = series.entry(&row.name).or_insert_with(|| vec![0; moments.len()]);
                values[moment] = values[moment].saturating_add(row.usage.bytes());
            }
        }
        let mut series: Vec<(&str, Vec<u64>)> = series.into_iter().collect();
        let highest = |values: &[u64]| values.iter().copied().max().unwrap_or(0);
        series.sort_by(|(a, x), (b, y)| highest(y).cmp(&highest(x)).then_with(|| a.cmp(b)));
        series.truncate(SERVICES);
        let mut areas: Vec<Area> =
            series.into_iter().map(|(name, values)| Area { name: name.to_owned(), values }).collect();
        let totals: Vec<u64> = moments.iter().map(|report| report.snapshot.totals.bytes()).collect();
        let others: Vec<u64> = totals
            .iter()
            .enumerate()
            .map(|(moment, total)| {
                total
                    .saturating_sub(areas.iter().map(|area| area.values[moment]).fold(0, u64::saturating_add))
            })
            .collect();
        if highest(&others) > 0 {
            areas.push(Area { name: String::new(), values: others });
        }
        Some(Self { times, areas, most: highest(&totals).max(1) })
    }

    fn x(&self, moment: usize) -> f64 {
        let (first, last) = (self.times[0], self.times[self.times.len() - 1]);
        WIDTH * (self.times[moment].saturating_sub(first)) as f64 / last.saturating_sub(first).max(1) as f64
    }

    fn y(&self, bytes: u64) -> f64 {
        HEIGHT - HEIGHT * (bytes as f64 / self.most as f64).min(1.0)
    }
}

impl Display for Chart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<div class=\"chart\"><div class=\"plot\"><span class=\"high\">{}</span><span class=\"half\">{}</span>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"live bytes of the largest services over time, stacked\">",
            bytes(self.most),
            bytes(self.most / 2),
        )?;
        let mut below = vec![0_u64; self.times.len()];
        for (number, area) in self.areas.iter().enumerate() {
            let above: Vec<u64> = below.iter().zip(&area.values).map(|(a, b)| a.saturating_add(*b)).collect();
            write!(f, "<path class=\"{}\" d=\"", class(number, area))?;
            for (moment, value) in above.iter().enumerate() {
                let letter = if moment == 0 { 'M' } else { 'L' };
                write!(f, "{letter}{:.1} {:.1}", self.x(moment), self.y(*value))?;
            }
            for (moment, value) in below.iter().enumerate().rev() {
                write!(f, "L{:.1} {:.1}", self.x(moment), self.y(*value))?;
            }
            write!(f, "Z\"><title>{}</title></path>", Name(area))?;
            below = above;
        }
        let seconds = self.times[self.times.len() - 1].saturating_sub(self.times[0]) as f64 / 1000.0;
        write!(f, "</svg><span class=\"from\">0 s</span><span class=\"to\">{seconds:.1} s</span></div><ul>")?;
        // As they lie: the highest first.
        for (number, area) in self.areas.iter().enumerate().rev() {
            let last = area.values.last().copied().unwrap_or(0);
            write!(
                f,
                "<li><span class=\"swatch {}\"></span><span class=\"name\">{}</span><span>{}</span></li>",
                class(number, area),
                Name(area),
                bytes(last),
            )?;
        }
        f.write_str("</ul></div>\n")
    }
}

fn class(number: usize, area: &Area) -> String {
    if area.name.is_empty() { "others".to_owned() } else { format!("c{number}") }
}

struct Name<'a>(&'a Area);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.name.is_empty() { f.write_str("all others") } else { Escaped(&self.0.name).fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(time: u64, rows: &[(&str, u64)], total: u64) -> Report {
        let rows: Vec<String> = rows
            .iter()
            .map(|(name, bytes)| format!(r#"{{"name":"{name}","usage":{{"allocated_bytes":{bytes}}}}}"#))
            .collect();
        Report::parse(&format!(
            r#"{{"time":{time},"occasion":"interval","program":"a","pid":1,"rows":[{}],"totals":{{"allocated_bytes":{total}}}}}"#,
            rows.join(",")
        ))
        .unwrap()
    }

    #[test]
    fn areas_lie_on_one_another_and_add_up() {
        let reports = [report(0, &[("a", 10)], 20), report(1000, &[("b", 30), ("a", 10)], 40)];
        let chart = Chart::of(&reports).unwrap();
        let areas: Vec<(&str, &[u64])> =
            chart.areas.iter().map(|area| (area.name.as_str(), &area.values[..])).collect();
        assert_eq!(areas, [("b", &[0, 30][..]), ("a", &[10, 10]), ("", &[10, 0])]);
        let text = chart.to_string();
        assert!(text.contains("M0.0 300.0L1000.0 75.0L1000.0 300.0L0.0 300.0Z"), "{text}");
        assert!(text.contains("class=\"others\"") && text.contains("1.0 s"), "{text}");
    }

    #[test]
    fn many_moments_are_thinned_and_the_last_is_kept() {
        let reports: Vec<Report> = (0..1000).map(|time| report(time, &[("a", time)], time)).collect();
        let chart = Chart::of(&reports).unwrap();
        assert!(chart.times.len() <= MOMENTS && chart.times.last() == Some(&999));
        assert!(Chart::of(&reports[..1]).is_none());
        assert!(Chart::of(&[report(5, &[], 1), report(5, &[], 2)]).is_none());
    }
}
