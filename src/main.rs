//! The binary: hands the command line over, and the exit code back.

use std::{env::args_os, process::ExitCode};

/// Takes less time than glibc's for the many small pieces of a request, and gives back what a burst of images took.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    imagegate::cli::run(&args_os().collect::<Vec<_>>())
}
