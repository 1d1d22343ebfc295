//! Logs and metrics: set-up, and the only list of their names.
//!
//! One `info` line per finished request, each attempt at `debug`. Prompts, images and keys are never passed
//! to anything in here. docs/metrics.md has every metric.

mod callers;
mod fleet;
mod in_flight;
mod labels;
mod logs;
mod otlp;
mod process;
mod requests;
mod routing;
mod store;
pub mod watch;

use std::{collections::HashSet, fmt::Write as _, time::Duration};

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use self::{
    callers::*,
    fleet::*,
    in_flight::*,
    labels::{know_budgets, know_provider},
    logs::*,
    otlp::*,
    process::*,
    requests::*,
    routing::*,
    store::*,
};

/// Seconds: an image takes from one second to several minutes.
const BUCKETS: &[f64] =
    &[0.01, 0.05, 0.25, 1.0, 2.5, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36];

/// What is counted, by theme.
const METRICS: &[&[Metric]] = &[
    callers::METRICS,
    fleet::METRICS,
    in_flight::METRICS,
    otlp::METRICS,
    process::METRICS,
    requests::METRICS,
    routing::METRICS,
    store::METRICS,
];

/// Something that is counted, as scrapers are told of it.
#[derive(Clone, Copy, Debug)]
struct Metric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What this process has counted.
pub struct Metrics {
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    looks: Vec<Look>,
}

/// Counts what is only counted when somebody asks.
type Look = Box<dyn Fn() + Send + Sync>;

/// Starts counting.
///
/// # Errors
/// If something counts in this process already.
pub fn init_metrics() -> Result<Metrics, String> {
    let handle = install().map_err(|error| error.to_string())?;
    for Metric { name, kind, help } in METRICS.iter().copied().flatten().copied() {
        match kind {
            Kind::Counter => describe_counter!(name, help),
            Kind::Gauge => describe_gauge!(name, help),
            Kind::Histogram => describe_histogram!(name, help),
        }
    }
    let process = metrics_process::Collector::default();
    process.describe();
    process::begins();
    Ok(Metrics { handle, process, looks: Vec::new() })
}

fn install() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(requests::PHASE_SECONDS.into()), requests::PHASE_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), BUCKETS)?
        .install_recorder()
}

impl Metrics {
    /// The same with something that is only counted when somebody asks.
    #[must_use]
    pub fn looking(mut self, look: impl Fn() + Send + Sync + 'static) -> Self {
        self.looks.push(Box::new(look));
        self
    }

    /// The Prometheus text. Inside a runtime, whose figures are among it.
    pub fn render(&self) -> String {
        self.tidy();
        self.process.collect();
        process::look();
        self.looks.iter().for_each(|look| look());
        with_those_to_come(self.handle.render())
    }

    /// Histograms keep every sample until somebody does this.
    pub fn tidy(&self) {
        self.handle.run_upkeep();
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metric {
    const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help }
    }

    const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help }
    }

    const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Histogram, help }
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A text with the metrics of which nothing has been counted yet: whoever reads it sees all that there are.
fn with_those_to_come(mut text: String) -> String {
    let there: HashSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .map(str::to_owned)
        .collect();
    for Metric { name, kind, help } in METRICS.iter().copied().flatten() {
        if !there.contains(*name) {
            _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {}\n\n", kind.name());
        }
    }
    text
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
