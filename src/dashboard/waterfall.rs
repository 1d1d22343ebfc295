//! Where the time of a request went, drawn.

use maud::{Markup, html};

use crate::{
    cli::times::short,
    pb::{Attempt, RequestRecord, Timings},
};

/// As wide as the drawing is, whatever it is shown as.
const WIDTH: f64 = 1000.0;

/// What is still to be seen.
const NARROWEST: f64 = 3.0;

/// Every attempt under the other, on one scale of time.
pub fn draw(record: &RequestRecord) -> Markup {
    let attempts = record.report.as_ref().map_or(&[][..], |report| &report.attempts);
    let ends = attempts.iter().map(|attempt| attempt.started_ms + attempt.duration_ms);
    let total = ends.chain([record.duration_ms, 1]).max().unwrap_or(1);
    html! {
        table class="waterfall" {
            caption { "Attempts, in the order in which they began" }
            thead {
                tr {
                    th scope="col" { "Target" }
                    th scope="col" { "Outcome" }
                    th scope="col" { "Billing" }
                    th scope="col" class="number" { "Began" }
                    th scope="col" class="number" { "Took" }
                    th scope="col" class="time" { "0 to " (short(total)) }
                }
            }
            tbody {
                @for attempt in attempts { (row(attempt, total)) }
            }
        }
    }
}

fn row(attempt: &Attempt, total: u64) -> Markup {
    let kind = match attempt.outcome.as_str() {
        "ok" => "good",
        _ if !attempt.is_call() => "skipped",
        _ => "bad",
    };
    let (begin, width) = (attempt.started_ms, attempt.duration_ms);
    html! {
        tr class=(kind) {
            th scope="row" {
                (attempt.provider) " " span class="faint" { (attempt.model) }
                div class="faint" { code { (attempt.target) } }
            }
            td {
                span class={ "status " (kind) } {
                    (attempt.outcome)
                    @if attempt.status > 0 { " " (attempt.status) }
                    @if !attempt.reason.is_empty() { ": " (attempt.reason) }
                }
                @if !attempt.message.is_empty() { div class="message" { (attempt.message) } }
                @if !attempt.upstream_request_id.is_empty() {
                    div class="faint" { "provider's id " code { (attempt.upstream_request_id) } }
                }
            }
            td { @if attempt.is_call() { (attempt.billing().name()) } }
            td class="number" { (short(begin)) }
            td class="number" { @if attempt.is_call() { (short(width)) } }
            td class="time" { (bars(&[(kind, begin as f64, width as f64)], total as f64)) }
        }
    }
}

/// The phases of a request, one after the other.
pub fn phases(timings: &Timings) -> Markup {
    let phases = [
        ("routing", timings.routing_us),
        ("cache", timings.cache_us),
        ("waiting", timings.waiting_us),
        ("upstream", timings.upstream_us),
        ("verifying", timings.verifying_us),
        ("the rest", timings.rest_us()),
    ];
    let mut begin = 0;
    let parts: Vec<(&str, f64, f64)> = phases
        .iter()
        .map(|(name, micros)| {
            let part = (*name, begin as f64, *micros as f64);
            begin += micros;
            part
        })
        .collect();
    html! {
        (bars(&parts, timings.total_us.max(1) as f64))
        ul class="legend" {
            @for (name, micros) in phases.iter().filter(|(_, micros)| *micros > 0) {
                li { span class={ "key " (name.replace(' ', "-")) } {} (name) " " (micros_text(*micros)) }
            }
        }
    }
}

fn micros_text(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros}µs"),
        1000..100_000 => format!("{:.1}ms", micros as f64 / 1000.0),
        _ => short(micros / 1000),
    }
}

/// Bars beside each other: each with its kind, where it begins and how wide it is.
pub fn bars(parts: &[(&str, f64, f64)], total: f64) -> Markup {
    html! {
        svg class="bars" viewBox={ "0 0 " (WIDTH) " 16" } preserveAspectRatio="none" aria-hidden="true" {
            @for (kind, begin, width) in parts.iter().filter(|(_, _, width)| *width >= 0.0) {
                @let width = (width / total * WIDTH).max(NARROWEST);
                @let x = (begin / total * WIDTH).min(WIDTH - width);
                rect class=(kind.replace(' ', "-")) x=(format!("{x:.1}")) y="2" width=(format!("{width:.1}")) height="12" rx="2" {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_stands_where_its_time_was() {
        let drawn = bars(&[("bad", 0.0, 250.0), ("good", 250.0, 750.0), ("skipped", 1000.0, 0.0)], 1000.0).0;
        assert!(drawn.contains(r#"<rect class="bad" x="0.0" y="2" width="250.0""#), "{drawn}");
        assert!(drawn.contains(r#"<rect class="good" x="250.0" y="2" width="750.0""#), "{drawn}");
        assert!(drawn.contains(r#"<rect class="skipped" x="997.0" y="2" width="3.0""#), "{drawn}");
    }

    #[test]
    fn an_attempt_tells_what_became_of_it() {
        let attempt = |outcome: &str, reason: &str, duration_ms| Attempt {
            outcome: outcome.into(),
            reason: reason.into(),
            provider: "openai".into(),
            duration_ms,
            ..Default::default()
        };
        let report = crate::pb::RouteReport {
            attempts: vec![
                attempt("skipped", "breaker_open", 0),
                attempt("rate_limited", "", 12),
                attempt("ok", "", 1500),
            ],
            ..Default::default()
        };
        let record = RequestRecord { report: Some(report), duration_ms: 1520, ..Default::default() };
        let drawn = draw(&record).0;
        for piece in ["breaker_open", "rate_limited", "1.5s", "0 to 1.5s"] {
            assert!(drawn.contains(piece), "{piece}: {drawn}");
        }
    }
}
