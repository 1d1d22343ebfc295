//! Logs: how they look, how much is said.

mod gathered;
mod json;

use tracing_subscriber::EnvFilter;

use self::{gathered::Gathered, json::Json};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For a person.
    #[default]
    Text,
    /// For a query.
    Json,
}

/// The process's log. Dropped, it writes what is not written yet.
#[derive(Debug)]
pub struct Logs(Option<Gathered>);

/// Starts logging to standard error. `RUST_LOG` says how much, and `level` where that says nothing. JSON leaves a hundredth
/// of a second later, with all lines since: what is written line by line costs a process a sixth of a small request, and
/// stops it when nobody reads.
pub fn init_logs(format: LogFormat, level: &str) -> Logs {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    if !filter.to_string().contains("sqlx") {
        // What the store's driver says of an outage is said by us, once; so is what a database says through it, whose
        // target is `sqlx::postgres::notice`.
        filter = filter.add_directive("sqlx=off".parse().expect("it is a directive"));
    }
    // It tells each try of its own, with the address of an object, which nobody else shall know.
    filter = filter.add_directive("object_store=warn".parse().expect("it is a directive"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    // A second call, in tests, leaves the first one's logger in place.
    match format {
        LogFormat::Text => {
            _ = logs.with_writer(std::io::stderr).with_target(false).try_init();
            Logs(None)
        }
        LogFormat::Json => {
            let gathered = Gathered::start(std::io::stderr());
            _ = logs.event_format(Json).with_writer(gathered.clone()).try_init();
            Logs(Some(gathered))
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if let Some(gathered) = &self.0 {
            gathered.finish();
        }
    }
}
