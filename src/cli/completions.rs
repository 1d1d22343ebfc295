//! `imagegate completions`: a script that lets a shell complete commands and flags.

use std::io::{Write as _, stdout};

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use super::Cli;

/// Print a script that lets a shell complete commands and flags
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell that reads it
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub fn run(&self) -> Result<()> {
        // Into memory first: the generator panics where its reader has gone.
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "imagegate", &mut script);
        Ok(stdout().write_all(&script)?)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_learns_every_command() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            generate(*shell, &mut Cli::command(), "imagegate", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell} {}", command.get_name());
            }
        }
    }
}
