//! How far back a page looks, as its address says.

use maud::{Markup, html};

use crate::{
    cli::times::date,
    error::{Error, Result},
};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A length of time up to now, in parts.
#[derive(Debug, PartialEq, Eq)]
pub struct Range {
    name: &'static str,
    said: &'static str,
    /// What usage is grouped by.
    pub unit: &'static str,
    unit_ms: i64,
    parts: i64,
    /// Between two parts whose beginning is written under a chart.
    label_every_ms: i64,
}

const RANGES: [Range; 4] = [
    Range {
        name: "1h",
        said: "1 hour",
        unit: "minute",
        unit_ms: MINUTE_MS,
        parts: 60,
        label_every_ms: 15 * MINUTE_MS,
    },
    Range {
        name: "24h",
        said: "24 hours",
        unit: "hour",
        unit_ms: HOUR_MS,
        parts: 24,
        label_every_ms: 6 * HOUR_MS,
    },
    Range {
        name: "7d",
        said: "7 days",
        unit: "hour",
        unit_ms: HOUR_MS,
        parts: 7 * 24,
        label_every_ms: DAY_MS,
    },
    Range {
        name: "30d",
        said: "30 days",
        unit: "day",
        unit_ms: DAY_MS,
        parts: 30,
        label_every_ms: 7 * DAY_MS,
    },
];

const USUAL: &Range = &RANGES[1];

/// Two moments, of which the later does not belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub from_ms: i64,
    pub until_ms: i64,
}

impl Range {
    /// The one of this name; without a name a day.
    ///
    /// # Errors
    /// There is none.
    pub fn read(name: &str) -> Result<&'static Self> {
        if name.is_empty() {
            return Ok(USUAL);
        }
        RANGES.iter().find(|range| range.name == name).ok_or_else(|| {
            let names = RANGES.map(|range| range.name).join(", ");
            Error::invalid("range", format!("range: '{name}' is not allowed; allowed: {names}"))
        })
    }

    /// Up to this moment, which is in the last of its parts. All others are whole.
    pub fn period(&self, now_ms: i64) -> Period {
        let last_ms = now_ms - now_ms.rem_euclid(self.unit_ms);
        Period { from_ms: last_ms - (self.parts - 1) * self.unit_ms, until_ms: now_ms }
    }

    /// What came as long before, and is as long.
    pub fn before(&self, period: Period) -> Period {
        let length_ms = self.parts * self.unit_ms;
        Period { from_ms: period.from_ms - length_ms, until_ms: period.until_ms - length_ms }
    }

    /// When the parts of a period begin.
    pub fn parts(&self, period: Period) -> impl Iterator<Item = i64> {
        (0..self.parts).map(move |part| period.from_ms + part * self.unit_ms)
    }

    /// The beginning of a part, whole.
    pub fn text(&self, part_ms: i64) -> String {
        let length = if self.unit_ms < DAY_MS { "2026-11-27 10:30" } else { "2026-11-27" }.len();
        date(part_ms).chars().take(length).collect()
    }

    /// The beginning of a part as it is written under a chart, if it is.
    pub fn label(&self, part_ms: i64) -> Option<String> {
        let whole = date(part_ms);
        let shown = if self.label_every_ms < DAY_MS { whole.get(11..16) } else { whole.get(5..10) };
        (part_ms % self.label_every_ms == 0).then(|| shown.unwrap_or(&whole).to_owned())
    }

    /// Links to all of them.
    pub fn links(&self, address: &str) -> Markup {
        html! {
            nav class="ranges" aria-label="Time" {
                @for range in &RANGES {
                    a href={ (address) "?range=" (range.name) } aria-current=[(range == self).then_some("true")] { (range.said) }
                }
            }
        }
    }

    /// Its length in words.
    pub fn said(&self) -> &'static str {
        self.said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_795_780_800_000; // 2026-11-27 12:00:00Z

    #[test]
    fn the_last_part_is_the_one_that_is_going_on() {
        let range = Range::read("").unwrap();
        assert_eq!(range.name, "24h");
        let period = range.period(NOON + 90_000);
        assert_eq!(range.text(period.from_ms), "2026-11-26 13:00");
        assert_eq!(period.until_ms, NOON + 90_000);
        let parts: Vec<i64> = range.parts(period).collect();
        assert_eq!((parts.len(), parts.last()), (24, Some(&NOON)));
        let labels: Vec<String> = parts.iter().filter_map(|part| range.label(*part)).collect();
        assert_eq!(labels, ["18:00", "00:00", "06:00", "12:00"]);
    }

    #[test]
    fn what_came_before_is_as_long_and_as_old() {
        for range in &RANGES {
            let period = range.period(NOON + 90_000);
            let before = range.before(period);
            assert_eq!(before.until_ms - before.from_ms, period.until_ms - period.from_ms);
            assert_eq!(range.parts(before).last().unwrap() + range.unit_ms, period.from_ms, "{}", range.name);
            assert!(range.parts(period).filter_map(|part| range.label(part)).count() >= 4, "{}", range.name);
        }
    }

    #[test]
    fn a_range_that_there_is_not_is_named() {
        let error = Range::read("1y").unwrap_err();
        assert_eq!(error.message, "range: '1y' is not allowed; allowed: 1h, 24h, 7d, 30d");
    }
}
