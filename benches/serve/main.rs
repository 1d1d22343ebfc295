//! `cargo bench --bench serve`: what an image costs on its way through the gateway (docs/benchmarks.md).
//!
//! Starts a mock provider, a plain reverse proxy as the limit, the real binary in one, two and three processes, and
//! whoever else is asked for, drives them in turn, and prints one table. Nothing in it decides anything: figures depend on the
//! machine, ratios within one run much less.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod curves;
mod load;
mod machine;
mod picture;
mod soak;
mod system;
mod tls;
mod train;
mod upstream;
mod workload;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::Value;

use load::{Ran, Target, Until};
use system::{Kind, Mock, System};
use workload::{CROWDED, WORKLOADS, Workload};

const CONNECTIONS: usize = 16;

/// For what is added to the latency of a request that is alone.
const ALONE: usize = 1;

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

    /// Only requests whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,

    /// Leave out the split processes
    #[arg(long)]
    no_split: bool,

    /// Leave out what logs and traces cost
    #[arg(long)]
    no_watching: bool,

    /// Leave out the memory of many images at once
    #[arg(long)]
    no_memory: bool,

    /// Also nginx as a bare proxy, which must be installed
    #[arg(long)]
    nginx: bool,

    /// Also Portkey's gateway: the folder of the package `@portkey-ai/gateway`
    #[arg(long, value_name = "FOLDER")]
    portkey: Option<PathBuf>,

    /// Instead of all that: CPU, memory and throughput against sizes and numbers, drawn into this folder
    #[arg(long, value_name = "FOLDER")]
    curves: Option<PathBuf>,

    /// With --curves: draw what was saved, measure nothing
    #[arg(long, value_name = "FILE", requires = "curves")]
    saved: Option<PathBuf>,

    /// Instead of all that: so many small and so many large requests to one process, and what is left of them in it
    #[arg(long, num_args = 2, value_names = ["SMALL", "LARGE"])]
    soak: Option<Vec<usize>>,

    /// Instead of all that: keep the binary busy with a bit of everything, and measure nothing
    #[arg(long)]
    train: bool,

    /// Keep every sample, as JSON
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// What is measured, instead of what was built with this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,

    /// Another build of the same program, measured in the same run
    #[arg(long, value_name = "BINARY")]
    other: Vec<PathBuf>,
}

/// What was measured of one kind of request.
#[derive(Serialize)]
struct Measured {
    request: String,
    systems: Vec<Samples>,
}

/// What was measured of a system with one kind of request.
#[derive(Serialize)]
struct Samples {
    #[serde(skip)]
    kind: Kind,
    system: String,
    samples: Vec<Sample>,
}

/// One measurement.
#[derive(Clone, Serialize)]
struct Sample {
    per_second: f64,
    /// Latency of half of the requests, and of all but a hundredth. Of requests that are alone, if they were measured so.
    half_ms: f64,
    most_ms: f64,
    /// Of each process.
    parts: Vec<Part>,
}

/// What one process took.
#[derive(Clone, Serialize)]
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
        ["mock"] => return runtime.block_on(upstream::mock(None)),
        ["mock", certificate] => return runtime.block_on(upstream::mock(Some(Path::new(certificate)))),
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
    if let Some(binary) = &args.binary {
        system::measure(fs::canonicalize(binary).with_context(|| binary.display().to_string())?);
    }
    if let (Some(drawings), Some(saved)) = (&args.curves, &args.saved) {
        return curves::draw_saved(saved, drawings);
    }
    let folder = tempfile::tempdir()?;
    let mock = Mock::start(folder.path())?;
    if let Some([small, large]) = args.soak.as_deref() {
        return soak::run(*small, *large, &mock, folder.path()).await;
    }
    if args.train {
        return train::run(&mock, folder.path()).await;
    }
    if let Some(drawings) = &args.curves {
        return curves::measure(args, drawings, &mock, folder.path()).await;
    }
    let kinds = kinds(args)?;
    let mut systems = Vec::with_capacity(kinds.len());
    for kind in &kinds {
        systems.push(kind.start(&mock, folder.path()).await?);
    }
    println!("| system | ready after, ms | idle MB |\n|---|---:|---:|");
    for (kind, system) in kinds.iter().zip(&systems) {
        let (started, idle) = (system.started.as_secs_f64() * 1e3, system.memory()? as f64 / 1e6);
        println!("| {} | {started:.0} | {idle:.0} |", kind.name());
    }
    println!(
        "\n| request | system | requests/s | CPU ms/request | × | (from–to) | p50 alone, ms | p99 | peak MB |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    let mut all = Vec::new();
    for workload in WORKLOADS.iter().filter(|workload| workload.name.contains(&args.only)) {
        let measured = measure(args, workload, &kinds, &systems, &mock).await?;
        print(&measured);
        all.push(measured);
    }
    drop(systems);
    if !args.no_memory {
        let kinds: Vec<Kind> = kinds.iter().filter(|kind| !kind.is_of_watching()).cloned().collect();
        let measured = measure_memory(&kinds, &mock, folder.path()).await?;
        print(&measured);
        all.push(measured);
    }
    println!("\n| request | system | role | CPU ms/request | peak MB |\n|---|---|---|---:|---:|");
    all.iter().for_each(print_roles);
    if !args.no_watching {
        println!("\n| request | system | CPU, × serve, silent | (from–to) |\n|---|---|---:|---:|");
        all.iter().for_each(print_watching);
    }
    if let Some(path) = &args.save {
        save(path, &all)?;
    }
    Ok(())
}

/// Keeps what was measured, and on which machine.
fn save(path: &Path, measured: &impl Serialize) -> Result<()> {
    let saved = serde_json::json!({ "machine": machine::describe()?, "measured": measured });
    let text = serde_json::to_string_pretty(&saved)?;
    fs::write(path, text + "\n").with_context(|| path.display().to_string())
}

/// The first one is what the others are compared with.
fn kinds(args: &Args) -> Result<Vec<Kind>> {
    let mut kinds = vec![Kind::Proxy, Kind::Serve];
    if args.nginx {
        kinds.insert(0, Kind::Nginx);
    }
    if !args.no_watching {
        kinds.extend([Kind::Silent, Kind::Traced]);
    }
    if !args.no_split {
        kinds.extend([Kind::Apart(1), Kind::Split, Kind::SplitTls]);
    }
    let found = |path: &PathBuf| path.canonicalize().with_context(|| path.display().to_string());
    if let Some(folder) = &args.portkey {
        kinds.push(Kind::Portkey(found(folder)?));
    }
    for binary in &args.other {
        kinds.push(Kind::Other(found(binary)?));
    }
    Ok(kinds)
}

/// Samples of each system with many images at once.
async fn measure_memory(kinds: &[Kind], mock: &Mock, folder: &Path) -> Result<Measured> {
    let mut systems = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let mut samples = Vec::with_capacity(3);
        for _ in 0..3 {
            samples.extend(sample_fresh(kind, &CROWDED, CROWD, CROWD_ROUNDS, mock, folder).await?);
        }
        systems.push(Samples { kind: kind.clone(), system: kind.name(), samples });
    }
    Ok(Measured { request: CROWDED.name.into_owned(), systems })
}

/// One sample of a system that is started for it, so that nothing is left over in its heap. Each connection has so many
/// answers. None: it cannot be asked for that.
async fn sample_fresh(
    kind: &Kind,
    workload: &Workload,
    connections: usize,
    answers: usize,
    mock: &Mock,
    folder: &Path,
) -> Result<Option<Sample>> {
    let system = kind.start(mock, folder).await?;
    let Some(target) = workload.target(kind, &system, mock) else { return Ok(None) };
    let length = verified(workload, kind, &target).await?;
    sample(&system, &target, connections, Until::Answered(answers), length).await.map(Some)
}

/// Samples of each system that knows this kind of request, taken in turn so that the machine's moods fall on all of them
/// alike.
async fn measure(
    args: &Args,
    workload: &Workload,
    kinds: &[Kind],
    systems: &[System],
    mock: &Mock,
) -> Result<Measured> {
    let mut targets = Vec::with_capacity(systems.len());
    for (kind, system) in kinds.iter().zip(systems) {
        let Some(target) = workload.target(kind, system, mock) else { continue };
        let length = verified(workload, kind, &target).await?;
        target.run(CONNECTIONS, Until::Elapsed(Duration::from_millis(500)), length).await?;
        targets.push((kind, system, target, length));
    }
    let limit = Until::Elapsed(Duration::from_secs_f64(args.seconds));
    let mut samples = vec![Vec::with_capacity(args.rounds); targets.len()];
    for round in 0..args.rounds {
        eprintln!("{}: round {} of {}", workload.name, round + 1, args.rounds);
        let mut order: Vec<usize> = (0..targets.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for i in order {
            let (_, system, target, length) = &targets[i];
            let alone = target.run(ALONE, limit, *length).await?;
            let mut sample = sample(system, target, CONNECTIONS, limit, *length).await?;
            (sample.half_ms, sample.most_ms) = (alone.quantile_ms(0.5), alone.quantile_ms(0.99));
            samples[i].push(sample);
        }
    }
    let systems = targets.iter().zip(samples).map(|((kind, ..), samples)| Samples {
        kind: (*kind).clone(),
        system: kind.name(),
        samples,
    });
    Ok(Measured { request: workload.name.to_string(), systems: systems.collect() })
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
    let ran: Ran = target.run(connections, until, length).await?;
    let after = system.cpu()?;
    ensure!(!ran.latencies.is_empty(), "no answer in the time of one measurement");
    let answered = ran.latencies.len() as f64;
    let spent = before.into_iter().zip(after).map(|(before, after)| after.saturating_sub(before));
    let peaks = system.peak_memory()?;
    let parts = system.roles().into_iter().zip(spent).zip(peaks).map(|((role, cpu), peak)| Part {
        role,
        cpu_ms: cpu.as_secs_f64() * 1000.0 / answered,
        peak_mb: peak as f64 / 1e6,
    });
    Ok(Sample {
        per_second: answered / ran.took.as_secs_f64(),
        half_ms: ran.quantile_ms(0.5),
        most_ms: ran.quantile_ms(0.99),
        parts: parts.collect(),
    })
}

/// The length of an answer whose image was compared byte for byte.
async fn verified(workload: &Workload, kind: &Kind, target: &Target) -> Result<usize> {
    let body = target.once().await.with_context(|| format!("{}: {}", kind.name(), workload.name))?;
    let text = picture::image_text(workload.text_bytes)?;
    ensure!(text.len() == workload.text_bytes, "the mock's image has another size than planned");
    let changed = || format!("{} changed the image", kind.name());
    if workload.is_stream() {
        let events = std::str::from_utf8(&body)?;
        ensure!(events.matches(&text).count() == 2, changed());
    } else {
        let json: Value = serde_json::from_slice(&body)?;
        ensure!(json["data"][0]["b64_json"] == text.as_str(), changed());
    }
    Ok(body.len())
}

fn print(measured: &Measured) {
    let Some(limit) = measured.systems.first() else { return };
    for of_one in &measured.systems {
        let samples = &of_one.samples;
        let values = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        // Each round against the limit in the same round.
        let rounds = samples.iter().zip(&limit.samples);
        let ratio = median(rounds.map(|(sample, limit)| sample.cpu_ms() / limit.cpu_ms()).collect());
        let cpu = samples.iter().map(Sample::cpu_ms);
        let (least, most) = cpu.fold((f64::MAX, 0.0_f64), |(least, most), ms| (least.min(ms), most.max(ms)));
        println!(
            "| {} | {} | {:.0} | {:.3} | {ratio:.2} | ({least:.3}–{most:.3}) | {:.2} | {:.2} | {:.0} |",
            measured.request,
            of_one.system,
            values(|sample| sample.per_second),
            values(Sample::cpu_ms),
            values(|sample| sample.half_ms),
            values(|sample| sample.most_ms),
            values(Sample::peak_mb),
        );
    }
}

/// What each role takes, where they are apart.
fn print_roles(measured: &Measured) {
    for Samples { system, samples, .. } in &measured.systems {
        let roles: Vec<&str> =
            samples.first().map_or_else(Vec::new, |one| one.parts.iter().map(|part| part.role).collect());
        for (i, role) in roles.iter().enumerate().filter(|_| roles.len() > 1) {
            let values = |value: fn(&Part) -> f64| {
                median(samples.iter().map(|sample| value(&sample.parts[i])).collect())
            };
            let (cpu_ms, peak_mb) = (values(|part| part.cpu_ms), values(|part| part.peak_mb));
            println!("| {} | {system} | {role} | {cpu_ms:.3} | {peak_mb:.0} |", measured.request);
        }
    }
}

/// What logs and traces take, each round against the silent one of the same round.
fn print_watching(measured: &Measured) {
    let Some(silent) = measured.systems.iter().find(|one| matches!(one.kind, Kind::Silent)) else { return };
    for of_one in &measured.systems {
        if !matches!(of_one.kind, Kind::Serve | Kind::Traced) {
            continue;
        }
        let rounds = of_one.samples.iter().zip(&silent.samples);
        let mut ratios: Vec<f64> = rounds.map(|(sample, silent)| sample.cpu_ms() / silent.cpu_ms()).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        println!(
            "| {} | {} | {:.2} | ({least:.2}–{most:.2}) |",
            measured.request,
            of_one.system,
            median(ratios)
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
