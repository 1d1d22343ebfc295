//! `cargo run --example simulate -- SCENARIO.yaml`: what a routing config does in an outage, under overload or with
//! a slow provider, in seconds and free of charge.
//!
//! The routing is the gateway's own; providers, callers and the clock are made up (`world`). The same scenario and
//! seed always print the same figures and the same trace hash.

mod world;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use world::scenario::Scenario;

#[derive(Debug, Parser)]
#[command(about = "Plays a scenario against the gateway's routing on a simulated clock")]
struct Args {
    /// The scenario file; examples/simulate/scenarios has some
    scenario: PathBuf,

    /// Another seed than the scenario's
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let name = args.scenario.display();
    let text = fs::read_to_string(&args.scenario).with_context(|| format!("{name} cannot be read"))?;
    let mut scenario = match Scenario::read(&text) {
        Ok(scenario) => scenario,
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            bail!("{name} cannot be used:{}", lines.concat());
        }
    };
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    let outcome = world::run(&scenario);
    print(&format!("{name}, seed {}\n\n{outcome}", scenario.seed));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
fn print(text: &str) {
    println!("{text}");
}
