//! `imagegate check`: everything that is wrong with a file, at once.

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;

use crate::{config::Origin, gateway};

/// Validate a configuration file and all routing configs in it.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Configuration file
    file: PathBuf,
}

impl Check {
    /// Says what the file holds, or fails with all problems.
    pub fn run(self) -> Result<()> {
        let settings = Origin::File(self.file.clone()).read(&gateway::built_in())?;
        // What it would not start with.
        settings.check_exposure(settings.listen).map_err(anyhow::Error::msg)?;
        writeln!(
            std::io::stdout(),
            "{}: valid: {} configs, {} virtual keys, {} API keys, {} issuers, {} remote workers",
            self.file.display(),
            settings.configs.len(),
            settings.virtual_keys.len(),
            settings.callers.len(),
            settings.callers.issuers.len(),
            settings.workers.len(),
        )?;
        Ok(())
    }
}
