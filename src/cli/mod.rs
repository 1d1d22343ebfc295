//! The commands, one file each.

mod api_keys;
mod ask;
mod check;
mod completions;
pub(crate) mod configs;
mod conform;
mod connect;
pub(crate) mod dry_run;
pub(crate) mod explain;
mod failure;
pub(crate) mod filter;
mod generate;
mod images;
pub(crate) mod json;
mod keys;
mod logs;
mod man;
mod person;
mod preview;
mod progress;
mod providers;
pub(crate) mod quota;
mod report;
mod router;
mod secret;
mod serve;
mod shim;
pub(crate) mod table;
pub(crate) mod targets;
pub(crate) mod times;
mod usage;
mod worker;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    config::Origin,
    telemetry::{self, LogFormat},
};

/// A routing config of sixty levels, and JSON has no more, takes most of the usual 2 MiB in a build without optimisation. What
/// is not used of it is not there.
const STACK_BYTES: usize = 8 << 20;

/// The image-generation gateway: OpenAI's Images API in, any image provider out.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// How log lines on standard error look; without it text, and for `serve` at a terminal a line for each request.
    /// RUST_LOG says how much is logged
    #[arg(long, global = true, env = "IMAGEGATE_LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process
    #[command(
        after_help = "Example:\n  imagegate serve --config imagegate.yaml\n\nWithout a file it listens on 127.0.0.1:8787 and answers with placeholder art."
    )]
    Serve(serve::Serve),
    /// Run the gRPC router, and the HTTP shim too if the file has listen.http
    #[command(after_help = "Example:\n  imagegate router --config imagegate.yaml")]
    Router(router::Router),
    /// Run the worker of one or several providers
    #[command(after_help = "Example:\n  imagegate worker --provider stability-ai --listen 0.0.0.0:50061")]
    Worker(worker::Worker),
    /// Run the HTTP shim in front of a router elsewhere
    #[command(
        after_help = "Example:\n  imagegate shim --router http://imagegate-router:50051 --listen 0.0.0.0:8787"
    )]
    Shim(shim::Shim),
    /// Make an image and write it to a file
    #[command(
        after_help = "Example:\n  imagegate generate \"a lighthouse at dusk\" --size 1024x1024 -o lighthouse.png"
    )]
    Generate(generate::Generate),
    /// Show what a request would do, without calling a provider
    #[command(
        after_help = "Example:\n  imagegate explain \"a lighthouse at dusk\" --config-id hero --size 1024x1024"
    )]
    Explain(explain::Explain),
    /// Show providers and models with what they can do
    #[command(after_help = "Example:\n  imagegate providers stability-ai\n  imagegate providers --json")]
    Providers(providers::Providers),
    /// Validate a configuration file and all routing configs in it
    #[command(after_help = "Example:\n  imagegate check imagegate.yaml")]
    Check(check::Check),
    /// Find out whether a worker keeps its promises: the conformance kit
    #[command(
        after_help = "Example:\n  imagegate conform http://127.0.0.1:50061\n\nEvery call is a real one: a paid provider bills it. The exit code is 0 if the worker conforms, 1 if not,\n2 if nothing could be checked."
    )]
    Conform(conform::Conform),
    /// Manage saved routing configs
    #[command(
        after_help = "Example:\n  imagegate configs save hero hero.yaml\n  imagegate configs diff pc-hero-1a2b3c 1 2"
    )]
    Configs(configs::Configs),
    /// Manage virtual keys, which stand for providers' credentials, and API keys
    #[command(
        after_help = "Example:\n  imagegate keys add openai-prod --provider openai --key-file key.txt\n  imagegate keys api create team-a --scope generate"
    )]
    Keys(keys::Keys),
    /// Show the request log
    #[command(
        after_help = "Example:\n  imagegate logs -f --fallback\n  imagegate logs --since 1h --success=false --json"
    )]
    Logs(logs::Logs),
    /// Show what requests cost and how they ended
    #[command(
        after_help = "Example:\n  imagegate usage --by provider --since 7d\n  imagegate usage --by metadata.team --json"
    )]
    Usage(usage::Usage),
    /// Show rate limits and budgets with what has been used of them
    #[command(after_help = "Example:\n  imagegate quotas\n  imagegate quotas --json")]
    Quotas(quota::Quotas),
    /// Show how the targets of configs stand: breakers, latency, calls in flight
    #[command(after_help = "Example:\n  imagegate targets --config-id hero\n  imagegate targets --json")]
    Targets(targets::Targets),
    /// Print a script that lets a shell complete commands and flags
    #[command(
        after_help = "Example:\n  imagegate completions bash > /etc/bash_completion.d/imagegate\n  imagegate completions zsh > \"${fpath[1]}/_imagegate\"\n  imagegate completions fish > ~/.config/fish/completions/imagegate.fish"
    )]
    Completions(completions::Completions),
    /// Print the manual page, or write one for every command
    #[command(after_help = "Example:\n  imagegate man --dir /usr/local/share/man/man1")]
    Man(man::Man),
}

/// Where the configuration comes from.
#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// Configuration file; embedded defaults without one
    #[arg(long, env = "IMAGEGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArg {
    fn origin(&self) -> Origin {
        self.config.clone().map_or(Origin::Embedded, Origin::File)
    }
}

/// Reads the command line and does what it says. 0 if that was done, 1 if not, 2 if it says nothing that can be done;
/// `conform` and `generate` tell more.
pub fn run(args: &[OsString]) -> ExitCode {
    let as_json = failure::wants_json(args);
    match Cli::try_parse_from(args) {
        Ok(cli) => cli.run(as_json),
        Err(error) => {
            failure::tell_usage(&error, as_json);
            u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

impl Command {
    /// Whether it serves others until it is told to stop.
    fn serves(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Router(_) | Self::Worker(_) | Self::Shim(_))
    }
}

impl Cli {
    fn run(self, as_json: bool) -> ExitCode {
        let for_person = matches!(self.command, Command::Serve(_))
            && self.log_format.is_none()
            && io::stderr().is_terminal();
        let level = match self.command.serves() {
            // Where it listens and that it stops is said in other words.
            true if for_person => "info,imagegate::serve=warn",
            true => "info",
            // A program reads one error there, and nothing else that it has not asked for.
            false if as_json => "off",
            // Whoever asks a gateway looks at the answer, and at one live line.
            false => "warn",
        };
        let logs = telemetry::init_logs(self.log_format.unwrap_or_default(), level);
        // The one TLS implementation of this process; a second call, in tests, changes nothing.
        _ = rustls::crypto::ring::default_provider().install_default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return failed(&error.into(), as_json),
        };
        let outcome = runtime.block_on(async {
            match self.command {
                Command::Serve(command) => command.run(for_person).await?,
                Command::Router(command) => command.run().await?,
                Command::Worker(command) => command.run().await?,
                Command::Shim(command) => command.run().await?,
                Command::Generate(command) => return command.run().await,
                Command::Explain(command) => command.run().await?,
                Command::Providers(command) => command.run().await?,
                Command::Check(command) => command.run()?,
                Command::Conform(command) => return command.run().await,
                Command::Configs(command) => command.run().await?,
                Command::Keys(command) => command.run().await?,
                Command::Logs(command) => command.run().await?,
                Command::Usage(command) => command.run().await?,
                Command::Quotas(command) => command.run().await?,
                Command::Targets(command) => command.run().await?,
                Command::Completions(command) => command.run()?,
                Command::Man(command) => command.run()?,
            }
            anyhow::Ok(ExitCode::SUCCESS)
        });
        // Whatever still runs on blocking threads has nobody to report to.
        runtime.shutdown_background();
        drop(logs);
        match outcome {
            Ok(code) => code,
            // Whoever reads has seen enough.
            Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => failed(&error, as_json),
        }
    }
}

/// Says that something is gone.
fn deleted(name: &str, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        writeln!(io::stdout(), "{}", serde_json::json!({ "deleted": name }))?;
    } else {
        writeln!(io::stdout(), "{name}: deleted")?;
    }
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn failed(error: &anyhow::Error, as_json: bool) -> ExitCode {
    failure::tell(error, as_json);
    ExitCode::FAILURE
}
