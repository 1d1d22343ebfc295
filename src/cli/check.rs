//! `imagegate check`: everything that is wrong with a file, at once.

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;
use serde_json::json;

use super::json;
use crate::{
    config::{Origin, Problem, Rejected},
    gateway,
};

/// Validate a configuration file and all routing configs in it.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Configuration file
    file: PathBuf,

    /// For programs: an error has every problem with path, line and column
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Says what the file holds, or fails with all problems.
    pub fn run(self) -> Result<()> {
        let settings = Origin::File(self.file.clone()).read(&gateway::built_in())?;
        let name = self.file.display().to_string();
        // What it would not start with.
        settings
            .check_exposure(settings.listen)
            .map_err(|reason| Rejected { name: name.clone(), problems: vec![Problem::new("", reason)] })?;
        let counts = [
            ("configs", settings.configs.len()),
            ("virtual_keys", settings.virtual_keys.len()),
            ("api_keys", settings.callers.len()),
            ("issuers", settings.callers.issuers.len()),
            ("remote_workers", settings.workers.len()),
        ];
        if self.json {
            let mut document = json!({"file": name, "valid": true});
            for (what, count) in counts {
                document[what] = count.into();
            }
            return json::print(&document);
        }
        let counts =
            counts.map(|(what, count)| format!("{count} {}", what.replace('_', " ").replace("api", "API")));
        writeln!(std::io::stdout(), "{name}: valid: {}", counts.join(", "))?;
        Ok(())
    }
}
