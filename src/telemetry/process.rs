//! This process: its version, its configuration, its runtime. Memory, CPU and files are counted by `metrics-process`,
//! under the names that all Prometheus clients have.

use metrics::{counter, gauge};
use tokio::runtime::Handle;

use super::Metric;

const BUILD_INFO: &str = "imagegate_build_info";
const CONFIG_RELOADS: &str = "imagegate_config_reloads_total";
const RUNTIME_WORKERS: &str = "imagegate_runtime_workers";
const RUNTIME_TASKS: &str = "imagegate_runtime_alive_tasks";
const RUNTIME_QUEUE: &str = "imagegate_runtime_global_queue_depth";

/// What there is.
pub(super) const METRICS: &[Metric] = &[
    Metric::gauge(BUILD_INFO, "1, with the version that runs."),
    Metric::counter(CONFIG_RELOADS, "Configuration changes seen, by outcome."),
    Metric::gauge(RUNTIME_WORKERS, "Threads that tasks run on."),
    Metric::gauge(RUNTIME_TASKS, "Tasks that have begun and not ended."),
    Metric::gauge(RUNTIME_QUEUE, "Tasks that wait for any thread: more than a few for long are too many."),
];

/// The process begins.
pub(super) fn begins() {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// How the runtime stands now.
pub(super) fn look() {
    let runtime = Handle::current().metrics();
    gauge!(RUNTIME_WORKERS).set(runtime.num_workers() as f64);
    gauge!(RUNTIME_TASKS).set(runtime.num_alive_tasks() as f64);
    gauge!(RUNTIME_QUEUE).set(runtime.global_queue_depth() as f64);
}

/// Counters of what has not happened yet, see [`super::router_begins`].
pub(super) fn no_reload_yet() {
    for outcome in ["ok", "rejected"] {
        counter!(CONFIG_RELOADS, "outcome" => outcome).increment(0);
    }
}

/// Notes that the configuration was read again.
pub fn config_reload(ok: bool) {
    counter!(CONFIG_RELOADS, "outcome" => if ok { "ok" } else { "rejected" }).increment(1);
}
