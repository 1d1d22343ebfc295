//! Charts over time, drawn as SVG.
//!
//! Colours are those of the light theme; the style gives each the one of the reader's theme.

use std::{io, ops::Range};

use maud::{Markup, PreEscaped, html};
use plotters::{
    coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    drawing::DrawingAreaErrorKind,
    prelude::{
        ChartBuilder, Circle, Color as _, IntoDrawingArea as _, IntoFont as _, LabelAreaPosition, LineSeries,
        RGBColor, Rectangle, SVGBackend, ShapeStyle,
    },
};

use crate::error::{Error, ErrorKind, Result};

/// As wide and high as it is drawn, whatever it is shown as.
const SIZE: (u32, u32) = (400, 210);

/// Room for what is written on the left and below.
const LEFT: u32 = 52;
const BELOW: u32 = 24;

/// Text, in the same measure.
const TEXT: f64 = 15.0;

/// What is still to be seen of a bar.
const LOWEST: f64 = 2.0;

/// Lines across a chart, at most.
const LINES: f64 = 4.0;

const FAINT: RGBColor = RGBColor(0x5a, 0x60, 0x70);
const LINE: RGBColor = RGBColor(0xd5, 0xd8, 0xe0);

/// The colour of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hue {
    Accent,
    Warning,
    Bad,
    Teal,
    Violet,
}

impl Hue {
    fn rgb(self) -> RGBColor {
        match self {
            Self::Accent => RGBColor(0x33, 0x42, 0xb5),
            Self::Warning => RGBColor(0x87, 0x52, 0x00),
            Self::Bad => RGBColor(0xb3, 0x26, 0x1e),
            Self::Teal => RGBColor(0x0f, 0x76, 0x6e),
            Self::Violet => RGBColor(0x8b, 0x3f, 0xa8),
        }
    }

    /// As the style knows it.
    fn name(self) -> &'static str {
        match self {
            Self::Accent => "accent",
            Self::Warning => "warning",
            Self::Bad => "bad",
            Self::Teal => "teal",
            Self::Violet => "violet",
        }
    }
}

/// Numbers over time, a value for each part of it.
#[derive(Debug)]
pub struct Series {
    pub name: &'static str,
    pub hue: Hue,
    /// None: there is nothing to tell of this part.
    pub values: Vec<Option<f64>>,
}

/// How values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Bars on top of each other: what belongs together.
    Bars,
    /// A line each.
    Lines,
}

/// A chart.
#[derive(Debug)]
pub struct Chart<'a> {
    /// By which the page knows it.
    pub id: &'a str,
    pub title: &'a str,
    /// What there is to see, for those who do not.
    pub description: String,
    pub shape: Shape,
    pub series: Vec<Series>,
    /// What is written under each part, where anything is.
    pub labels: &'a [Option<String>],
    /// How an amount is written on the left.
    pub amount: fn(f64) -> String,
    /// Amounts that are written differ at least by so much.
    pub least: f64,
}

/// From 0 to its end, marked where its maker says: the library's own marks are not round in time, nor whole.
#[derive(Clone)]
struct Axis {
    end: f64,
    marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, until): (i32, i32)) -> i32 {
        from + (f64::from(until - from) * value / self.end).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // There are no lesser marks between these.
        if hint.weight().allow_light_points() { Vec::new() } else { self.marks.clone() }
    }

    fn range(&self) -> Range<f64> {
        0.0..self.end
    }
}

impl Chart<'_> {
    /// Draws it, with a legend.
    ///
    /// # Errors
    /// It cannot be drawn, which does not happen to what is drawn into memory.
    pub fn draw(&self) -> Result<Markup> {
        let drawn = self.svg().map_err(|error| {
            Error::new(ErrorKind::Internal, format!("the chart \"{}\" could not be drawn: {error}", self.id))
        })?;
        let (title, description) = (format!("{}-title", self.id), format!("{}-description", self.id));
        Ok(html! {
            figure class="chart" {
                figcaption { (self.title) }
                svg viewBox={ "0 0 " (SIZE.0) " " (SIZE.1) } role="img" aria-labelledby=(title) aria-describedby=(description) {
                    title id=(title) { (self.title) }
                    desc id=(description) { (self.description) }
                    (PreEscaped(inside(&drawn)))
                }
                @if self.series.len() > 1 {
                    ul class="legend" {
                        @for series in &self.series { li { span class={ "key " (series.hue.name()) } {} (series.name) } }
                    }
                }
            }
        })
    }

    fn svg(&self) -> Result<String, DrawingAreaErrorKind<io::Error>> {
        let mut drawn = String::new();
        let area = SVGBackend::with_string(&mut drawn, SIZE).into_drawing_area();
        let lines = lines(self.highest(), self.least);
        let top = lines.last().copied().unwrap_or(1.0);
        let labels: Vec<f64> = (0_u32..)
            .zip(self.labels)
            .filter_map(|(part, label)| label.is_some().then_some(f64::from(part) + 0.5))
            .collect();
        let mut chart = ChartBuilder::on(&area)
            .margin_top(10)
            .margin_right(12)
            .set_label_area_size(LabelAreaPosition::Left, LEFT)
            .set_label_area_size(LabelAreaPosition::Bottom, BELOW)
            .build_cartesian_2d(
                Axis { end: self.labels.len() as f64, marks: labels },
                Axis { end: top, marks: lines },
            )?;
        let label = |at: &f64| self.labels.get(*at as usize).cloned().flatten().unwrap_or_default();
        let amount = |amount: &f64| (self.amount)(*amount);
        let text = ("sans-serif", TEXT).into_font().color(&FAINT);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .bold_line_style(LINE)
            .axis_style(LINE)
            .label_style(text)
            .x_label_formatter(&label)
            .y_label_formatter(&amount)
            .draw()?;
        match self.shape {
            Shape::Bars => {
                let lowest = top * LOWEST / f64::from(SIZE.1 - BELOW);
                for (series, bars) in self.series.iter().zip(stacked(&self.series, lowest)) {
                    let style = series.hue.rgb().filled();
                    chart.draw_series(bars.into_iter().map(|bar| Rectangle::new(bar, style)))?;
                }
            }
            Shape::Lines => {
                for series in &self.series {
                    let style = series.hue.rgb();
                    for run in runs(&series.values) {
                        if let [alone] = run[..] {
                            chart.draw_series([Circle::new(alone, 3, style.filled())])?;
                        } else {
                            let style = ShapeStyle::from(style).stroke_width(2);
                            chart.draw_series(LineSeries::new(run, style))?;
                        }
                    }
                }
            }
        }
        area.present()?;
        drop(chart);
        drop(area);
        Ok(drawn)
    }

    fn highest(&self) -> f64 {
        let parts = (0..self.labels.len()).map(|part| {
            let values = self.series.iter().filter_map(|series| series.values.get(part).copied().flatten());
            match self.shape {
                Shape::Bars => values.sum(),
                Shape::Lines => values.fold(0.0, f64::max),
            }
        });
        parts.fold(0.0, f64::max)
    }
}

/// Without the outermost tag, which the page writes.
fn inside(drawn: &str) -> &str {
    let drawn = drawn.split_once('>').map_or("", |(_, inside)| inside);
    drawn.rsplit_once("</svg>").map_or(drawn, |(inside, _)| inside)
}

/// Round amounts from 0 to one that nothing is above.
fn lines(highest: f64, least: f64) -> Vec<f64> {
    let wanted = if highest > 0.0 { (highest / LINES).max(least) } else { least };
    let magnitude = 10_f64.powf(wanted.log10().floor());
    let step =
        [1.0, 2.0, 5.0].map(|digit| digit * magnitude).into_iter().find(|step| *step >= wanted * 0.999);
    let step = step.unwrap_or(10.0 * magnitude);
    let count = (highest / step).ceil().max(1.0) as u32;
    (0..=count).map(|line| f64::from(line) * step).collect()
}

/// The corners of bars on top of each other, for each series.
fn stacked(series: &[Series], lowest: f64) -> Vec<Vec<[(f64, f64); 2]>> {
    let parts = series.iter().map(|series| series.values.len()).max().unwrap_or(0);
    // Where there are many, they touch.
    let gap = if parts > 80 { 0.0 } else { 0.12 };
    let mut heights = vec![0.0; parts];
    let mut bars = Vec::new();
    for series in series {
        let mut drawn = Vec::new();
        for ((part, value), height) in (0_u32..).zip(&series.values).zip(&mut heights) {
            let Some(value) = value.filter(|value| *value > 0.0) else { continue };
            let (from, begin) = (*height, f64::from(part));
            *height += value.max(lowest);
            drawn.push([(begin + gap, from), (begin + 1.0 - gap, *height)]);
        }
        bars.push(drawn);
    }
    bars
}

/// The points of a line, which ends where there is nothing and begins again.
fn runs(values: &[Option<f64>]) -> Vec<Vec<(f64, f64)>> {
    let points: Vec<_> = (0_u32..)
        .zip(values)
        .map(|(part, value)| value.map(|value| (f64::from(part) + 0.5, value)))
        .collect();
    points
        .split(Option::is_none)
        .map(|run| run.iter().copied().flatten().collect::<Vec<_>>())
        .filter(|run| !run.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[Option<f64>]) -> Series {
        Series { name: "x", hue: Hue::Accent, values: values.to_vec() }
    }

    #[test]
    fn lines_are_round_and_none_is_below_the_highest_value() {
        assert_eq!(lines(0.0, 1.0), [0.0, 1.0]);
        assert_eq!(lines(1.0, 1.0), [0.0, 1.0]);
        assert_eq!(lines(3.0, 1.0), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(lines(7.0, 1.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(lines(100.0, 1.0), [0.0, 50.0, 100.0]);
        assert_eq!(lines(12_345.0, 1.0), [0.0, 5000.0, 10_000.0, 15_000.0]);
        for highest in [0.003, 0.04, 0.11, 1.7, 999.0, 1e9] {
            let lines = lines(highest, 0.0001);
            assert!((2..=6).contains(&lines.len()), "{highest}: {lines:?}");
            assert!(lines[lines.len() - 1] >= highest && lines[lines.len() - 2] < highest, "{lines:?}");
        }
    }

    #[test]
    fn bars_stand_on_each_other_and_the_smallest_is_seen() {
        let below = series(&[Some(100.0), None, Some(3.0)]);
        let above = series(&[Some(0.01), Some(5.0), Some(0.0)]);
        let bars = stacked(&[below, above], 1.0);
        let heights = |of: usize| bars[of].iter().map(|bar| (bar[0].1, bar[1].1)).collect::<Vec<_>>();
        assert_eq!(heights(0), [(0.0, 100.0), (0.0, 3.0)]);
        assert_eq!(heights(1), [(100.0, 101.0), (0.0, 5.0)]);
        assert!(bars[1][1][0].0 > 1.0 && bars[1][1][1].0 < 2.0, "in its part: {:?}", bars[1][1]);
    }

    #[test]
    fn a_line_has_gaps_where_nothing_was() {
        let runs = runs(&[None, Some(1.0), Some(2.0), None, None, Some(3.0)]);
        assert_eq!(runs, [vec![(1.5, 1.0), (2.5, 2.0)], vec![(5.5, 3.0)]]);
        assert!(self::runs(&[None, None]).is_empty());
    }

    #[test]
    fn a_chart_says_what_it_is_and_has_no_style_of_its_own() {
        let labels = [Some("06:00".to_owned()), None, Some("12:00".to_owned())];
        for shape in [Shape::Bars, Shape::Lines] {
            let chart = Chart {
                id: "requests",
                title: "Requests <b>",
                description: "three parts".into(),
                shape,
                series: vec![series(&[Some(1.0), None, Some(4.0)]), series(&[Some(2.0), Some(2.0), None])],
                labels: &labels,
                amount: |amount| format!("{amount} pieces"),
                least: 1.0,
            };
            let drawn = chart.draw().unwrap().0;
            assert_eq!(drawn.matches("<svg").count(), 1, "{drawn}");
            for part in ["Requests &lt;b&gt;", "three parts", "06:00", "4 pieces", "#3342B5", "sans-serif"] {
                assert!(drawn.contains(part), "{part}: {drawn}");
            }
            assert!(!drawn.contains("style="), "{drawn}");
        }
    }
}
