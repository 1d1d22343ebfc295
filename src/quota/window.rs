//! The periods of limits: each begins and ends at the same moment for everybody, in UTC.

use time::{Date, Month, OffsetDateTime};

use crate::{
    config::quota::Limit,
    pb::{BudgetReset, RateUnit},
};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;

/// 1970 began on a Thursday.
const FIRST_SUNDAY: i64 = 3 * DAY;

/// How long a period is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 60 min.
    Hour,
    /// From midnight.
    Day,
    /// From Sunday.
    Week,
    /// From the 1st.
    Month,
    /// It has no end.
    Always,
}

/// One period, in ms since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// When it began.
    pub start: i64,
    /// When the next one begins; `i64::MAX`: never.
    pub end: i64,
}

impl Span {
    /// The period of a limit.
    pub fn of(limit: &Limit) -> Self {
        match limit {
            Limit::Rate { unit, .. } => match unit {
                RateUnit::Unspecified | RateUnit::Second => Self::Second,
                RateUnit::Minute => Self::Minute,
                RateUnit::Hour => Self::Hour,
                RateUnit::Day => Self::Day,
                RateUnit::Week => Self::Week,
            },
            Limit::Budget { reset, .. } => match reset {
                BudgetReset::Unspecified => Self::Always,
                BudgetReset::Daily => Self::Day,
                BudgetReset::Weekly => Self::Week,
                BudgetReset::Monthly => Self::Month,
            },
        }
    }

    /// As keys and messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Always => "all time",
        }
    }

    /// The period that a moment is in.
    pub fn window(self, now_ms: i64) -> Window {
        let regular = |length: i64, from: i64| {
            let start = (now_ms - from).div_euclid(length) * length + from;
            Window { start, end: start + length }
        };
        match self {
            Self::Second => regular(SECOND, 0),
            Self::Minute => regular(MINUTE, 0),
            Self::Hour => regular(HOUR, 0),
            Self::Day => regular(DAY, 0),
            Self::Week => regular(WEEK, FIRST_SUNDAY),
            Self::Month => month(now_ms).unwrap_or_else(|| regular(30 * DAY, 0)),
            Self::Always => Window { start: 0, end: i64::MAX },
        }
    }

    /// Whether what is counted is to outlast the process.
    pub fn is_kept(self) -> bool {
        self >= Self::Hour
    }
}

/// None for a clock beyond all calendars.
fn month(now_ms: i64) -> Option<Window> {
    let today = OffsetDateTime::from_unix_timestamp(now_ms.div_euclid(1000)).ok()?.date();
    let first = |year: i32, month: Month| {
        let date = Date::from_calendar_date(year, month, 1).ok()?;
        Some(date.midnight().assume_utc().unix_timestamp() * 1000)
    };
    let next_year = today.year() + i32::from(today.month() == Month::December);
    Some(Window { start: first(today.year(), today.month())?, end: first(next_year, today.month().next())? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Span; 7] =
        [Span::Second, Span::Minute, Span::Hour, Span::Day, Span::Week, Span::Month, Span::Always];

    /// 2026-11-27 was a Friday.
    const NOON: i64 = 1_795_780_800_000;

    #[test]
    fn periods_begin_where_the_reference_has_them() {
        let day = |text: &str| {
            let date = Date::parse(text, &time::format_description::well_known::Iso8601::DATE).unwrap();
            date.midnight().assume_utc().unix_timestamp() * 1000
        };
        let window = |span: Span| span.window(NOON);
        assert_eq!(window(Span::Day), Window { start: day("2026-11-27"), end: day("2026-11-28") });
        assert_eq!(window(Span::Week), Window { start: day("2026-11-22"), end: day("2026-11-29") });
        assert_eq!(window(Span::Month), Window { start: day("2026-11-01"), end: day("2026-12-01") });
        let december = Span::Month.window(day("2026-12-31") + DAY - 1);
        assert_eq!(december, Window { start: day("2026-12-01"), end: day("2027-01-01") });
        assert_eq!(Span::Month.window(day("2028-02-29")).end, day("2028-03-01"));
    }

    proptest! {
        #[test]
        fn every_moment_is_in_one_period_and_its_end_in_the_next(now in -4_000_000_000_000_i64..9_000_000_000_000) {
            for span in ALL {
                let window = span.window(now);
                prop_assert!(span == Span::Always || (window.start <= now && now < window.end), "{span:?} {window:?}");
                if span != Span::Always {
                    prop_assert_eq!(span.window(window.start), window);
                    prop_assert_eq!(span.window(window.end).start, window.end);
                    prop_assert_eq!(span.window(window.end - 1), window);
                }
            }
        }
    }
}
