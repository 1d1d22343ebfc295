//! This process: its configuration.

use metrics::{counter, describe_counter};

const CONFIG_RELOADS: &str = "imagegate_config_reloads_total";

/// Says what each metric is.
pub(super) fn describe() {
    describe_counter!(CONFIG_RELOADS, "Configuration changes seen, by outcome.");
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
