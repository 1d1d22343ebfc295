//! The binary: hands the command line over, and the exit code back.

use std::{env::args_os, process::ExitCode};

fn main() -> ExitCode {
    imagegate::cli::run(&args_os().collect::<Vec<_>>())
}
