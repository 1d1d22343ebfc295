//! An outcome as text for people.

use std::fmt::{self, Display, Formatter};

use super::{LeftOver, Outcome, figures::Figures};

/// Columns of the timeline.
const COLUMNS: usize = 60;

const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        requests(&self.figures, f)?;
        calls(&self.figures, f)?;
        money(&self.figures, f)?;
        breakers(self, f)?;
        timeline("answers in time", &self.goodput_per_second(), f)?;
        timeline("calls begun", &self.calls_per_second(), f)?;
        line(f, "trace hash", &self.trace_hash)
    }
}

fn line(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{name:<16} {value}")
}

fn requests(figures: &Figures, f: &mut Formatter<'_>) -> fmt::Result {
    line(f, "requests", figures.requests)?;
    line(f, "success rate", format!("{:.3} %", 100.0 * figures.success_rate))?;
    if figures.intents != figures.requests {
        let Figures { intents, intents_answered, .. } = figures;
        line(f, "pictures wanted", format!("{intents}, got {intents_answered}"))?;
    }
    for ((kind, status), count) in &figures.errors {
        line(f, "  error", format!("{count} {kind} {status}"))?;
    }
    for (name, count) in [("  caller left", figures.left), ("  never ended", figures.hung)] {
        if count > 0 {
            line(f, name, count)?;
        }
    }
    let seconds = |duration: std::time::Duration| format!("{:.2}", duration.as_secs_f64());
    let latency = figures.latency;
    let [p50, p90, p99, max] = [latency.p50, latency.p90, latency.p99, latency.max].map(seconds);
    line(f, "latency in s", format!("p50 {p50}, p90 {p90}, p99 {p99}, max {max}"))?;
    line(f, "past deadline", format!("{} ms at worst", figures.worst_overshoot.as_millis()))
}

fn calls(figures: &Figures, f: &mut Formatter<'_>) -> fmt::Result {
    let Figures { calls, amplification, skipped, hedged, hedges_won, rescued, .. } = figures;
    line(f, "provider calls", format!("{calls}, {amplification:.3} per request; {skipped} targets skipped"))?;
    for ((provider, model), counts) in &figures.calls_by_target {
        let text = format!(
            "{provider} {model}: {} calls, {} answered, {} failed, {} turned away, {} given up",
            counts.all, counts.answered, counts.failed, counts.turned_away, counts.cancelled
        );
        line(f, "", text)?;
    }
    line(f, "rescued", format!("{rescued} requests answered by another than their first call"))?;
    line(f, "hedged", format!("{hedged} requests, {hedges_won} of them answered by the later call"))
}

fn money(figures: &Figures, f: &mut Formatter<'_>) -> fmt::Result {
    let Figures { cost_usd, possible_cost_usd, duplicate_usd, reported_usd, .. } = figures;
    let cost =
        format!("{cost_usd:.2}, perhaps {possible_cost_usd:.2} more; the router reports {reported_usd:.2}");
    line(f, "cost in USD", cost)?;
    line(f, "duplicate in USD", format!("{duplicate_usd:.2} billed, or perhaps billed, for nothing"))
}

fn breakers(outcome: &Outcome, f: &mut Formatter<'_>) -> fmt::Result {
    let (changes, most) = (outcome.breaker_changes.len(), outcome.breaker_changes_per_minute());
    line(f, "breakers", format!("opened or closed {changes} times, {most} within a minute at most"))?;
    if outcome.left_over != LeftOver::default() {
        line(f, "left over", format!("{:?}, a defect", outcome.left_over))?;
    }
    Ok(())
}

/// One bar for every so many seconds.
fn timeline(name: &str, per_second: &[usize], f: &mut Formatter<'_>) -> fmt::Result {
    let width = per_second.len().div_ceil(COLUMNS).max(1);
    let sums: Vec<usize> = per_second.chunks(width).map(|chunk| chunk.iter().sum()).collect();
    let highest = sums.iter().copied().max().unwrap_or_default().max(1);
    let bars: String = sums.iter().map(|sum| BARS[(sum * (BARS.len() - 1)).div_ceil(highest)]).collect();
    let rate = highest as f64 / width as f64;
    line(f, name, format!("|{bars}| {width} s each, full height {rate:.1} per s"))
}
