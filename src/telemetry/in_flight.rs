//! What this process is working on, and the bytes that it holds for it.

use metrics::{counter, gauge};

use super::{Metric, process};

const IN_FLIGHT: &str = "imagegate_requests_in_flight";
const HTTP_IN_FLIGHT: &str = "imagegate_http_requests_in_flight";
const CALLS_IN_FLIGHT: &str = "imagegate_worker_calls_in_flight";
const CALLS: &str = "imagegate_worker_calls_total";
const BYTES_IN_FLIGHT: &str = "imagegate_bytes_in_flight";
const OVERLOADED: &str = "imagegate_overloaded_total";

/// What there is.
pub(super) const METRICS: &[Metric] = &[
    Metric::gauge(IN_FLIGHT, "Requests being worked on."),
    Metric::gauge(HTTP_IN_FLIGHT, "HTTP requests being worked on."),
    Metric::gauge(CALLS_IN_FLIGHT, "Calls that this worker is working on."),
    Metric::counter(CALLS, "Calls that this worker has begun."),
    Metric::gauge(
        BYTES_IN_FLIGHT,
        "Bytes of requests and answers that this process holds now, but for what is kept.",
    ),
    Metric::counter(OVERLOADED, "Requests that were told to come again because there was no room for them."),
];

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

/// So many bytes of requests and answers are held now.
pub fn bytes_in_flight(held: usize) {
    gauge!(BYTES_IN_FLIGHT).set(held as f64);
}

/// A request found no room.
pub fn overloaded() {
    counter!(OVERLOADED).increment(1);
}
