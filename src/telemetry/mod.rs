//! Logs and metrics: set-up, and the only list of their names.
//!
//! One `info` line per finished request, each attempt at `debug`. Prompts, images and keys are never passed
//! to anything in here.

mod callers;
mod fleet;
mod in_flight;
mod logs;
mod process;
mod requests;
mod routing;
mod store;

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

pub use self::{callers::*, fleet::*, in_flight::*, logs::*, process::*, requests::*, routing::*, store::*};

/// Seconds: an image takes from one second to several minutes.
const BUCKETS: &[f64] =
    &[0.01, 0.05, 0.25, 1.0, 2.5, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36];

/// Starts counting. The handle renders the Prometheus text.
///
/// # Errors
/// If something counts in this process already.
pub fn init_metrics() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| error.to_string())?;
    for describe in [
        callers::describe,
        fleet::describe,
        in_flight::describe,
        process::describe,
        requests::describe,
        routing::describe,
        store::describe,
    ] {
        describe();
    }
    Ok(handle)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
