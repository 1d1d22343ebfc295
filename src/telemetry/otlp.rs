//! What becomes of spans and OTLP metrics.

use metrics::{counter, gauge};
use tracing::{info, warn};

use super::Metric;

const OTLP_UP: &str = "imagegate_otlp_up";
const SPANS_SENT: &str = "imagegate_otlp_spans_sent_total";
const SPANS_LOST: &str = "imagegate_otlp_spans_lost_total";

pub(super) const METRICS: &[Metric] = &[
    Metric::gauge(OTLP_UP, "Whether the OTLP collector answers: 1 or 0."),
    Metric::counter(SPANS_SENT, "Spans that the OTLP collector has taken."),
    Metric::counter(SPANS_LOST, "Spans that the OTLP collector will not have, by reason."),
];

/// What is sent by OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpSignal {
    /// Spans.
    Traces,
    /// What is measured of calls.
    Metrics,
}

impl OtlpSignal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Traces, Self::Metrics];

    fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

/// Notes spans that the collector has taken.
pub fn otlp_spans_sent(spans: usize) {
    counter!(SPANS_SENT).increment(spans as u64);
}

/// Notes spans that the collector will not have.
pub fn otlp_spans_lost(reason: &'static str, spans: usize) {
    if spans > 0 {
        counter!(SPANS_LOST, "reason" => reason).increment(spans as u64);
    }
}

/// Notes whether the collector answers.
pub fn otlp_up(is_up: bool) {
    gauge!(OTLP_UP).set(if is_up { 1.0 } else { 0.0 });
}

/// Says once that the collector does not answer any more.
pub fn otlp_away(reason: &str) {
    warn!(reason, "the OTLP collector is away: spans wait for it, and are lost when too many do");
}

/// Says once that the collector answers again.
pub fn otlp_back() {
    info!("the OTLP collector is back");
}

/// Says once that the collector answers and does not take what it is sent.
pub fn otlp_refused(signal: OtlpSignal, reason: &str) {
    warn!(signal = signal.name(), reason, "the OTLP collector does not take what it is sent: it is lost");
}

/// Says once that the collector takes it again.
pub fn otlp_taken_again(signal: OtlpSignal) {
    info!(signal = signal.name(), "the OTLP collector takes what it is sent again");
}
