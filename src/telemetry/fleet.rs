//! Other processes: endpoints, certificates, Redis.

use metrics::{counter, gauge};
use tracing::{debug, error, info, warn};

use super::Metric;

const ENDPOINTS: &str = "imagegate_endpoints";
const ENDPOINT_EJECTIONS: &str = "imagegate_endpoint_ejections_total";
const CERTIFICATE_EXPIRES: &str = "imagegate_tls_certificate_expiry_timestamp_seconds";
const TLS_REFUSALS: &str = "imagegate_tls_refusals_total";
const REDIS_UP: &str = "imagegate_redis_up";
const REDIS_ERRORS: &str = "imagegate_redis_errors_total";

/// What there is.
pub(super) const METRICS: &[Metric] = &[
    Metric::gauge(ENDPOINTS, "Endpoints of the processes behind this one, by service and state."),
    Metric::counter(ENDPOINT_EJECTIONS, "Endpoints that were left alone for a while, by service."),
    Metric::gauge(CERTIFICATE_EXPIRES, "When this process's certificate ends."),
    Metric::counter(TLS_REFUSALS, "Connections whose TLS handshake failed, by reason."),
    Metric::gauge(REDIS_UP, "Whether Redis answers in time: 1 or 0."),
    Metric::counter(REDIS_ERRORS, "What was asked of Redis in vain, by operation."),
];

/// Notes how many endpoints of a service stand so, more than before.
pub fn endpoints(service: &str, state: &'static str, more: f64) {
    gauge!(ENDPOINTS, "service" => service.to_owned(), "state" => state).increment(more);
}

/// Notes that an endpoint is left alone for a while.
pub fn endpoint_ejected(service: &str, endpoint: &str, reason: &str) {
    counter!(ENDPOINT_EJECTIONS, "service" => service.to_owned()).increment(1);
    warn!(service, endpoint, reason, "endpoint ejected");
}

/// Notes that an endpoint cannot be connected to.
pub fn endpoint_unreachable(service: &str, endpoint: &str, reason: &str) {
    warn!(service, endpoint, reason, "endpoint unreachable");
}

/// Notes that an endpoint was found, left, or is back.
pub fn endpoint_changed(service: &str, endpoint: &str, what: &'static str) {
    info!(service, endpoint, "{what}");
}

/// Notes that a service's name stands for nothing now.
pub fn name_unresolved(service: &str, host: &str, reason: &str) {
    warn!(service, host, reason, "name not resolved; what is known of it stays in use");
}

/// Notes new certificates.
pub fn certificate_reloaded() {
    info!("certificate reloaded");
}

/// Notes certificates that cannot be used.
pub fn certificate_refused(reason: &str) {
    error!(reason, "certificate refused; the old one stays in force");
}

/// Notes when our certificate ends, in seconds since 1970.
pub fn certificate_expires(at: i64) {
    gauge!(CERTIFICATE_EXPIRES).set(at as f64);
}

/// Notes a connection that was not accepted.
pub fn handshake_refused(peer: &str, kind: &'static str, reason: &str) {
    counter!(TLS_REFUSALS, "reason" => kind).increment(1);
    warn!(peer, reason, "TLS handshake refused");
}

/// Notes something asked of Redis in vain.
pub fn redis_failed(operation: &'static str, reason: &str) {
    counter!(REDIS_ERRORS, "operation" => operation).increment(1);
    debug!(operation, reason, "redis");
}

/// Notes that Redis does not answer any more.
pub fn redis_away(reason: &str) {
    warn!(reason, "redis is away: what routers share is each router's own until it is back");
}

/// Notes that Redis answers again.
pub fn redis_back() {
    info!("redis is back");
}

/// Notes that Redis answers and does not write.
pub fn redis_refuses(reason: &str) {
    warn!(reason, "redis refuses to write: what routers make from now on is each router's own");
}

/// Notes that Redis writes again.
pub fn redis_writes_again() {
    info!("redis writes again");
}

/// Notes whether Redis answers.
pub fn redis_up(is_up: bool) {
    gauge!(REDIS_UP).set(if is_up { 1.0 } else { 0.0 });
}
