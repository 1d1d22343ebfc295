//! Times as a person writes and reads them: `7d`, `2026-11-27`, `2026-11-27T10:30:00Z`.

use std::{str::FromStr, time::Duration};

use time::OffsetDateTime;

use crate::moment;

/// A moment: a date, or so long before or after now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Milliseconds since 1970.
    At(i64),
    /// From now, in the direction that the flag means.
    Off(Duration),
}

impl When {
    /// In milliseconds since 1970, where a length of time means the past.
    pub fn ago(self, now: i64) -> i64 {
        match self {
            Self::At(at) => at,
            Self::Off(length) => now.saturating_sub(millis(length)),
        }
    }

    /// In milliseconds since 1970, where a length of time means the future.
    pub fn ahead(self, now: i64) -> i64 {
        match self {
            Self::At(at) => at,
            Self::Off(length) => now.saturating_add(millis(length)),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(length) = length(text) {
            return Ok(Self::Off(length));
        }
        moment::parse(text).map(Self::At).ok_or_else(|| {
            "not a time: write 2026-11-27 (midnight, UTC), 2026-11-27T10:30:00Z, or a length such as 30m, 12h, 7d"
                .to_owned()
        })
    }
}

/// `90s`, `30m`, `12h`, `7d` or `2w`.
pub fn length(text: &str) -> Result<Duration, String> {
    let wrong = || "not a length of time: write 90s, 30m, 12h, 7d or 2w".to_owned();
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 60 * 60,
        Some('d') => 24 * 60 * 60,
        Some('w') => 7 * 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    // Parsing alone would let a sign pass.
    let number = &text[..text.len() - 1];
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

/// `2026-11-27 10:30:00Z`.
pub fn date(unix_ms: i64) -> String {
    shown(unix_ms, |at| {
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        format!("{year:04}-{month:02}-{day:02} {}", time_of_day(at))
    })
}

/// `10:30:00Z`.
pub fn clock(unix_ms: i64) -> String {
    shown(unix_ms, time_of_day)
}

fn time_of_day(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}:{:02}Z", at.hour(), at.minute(), at.second())
}

/// A moment that need not come.
pub fn date_or_never(unix_ms: Option<i64>) -> String {
    unix_ms.map_or_else(|| "never".to_owned(), date)
}

/// `340ms`, `1.2s`, `2m05s`.
pub fn short(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
        _ => format!("{}m{:02}s", millis / 60_000, millis % 60_000 / 1000),
    }
}

fn millis(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

fn shown(unix_ms: i64, write: impl Fn(OffsetDateTime) -> String) -> String {
    // What is out of the calendar is shown as it is.
    OffsetDateTime::from_unix_timestamp(unix_ms.div_euclid(1000)).map_or_else(|_| unix_ms.to_string(), write)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_795_780_800_000; // 2026-11-27 12:00:00Z

    #[test]
    fn lengths_have_a_unit() {
        let seconds = |text| length(text).map(|length| length.as_secs());
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("30m"), Ok(1800));
        assert_eq!(seconds("12h"), Ok(43_200));
        assert_eq!(seconds("7d"), Ok(604_800));
        assert_eq!(seconds("2w"), Ok(1_209_600));
        for wrong in [
            "",
            "7",
            "d",
            "-7d",
            "+7d",
            "7 d",
            "1.5h",
            "7y",
            "7ä",
            "99999999999999999999d",
            "9999999999999999999w",
        ] {
            assert!(length(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_is_a_date_or_a_distance() {
        let when = |text: &str| text.parse::<When>();
        assert_eq!(when("2026-11-27T12:00:00Z"), Ok(When::At(NOON)));
        assert_eq!(when("2026-11-27T13:30:00.250+01:30"), Ok(When::At(NOON + 250)));
        assert_eq!(when("2026-11-27"), Ok(When::At(NOON - 43_200_000)));
        assert_eq!(when("7d").map(|when| when.ago(NOON)), Ok(NOON - 604_800_000));
        assert_eq!(when("7d").map(|when| when.ahead(NOON)), Ok(NOON + 604_800_000));
        for wrong in ["", "yesterday", "2026-02-30", "2026-13-01", "27.11.2026", "2026-11-27 12:00"] {
            assert!(when(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_distance_beyond_all_time_is_the_end_of_it() {
        assert_eq!(When::Off(Duration::MAX).ago(NOON), NOON - i64::MAX);
        assert_eq!(When::Off(Duration::MAX).ahead(NOON), i64::MAX);
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(date(NOON + 999), "2026-11-27 12:00:00Z");
        assert_eq!((date(-1), clock(-1)), ("1969-12-31 23:59:59Z".into(), "23:59:59Z".into()));
        assert_eq!(date(i64::MAX), i64::MAX.to_string());
        assert_eq!(date_or_never(None), "never");
    }

    #[test]
    fn lengths_are_shown_short() {
        assert_eq!(
            [0, 999, 1000, 12_345, 59_999, 125_000].map(short),
            ["0ms", "999ms", "1.0s", "12.3s", "59.9s", "2m05s"]
        );
    }
}
