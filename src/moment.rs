//! Moments as texts: `2026-11-27` (midnight, UTC) and `2026-11-27T10:30:00Z`, in milliseconds since 1970.

use time::{
    Date, OffsetDateTime,
    format_description::well_known::{Iso8601, Rfc3339},
};

/// Reads one. None: it is no moment.
pub fn parse(text: &str) -> Option<i64> {
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| Date::parse(text, &Iso8601::DATE).map(|date| date.midnight().assume_utc()))
        .ok()?;
    Some(moment.unix_timestamp() * 1000 + i64::from(moment.millisecond()))
}

/// Writes one, such as `2026-11-27T10:30:00Z`. What is out of the calendar is written as it is.
pub fn text(unix_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix_ms.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_written() {
        for (said, millis) in [
            ("1970-01-01T00:00:01Z", 1000),
            ("1970-01-01T01:00:00.250+01:00", 250),
            ("1970-01-02", 86_400_000),
            ("1969-12-31T23:59:59.500Z", -500),
        ] {
            assert_eq!(parse(said), Some(millis), "{said}");
            assert_eq!(parse(&text(millis)), Some(millis), "{said}");
        }
        for said in
            ["", "tomorrow", "1700000000", "2026-13-01", "2026-02-30", "27.11.2026", "2026-11-27 12:00"]
        {
            assert_eq!(parse(said), None, "{said}");
        }
        assert_eq!(text(1_795_368_050_000), "2026-11-22T17:20:50Z");
        assert_eq!(text(i64::MAX), i64::MAX.to_string());
    }
}
