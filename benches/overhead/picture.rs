//! Draws what was measured: a row for each workload, a mark for each contestant.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::ops::Range;
use std::path::Path;

/// The contestant that the picture is about.
const SHOWN_FIRST: usize = 0;

pub struct Picture<'a> {
    pub title: &'a str,
    pub note: &'a str,
    pub contestants: &'a [&'a str],
    /// Of the multiples that are shown. What lies beyond stands at the border.
    pub range: Range<f64>,
    pub ticks: &'a [f64],
    pub rows: Vec<Row<'a>>,
}

pub enum Row<'a> {
    Heading(&'a str),
    Workload { label: &'a str, marks: Vec<Mark> },
}

pub struct Mark {
    pub contestant: usize,
    pub middle: f64,
    pub low: f64,
    pub high: f64,
}

struct Theme {
    name: &'static str,
    background: RGBColor,
    text: RGBColor,
    faint: RGBColor,
    /// A colour for each contestant.
    marks: [RGBColor; 10],
}

// Okabe and Ito's colours, which are told apart by everybody; lighter ones in the dark.
const THEMES: [Theme; 2] = [
    Theme {
        name: "light",
        background: RGBColor(255, 255, 255),
        text: RGBColor(31, 35, 40),
        faint: RGBColor(216, 222, 228),
        marks: [
            RGBColor(213, 0, 50),
            RGBColor(110, 50, 180),
            RGBColor(230, 130, 150),
            RGBColor(0, 114, 178),
            RGBColor(86, 160, 220),
            RGBColor(110, 80, 40),
            RGBColor(0, 140, 100),
            RGBColor(200, 140, 0),
            RGBColor(170, 90, 140),
            RGBColor(130, 130, 130),
        ],
    },
    Theme {
        name: "dark",
        background: RGBColor(13, 17, 23),
        text: RGBColor(230, 237, 243),
        faint: RGBColor(48, 54, 61),
        marks: [
            RGBColor(255, 80, 110),
            RGBColor(175, 130, 255),
            RGBColor(190, 100, 120),
            RGBColor(60, 150, 230),
            RGBColor(130, 195, 245),
            RGBColor(175, 140, 95),
            RGBColor(40, 185, 140),
            RGBColor(235, 180, 60),
            RGBColor(205, 130, 180),
            RGBColor(160, 160, 160),
        ],
    },
];

// Narrow, so that a phone shows it without shrinking the letters too much.
const WIDTH: i32 = 560;
const LABELS: i32 = 218;
const MARGIN: i32 = 14;
const ROW: i32 = 24;
const LEGEND_ROW: i32 = 20;
const FONT: &str = "sans-serif";

impl Picture<'_> {
    /// Writes `NAME-light.svg` and `NAME-dark.svg`.
    pub fn write(&self, folder: &Path, name: &str) -> Result<(), Box<dyn Error>> {
        for theme in &THEMES {
            let path = folder.join(format!("{name}-{}.svg", theme.name));
            let size = (WIDTH as u32, self.height() as u32);
            let area = SVGBackend::new(&path, size).into_drawing_area();
            self.draw(&area, theme).map_err(|error| error.to_string())?;
            area.present().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn height(&self) -> i32 {
        self.top() + self.rows.len() as i32 * ROW + 54
    }

    /// Where the rows begin.
    fn top(&self) -> i32 {
        48 + self.contestants.len().div_ceil(2) as i32 * LEGEND_ROW + 26
    }

    fn x(&self, multiple: f64) -> i32 {
        let clamped = multiple.clamp(self.range.start, self.range.end);
        let part = (clamped / self.range.start).ln() / (self.range.end / self.range.start).ln();
        LABELS + (part * f64::from(WIDTH - LABELS - MARGIN)) as i32
    }

    fn draw<'b>(
        &self,
        area: &DrawingArea<SVGBackend<'b>, Shift>,
        theme: &Theme,
    ) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'b> as DrawingBackend>::ErrorType>> {
        let text = |size: i32, colour: RGBColor, h: HPos| {
            (FONT, size).into_font().color(&colour).pos(Pos::new(h, VPos::Center))
        };
        area.fill(&theme.background)?;
        let bold = (FONT, 17).into_font().style(FontStyle::Bold).color(&theme.text);
        area.draw(&Text::new(self.title, (MARGIN, 16), bold))?;

        for (i, contestant) in self.contestants.iter().enumerate() {
            let x = MARGIN + 8 + (i % 2) as i32 * WIDTH / 2;
            let y = 56 + (i / 2) as i32 * LEGEND_ROW;
            self.mark(area, theme, i, (x, y))?;
            area.draw(&Text::new(*contestant, (x + 14, y), text(14, theme.text, HPos::Left)))?;
        }

        let (top, bottom) = (self.top(), self.top() + self.rows.len() as i32 * ROW);
        for &tick in self.ticks {
            let x = self.x(tick);
            let colour = if tick == 1.0 { theme.text } else { theme.faint };
            area.draw(&PathElement::new([(x, top), (x, bottom)], colour))?;
            for y in [top - 10, bottom + 12] {
                area.draw(&Text::new(format!("{tick}×"), (x, y), text(13, theme.text, HPos::Center)))?;
            }
        }
        let note = text(12, theme.text, HPos::Left);
        area.draw(&Text::new(self.note, (MARGIN, bottom + 38), note))?;

        for (i, row) in self.rows.iter().enumerate() {
            let y = top + i as i32 * ROW + ROW / 2;
            match row {
                Row::Heading(heading) => {
                    let bold = text(14, theme.text, HPos::Left).font.style(FontStyle::Bold);
                    let bold = bold.color(&theme.text).pos(Pos::new(HPos::Left, VPos::Center));
                    area.draw(&Text::new(*heading, (MARGIN, y), bold))?;
                }
                Row::Workload { label, marks } => {
                    area.draw(&Text::new(*label, (MARGIN, y), text(14, theme.text, HPos::Left)))?;
                    // The one that matters last, on top of all others.
                    for mark in marks.iter().rev() {
                        if mark.contestant == SHOWN_FIRST {
                            let spread = [(self.x(mark.low), y), (self.x(mark.high), y)];
                            let style = theme.marks[SHOWN_FIRST].stroke_width(2);
                            area.draw(&PathElement::new(spread, style))?;
                        }
                        self.mark(area, theme, mark.contestant, (self.x(mark.middle), y))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn mark<'b>(
        &self,
        area: &DrawingArea<SVGBackend<'b>, Shift>,
        theme: &Theme,
        contestant: usize,
        at: (i32, i32),
    ) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'b> as DrawingBackend>::ErrorType>> {
        let colour = theme.marks[contestant % theme.marks.len()];
        match contestant {
            SHOWN_FIRST => area.draw(&Circle::new(at, 7, colour.filled())),
            1 => area.draw(&Circle::new(at, 5, colour.stroke_width(2))),
            contestant if contestant % 2 == 0 => area.draw(&TriangleMarker::new(at, 5, colour.filled())),
            _ => area.draw(&Cross::new(at, 4, colour.stroke_width(2))),
        }
    }
}
