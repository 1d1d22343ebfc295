//! `imagegate man`: the help texts as manual pages.

use std::{
    io::{Write as _, stdout},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use super::Cli;

/// Print the manual page, or write one for every command
#[derive(Debug, clap::Args)]
pub struct Man {
    /// Write a page for every command into this folder instead: imagegate.1, imagegate-generate.1 and so on
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

impl Man {
    /// Prints or writes.
    pub fn run(&self) -> Result<()> {
        let Some(folder) = &self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            return Ok(stdout().write_all(&page)?);
        };
        let not_written = || format!("--dir: {} cannot be written", folder.display());
        std::fs::create_dir_all(folder).with_context(not_written)?;
        clap_mangen::generate_to(Cli::command(), folder).with_context(not_written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        Man { dir: Some(folder.path().join("man1")) }.run().unwrap();
        for command in Cli::command().get_subcommands() {
            let name = format!("imagegate-{}.1", command.get_name());
            let page = std::fs::read_to_string(folder.path().join("man1").join(name)).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{page}");
        }
    }
}
