//! A request that is over, as one line for a person.

use crate::{
    cli::{
        table::{plain, usd},
        times::{clock, date, short},
    },
    pb::{Operation, RequestRecord},
};

/// As the request log is listed: with the date and the id, by which more can be asked.
pub fn of_log(record: &RequestRecord) -> String {
    let (time, id) = (date(record.created_unix_ms), plain(&record.id));
    format!("{time}  {id}  {}  {}", record.status, what_happened(record)).trim_end().to_owned()
}

/// As a gateway shows it at the moment when it ends: with what was made, and why not. The status stands as `status`
/// has it.
pub fn as_it_ends(record: &RequestRecord, status: &str) -> String {
    let text = format!(
        "{}  {status}  {:<9}  {:<12}  {}  {}",
        clock(record.ended_unix_ms()),
        operation(record),
        made(record),
        what_happened(record),
        plain(&record.error_message)
    );
    text.trim_end().to_owned()
}

fn operation(record: &RequestRecord) -> &'static str {
    match record.operation() {
        Operation::Unspecified => "-",
        known => known.name(),
    }
}

/// Who answered, how long it took, what it costs, and what is remarkable about it.
fn what_happened(record: &RequestRecord) -> String {
    let by = match record.answered_by() {
        by if by.is_empty() => "-".to_owned(),
        by => plain(&by),
    };
    let (duration, cost) = (short(record.duration_ms), usd(record.cost_usd, record.cost_unknown));
    format!("{by:<36}  {duration:>7}  {cost:>9}  {}", record.badges().join(" ")).trim_end().to_owned()
}

/// `1024x1024`, or with their number where there are several; what was asked for where nothing was made.
fn made(record: &RequestRecord) -> String {
    let Some(first) = record.images_made.first().filter(|image| image.width > 0) else {
        let size = record.asked.as_ref().and_then(|asked| asked.size);
        return size.map_or_else(|| "-".to_owned(), |size| size.text());
    };
    let size = format!("{}x{}", first.width, first.height);
    if record.images > 1 { format!("{} of {size}", record.images) } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{CacheStatus, LoggedImage};

    fn record() -> RequestRecord {
        RequestRecord {
            id: "id-1".into(),
            created_unix_ms: 1_795_780_800_000,
            duration_ms: 1234,
            status: 200,
            outcome: "ok".into(),
            provider: "openai".into(),
            model: "dall-e-3".into(),
            cost_usd: Some(0.04),
            fallback: true,
            calls: 3,
            cache_status: CacheStatus::Miss.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_line_tells_what_happened() {
        let words = of_log(&record());
        let words: Vec<&str> = words.split_whitespace().collect();
        let expected = [
            "2026-11-27",
            "12:00:00Z",
            "id-1",
            "200",
            "openai/dall-e-3",
            "1.2s",
            "$0.0400",
            "fallback",
            "calls:3",
            "cache:miss",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn a_request_that_reached_nobody_has_a_line_too() {
        let record = RequestRecord { status: 400, cost_usd: Some(0.0), ..Default::default() };
        assert!(of_log(&record).contains("  400  -  "));
    }

    #[test]
    fn a_line_at_the_end_tells_what_was_made() {
        let image = LoggedImage { width: 1024, height: 768, ..Default::default() };
        let made = RequestRecord {
            operation: Operation::Generate.into(),
            images: 2,
            images_made: vec![image.clone(), image],
            ..record()
        };
        let line = as_it_ends(&made, "200");
        let begins = "12:00:01Z  200  generate   2 of 1024x768  openai/dall-e-3  ";
        assert!(line.starts_with(begins) && line.ends_with("$0.0400  fallback calls:3 cache:miss"), "{line}");
    }

    #[test]
    fn a_line_at_the_end_tells_why_nothing_was_made() {
        let refused = RequestRecord {
            status: 404,
            cost_usd: Some(0.0),
            error_message: "config \"x\" does\nnot exist".into(),
            ..Default::default()
        };
        let line = as_it_ends(&refused, "404");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1..7], ["404", "-", "-", "-", "0ms", "$0.0000"]);
        assert!(line.ends_with("  config \"x\" does not exist"), "{line}");
    }
}
