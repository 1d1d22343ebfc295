//! What is remembered: the store, the request log, the place of images.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{debug, error, info, warn};

use super::Metric;

const STORE_ERRORS: &str = "imagegate_store_errors_total";
const STORE_UP: &str = "imagegate_store_up";
const LOG_WRITTEN: &str = "imagegate_request_log_written_total";
const LOG_WRITE_SECONDS: &str = "imagegate_request_log_write_duration_seconds";
const LOG_RECOVERED: &str = "imagegate_request_log_recovered_total";
const LOG_LOST: &str = "imagegate_request_log_lost_total";
const DIGESTS_SKIPPED: &str = "imagegate_request_log_digests_skipped_total";
const LOGGED_IMAGES_LOST: &str = "imagegate_request_log_images_lost_total";
const REFUSALS_NOT_LOGGED: &str = "imagegate_refused_requests_not_logged_total";
const IMAGES_UP: &str = "imagegate_images_up";
const IMAGES_ERRORS: &str = "imagegate_images_errors_total";

/// What there is.
pub(super) const METRICS: &[Metric] = &[
    Metric::counter(STORE_ERRORS, "What was asked of the store in vain."),
    Metric::gauge(STORE_UP, "Whether the store answers and takes what is written: 1 or 0."),
    Metric::counter(LOG_WRITTEN, "Requests that were written to the request log."),
    Metric::histogram(LOG_WRITE_SECONDS, "Time of writing one batch to the request log."),
    Metric::counter(LOG_RECOVERED, "Requests that a process left unwritten and a later one took over."),
    Metric::counter(LOG_LOST, "Requests that are missing in the request log, by reason."),
    Metric::counter(DIGESTS_SKIPPED, "Images that the request log has no digest of: too many came at once."),
    Metric::counter(LOGGED_IMAGES_LOST, "Images that the request log should have kept, by reason."),
    Metric::counter(
        REFUSALS_NOT_LOGGED,
        "Requests refused before their route was known that the request log had no room for.",
    ),
    Metric::gauge(IMAGES_UP, "Whether the folder or bucket of images takes them: 1 or 0."),
    Metric::counter(IMAGES_ERRORS, "What was asked of the folder or bucket of images in vain, by operation."),
];

/// Notes what was asked of the store in vain.
pub fn store_failed(reason: &str) {
    counter!(STORE_ERRORS).increment(1);
    debug!(reason, "the store failed");
}

/// How the store stands, from the best to the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreState {
    /// Nothing is wrong.
    #[default]
    Well,
    /// It takes seconds.
    Slow,
    /// It answers, and takes nothing that is written.
    Unwritten,
    /// It does not answer.
    Away,
}

/// Notes whether the store answers and takes what is written.
pub fn store_up(up: bool) {
    gauge!(STORE_UP).set(if up { 1.0 } else { 0.0 });
}

/// Says once how the store stands now. `reason` is its own, if it has one.
pub fn store_changed(state: StoreState, reason: &str) {
    match state {
        StoreState::Well => info!("the store is well again"),
        StoreState::Slow => {
            warn!("the store is slow: requests do not wait for it, whoever manages something does");
        }
        StoreState::Unwritten => error!(
            reason,
            "the store takes nothing that is written: requests go on and wait for the log, nothing can be saved"
        ),
        StoreState::Away => {
            error!(reason, "the store is away: requests go on with what is known, nothing can be managed");
        }
    }
}

/// Notes requests that were written to the log.
pub fn log_written(requests: usize, took: Duration) {
    counter!(LOG_WRITTEN).increment(requests as u64);
    histogram!(LOG_WRITE_SECONDS).record(took.as_secs_f64());
}

/// Notes requests that will be missing in the log.
pub fn log_lost(reason: &'static str, requests: usize) {
    counter!(LOG_LOST, "reason" => reason).increment(requests as u64);
    debug!(reason, requests, "requests are missing in the log");
}

/// Notes images that the log will have no digest of.
pub fn digests_skipped(images: usize) {
    counter!(DIGESTS_SKIPPED).increment(images as u64);
}

/// Notes images that the log should have kept.
pub fn logged_images_lost(reason: &'static str, images: usize) {
    counter!(LOGGED_IMAGES_LOST, "reason" => reason).increment(images as u64);
    debug!(reason, images, "images are missing in the log");
}

/// Notes a refused request that is not kept because there are so many.
pub fn refusal_not_logged() {
    counter!(REFUSALS_NOT_LOGGED).increment(1);
}

/// Notes requests that an earlier process left unwritten: those that are whole, and those that are not.
pub fn log_found(requests: usize, torn: usize) {
    counter!(LOG_RECOVERED).increment(requests as u64);
    counter!(LOG_LOST, "reason" => "crash").increment(torn as u64);
    if requests + torn > 0 {
        info!(requests, torn, "a process ended before it had written its request log; this one does");
    }
}

/// Says that requests wait in files for the next start.
pub fn log_left(requests: usize) {
    warn!(
        requests,
        "the store did not take the end of the request log: it waits in data_dir for the next start"
    );
}

/// Says that what waits to be written is in memory only.
pub fn log_unprotected(reason: &str) {
    warn!(
        reason,
        "data_dir/journal cannot be used: a process that is killed loses what waits for the request log"
    );
}

/// Notes what was asked of the place of images in vain.
pub fn images_failed(operation: &'static str, reason: &str) {
    counter!(IMAGES_ERRORS, "operation" => operation).increment(1);
    debug!(operation, reason, "the place of images failed");
}

/// Notes whether the place of images does what it is asked for.
pub fn images_up(up: bool) {
    gauge!(IMAGES_UP).set(if up { 1.0 } else { 0.0 });
}

/// Says once that images cannot be kept.
pub fn images_away(reason: &str) {
    error!(
        reason,
        "the place of images is away: images asked for as url fail, all others go on; the request log keeps none"
    );
}

/// Says once that images are kept again.
pub fn images_back() {
    info!("the place of images is there again");
}
