//! Logs: how they look, how much is said.

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For a person.
    #[default]
    Text,
    /// For a query.
    Json,
}

/// Starts logging to standard error. `RUST_LOG` says how much, and `level` where that says nothing.
pub fn init_logs(format: LogFormat, level: &str) {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    if !filter.to_string().contains("sqlx") {
        // What the store's driver says of an outage is said by us, once; so is what a database says through it, whose
        // target is `sqlx::postgres::notice`.
        filter = filter.add_directive("sqlx=off".parse().expect("it is a directive"));
    }
    // It tells each try of its own, with the address of an object, which nobody else shall know.
    filter = filter.add_directive("object_store=warn".parse().expect("it is a directive"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, in tests, leaves the first one's logger in place.
    _ = match format {
        LogFormat::Text => logs.with_target(false).try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
}
