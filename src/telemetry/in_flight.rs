//! What this process is working on.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::process;

const IN_FLIGHT: &str = "imagegate_requests_in_flight";
const HTTP_IN_FLIGHT: &str = "imagegate_http_requests_in_flight";
const CALLS_IN_FLIGHT: &str = "imagegate_worker_calls_in_flight";
const CALLS: &str = "imagegate_worker_calls_total";

/// Says what each metric is.
pub(super) fn describe() {
    describe_gauge!(IN_FLIGHT, "Requests being worked on.");
    describe_gauge!(HTTP_IN_FLIGHT, "HTTP requests being worked on.");
    describe_gauge!(CALLS_IN_FLIGHT, "Calls that this worker is working on.");
    describe_counter!(CALLS, "Calls that this worker has begun.");
}

/// A role begins: what it counts is there from the beginning, as autoscalers take what is not there for unknown.
pub fn router_begins() {
    gauge!(IN_FLIGHT).increment(0.0);
    process::no_reload_yet();
}

/// A role begins, see [`router_begins`].
pub fn shim_begins() {
    gauge!(HTTP_IN_FLIGHT).increment(0.0);
}

/// A role begins, see [`router_begins`].
pub fn worker_begins() {
    gauge!(CALLS_IN_FLIGHT).increment(0.0);
    counter!(CALLS).increment(0);
}

/// A request begins.
pub fn request_begins() {
    gauge!(IN_FLIGHT).increment(1.0);
}

/// A request is over.
pub(super) fn request_is_over() {
    gauge!(IN_FLIGHT).decrement(1.0);
}

/// HTTP requests more, or less, are being worked on.
pub fn http_in_flight(more: f64) {
    gauge!(HTTP_IN_FLIGHT).increment(more);
}

/// A call to this worker begins.
pub fn call_begins() {
    counter!(CALLS).increment(1);
    gauge!(CALLS_IN_FLIGHT).increment(1.0);
}

/// A call to this worker ends.
pub fn call_ends() {
    gauge!(CALLS_IN_FLIGHT).decrement(1.0);
}
