//! How long an upstream asks to be left alone, in all the spellings seen.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// Longest wait believed, so that a nonsense header cannot park a target for a year.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads `retry-after-ms`, `x-ms-retry-after-ms` and `retry-after` (seconds or an HTTP date), in that order.
pub fn read(headers: &HeaderMap) -> Option<Duration> {
    read_at(headers, SystemTime::now())
}

fn read_at(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    let wait = ["retry-after-ms", "x-ms-retry-after-ms"]
        .into_iter()
        .find_map(|name| text(name).and_then(number).map(|ms| ms / 1000.0))
        .or_else(|| text("retry-after").and_then(number));
    match wait {
        Some(seconds) => Some(Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64()))),
        None => {
            let date = httpdate::parse_http_date(text("retry-after")?).ok()?;
            Some(date.duration_since(now).unwrap_or_default().min(LONGEST))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_understood() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let date = httpdate::fmt_http_date(now + Duration::from_secs(90));
        for (name, value, expected) in [
            ("retry-after-ms", "1500", Some(1500)),
            ("x-ms-retry-after-ms", "20", Some(20)),
            ("retry-after", "2", Some(2000)),
            ("retry-after", "0.5", Some(500)),
            ("retry-after", &date, Some(90_000)),
            ("retry-after", "soon", None),
            ("retry-after", "-1", None),
            ("retry-after", "1e300", Some(86_400_000)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            let expected = expected.map(Duration::from_millis);
            assert_eq!(read_at(&headers, now), expected, "{name}: {value}");
        }
    }
}
