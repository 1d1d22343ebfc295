//! The command line: parses it, starts logging, runs the command, turns its outcome into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use imagegate::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
