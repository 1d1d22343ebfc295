//! `cargo bench --bench serve`: what an image costs on its way through the gateway (docs/benchmarks.md).
//!
//! Starts a mock provider, a plain reverse proxy as the limit and the real binary in one and in three
//! processes, drives them in turn, and prints one table. Nothing in it decides anything: figures depend on the
//! machine, ratios within one run much less.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod load;
mod picture;
mod system;
mod tls;
mod upstream;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde_json::Value;

use load::{Target, Until};
use system::{Kind, Process, System};

/// A kind of request.
struct Workload {
    name: &'static str,
    virtual_key: &'static str,
    /// What the mock does, as its path says it.
    upstream: &'static str,
    text_bytes: usize,
}

const WORKLOADS: [Workload; 3] = [
    Workload { name: "1 KB", virtual_key: "small", upstream: "0/1k", text_bytes: 1 << 10 },
    Workload { name: "2 MB", virtual_key: "large", upstream: "0/2m", text_bytes: 2 << 20 },
    Workload { name: "64 × 2 MB at once", virtual_key: "slow", upstream: "200/2m", text_bytes: 2 << 20 },
];

const CONNECTIONS: usize = 16;

/// For the memory of many images at once: all of them arrive together after the mock's delay.
const CROWD: usize = 64;
const CROWD_ROUNDS: usize = 4;

#[derive(Debug, Parser)]
struct Args {
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,

    /// Times that each system is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Length of one measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,

    /// Leave out the split processes
    #[arg(long)]
    no_split: bool,

    /// Leave out what logs and traces cost
    #[arg(long)]
    no_watching: bool,

    /// Leave out the memory of many images at once
    #[arg(long)]
    no_memory: bool,

    /// Another build of the same program, measured in the same run
    #[arg(long, value_name = "BINARY")]
    other: Vec<PathBuf>,
}

/// One measurement.
#[derive(Clone)]
struct Sample {
    per_second: f64,
    /// Of each process.
    parts: Vec<Part>,
}

/// What one process took.
#[derive(Clone)]
struct Part {
    role: &'static str,
    cpu_ms: f64,
    peak_mb: f64,
}

impl Sample {
    fn cpu_ms(&self) -> f64 {
        self.parts.iter().map(|part| part.cpu_ms).sum()
    }

    fn peak_mb(&self) -> f64 {
        self.parts.iter().map(|part| part.peak_mb).sum()
    }
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mock"] => return runtime.block_on(upstream::mock()),
        ["proxy", upstream] => return runtime.block_on(upstream::proxy(upstream)),
        _ => {}
    }
    let args = Args::parse();
    if !args.bench {
        // `cargo test --all-targets` comes here.
        println!("run by hand: cargo bench --bench serve");
        return Ok(());
    }
    let ended = runtime.block_on(compare(&args));
    runtime.shutdown_background();
    ended
}

async fn compare(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_mock, mock) = Process::of_this_program(&["mock"])?;
    let mut kinds = vec![Kind::Proxy, Kind::Serve];
    if !args.no_watching {
        kinds.extend([Kind::Silent, Kind::Traced]);
    }
    if !args.no_split {
        kinds.extend([Kind::Split, Kind::SplitTls]);
    }
    for binary in &args.other {
        kinds.push(Kind::Other(binary.canonicalize().with_context(|| binary.display().to_string())?));
    }
    let mut systems = Vec::with_capacity(kinds.len());
    for kind in &kinds {
        systems.push(kind.start(&mock, folder.path()).await?);
    }
    println!("| image | system | requests/s | × | CPU ms/request | × | (from–to) | peak MB | × |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    let [small, large, slow] = &WORKLOADS;
    let mut all = Vec::new();
    for workload in [small, large] {
        let samples = measure(args, workload, &kinds, &systems).await?;
        print(workload, &kinds, &samples);
        all.push((workload, kinds.clone(), samples));
    }
    drop(systems);
    if !args.no_memory {
        let kinds: Vec<Kind> = kinds.iter().filter(|kind| !kind.is_of_watching()).cloned().collect();
        let peaks = measure_memory(slow, &kinds, &mock, folder.path()).await?;
        print(slow, &kinds, &peaks);
        all.push((slow, kinds, peaks));
    }
    println!("\n| image | system | role | CPU ms/request | peak MB |\n|---|---|---|---:|---:|");
    for (workload, kinds, samples) in &all {
        kinds.iter().zip(samples).for_each(|(kind, of_one)| print_roles(workload, kind, of_one));
    }
    if !args.no_watching {
        println!("\n| image | system | CPU, × serve, silent | (from–to) |\n|---|---|---:|---:|");
        for (workload, kinds, samples) in &all {
            print_watching(workload, kinds, samples);
        }
    }
    Ok(())
}

/// Samples of each system with many images at once.
async fn measure_memory(
    slow: &Workload,
    kinds: &[Kind],
    mock: &str,
    folder: &Path,
) -> Result<Vec<Vec<Sample>>> {
    let mut peaks = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let mut samples = Vec::with_capacity(3);
        for _ in 0..3 {
            // Fresh, so that nothing is left over in its heap.
            let system = kind.start(mock, folder).await?;
            let (target, length) = verified(slow, kind, &system).await?;
            samples.push(sample(&system, &target, CROWD, Until::Answered(CROWD_ROUNDS), length).await?);
        }
        peaks.push(samples);
    }
    Ok(peaks)
}

/// Samples of each system, taken in turn so that the machine's moods fall on all of them alike.
async fn measure(
    args: &Args,
    workload: &Workload,
    kinds: &[Kind],
    systems: &[System],
) -> Result<Vec<Vec<Sample>>> {
    let mut targets = Vec::with_capacity(systems.len());
    for (kind, system) in kinds.iter().zip(systems) {
        let (target, length) = verified(workload, kind, system).await?;
        target.run(CONNECTIONS, Until::Elapsed(Duration::from_millis(500)), length).await?;
        targets.push((target, length));
    }
    let limit = Until::Elapsed(Duration::from_secs_f64(args.seconds));
    let mut samples = vec![Vec::with_capacity(args.rounds); systems.len()];
    for round in 0..args.rounds {
        eprintln!("{}: round {} of {}", workload.name, round + 1, args.rounds);
        let mut order: Vec<usize> = (0..systems.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for i in order {
            let (target, length) = &targets[i];
            samples[i].push(sample(&systems[i], target, CONNECTIONS, limit, *length).await?);
        }
    }
    Ok(samples)
}

async fn sample(
    system: &System,
    target: &Target,
    connections: usize,
    until: Until,
    length: usize,
) -> Result<Sample> {
    system.reset_peak()?;
    let before = system.cpu()?;
    let (answered, duration) = target.run(connections, until, length).await?;
    let after = system.cpu()?;
    ensure!(answered > 0, "no answer in the time of one measurement");
    let answered = answered as f64;
    let spent = before.into_iter().zip(after).map(|(before, after)| after.saturating_sub(before));
    let peaks = system.peak_memory()?;
    let parts = system.roles().into_iter().zip(spent).zip(peaks).map(|((role, cpu), peak)| Part {
        role,
        cpu_ms: cpu.as_secs_f64() * 1000.0 / answered,
        peak_mb: peak as f64 / 1e6,
    });
    Ok(Sample { per_second: answered / duration.as_secs_f64(), parts: parts.collect() })
}

/// Where the requests go, and the length of an answer whose image was compared byte for byte.
async fn verified(workload: &Workload, kind: &Kind, system: &System) -> Result<(Target, usize)> {
    let path = match kind {
        Kind::Proxy => format!("/{}/v1/images/generations", workload.upstream),
        _ => "/v1/images/generations".into(),
    };
    let target = Target::new(&system.address, &path, workload.virtual_key);
    let body = target.once().await.with_context(|| format!("{}: {}", kind.name(), workload.name))?;
    let json: Value = serde_json::from_slice(&body)?;
    let text = picture::image_text(workload.text_bytes)?;
    ensure!(text.len() == workload.text_bytes, "the mock's image has another size than planned");
    ensure!(json["data"][0]["b64_json"] == text.as_str(), "{} changed the image", kind.name());
    Ok((target, body.len()))
}

fn print(workload: &Workload, kinds: &[Kind], samples: &[Vec<Sample>]) {
    let Some(limit) = samples.first() else { return };
    for (kind, samples) in kinds.iter().zip(samples) {
        let values = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        // Each round against the limit in the same round.
        let ratio = |value: fn(&Sample) -> f64| {
            median(samples.iter().zip(limit).map(|(sample, limit)| value(sample) / value(limit)).collect())
        };
        let cpu = samples.iter().map(Sample::cpu_ms);
        let (least, most) = cpu.fold((f64::MAX, 0.0_f64), |(least, most), ms| (least.min(ms), most.max(ms)));
        println!(
            "| {} | {} | {:.0} | {:.2} | {:.3} | {:.2} | ({least:.3}–{most:.3}) | {:.0} | {:.1} |",
            workload.name,
            kind.name(),
            values(|sample| sample.per_second),
            ratio(|sample| sample.per_second),
            values(Sample::cpu_ms),
            ratio(Sample::cpu_ms),
            values(Sample::peak_mb),
            ratio(Sample::peak_mb),
        );
    }
}

/// What each role takes, where they are apart.
fn print_roles(workload: &Workload, kind: &Kind, samples: &[Sample]) {
    let roles: Vec<&str> = samples[0].parts.iter().map(|part| part.role).collect();
    for (i, role) in roles.iter().enumerate().filter(|_| roles.len() > 1) {
        let values =
            |value: fn(&Part) -> f64| median(samples.iter().map(|sample| value(&sample.parts[i])).collect());
        let (cpu_ms, peak_mb) = (values(|part| part.cpu_ms), values(|part| part.peak_mb));
        println!("| {} | {} | {role} | {cpu_ms:.3} | {peak_mb:.0} |", workload.name, kind.name());
    }
}

/// What logs and traces take, each round against the silent one of the same round.
fn print_watching(workload: &Workload, kinds: &[Kind], samples: &[Vec<Sample>]) {
    let Some(silent) = kinds.iter().position(|kind| matches!(kind, Kind::Silent)) else { return };
    for (kind, of_one) in
        kinds.iter().zip(samples).filter(|(kind, _)| matches!(kind, Kind::Serve | Kind::Traced))
    {
        let rounds = of_one.iter().zip(&samples[silent]);
        let mut ratios: Vec<f64> = rounds.map(|(sample, silent)| sample.cpu_ms() / silent.cpu_ms()).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        println!("| {} | {} | {:.2} | ({least:.2}–{most:.2}) |", workload.name, kind.name(), median(ratios),);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
