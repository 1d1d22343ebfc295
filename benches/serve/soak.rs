//! Millions of requests to one process: what is left of them in memory, in file descriptors and in threads.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use super::{
    CONNECTIONS,
    load::Until,
    system::{Kind, Mock, System},
    verified,
    workload::WORKLOADS,
};

/// Parts after which memory is looked at. The first ones are for warming up.
const PARTS: usize = 40;
const WARM: usize = 8;

/// Connections to providers and of clients are closed by then, and what waits for the request log is written.
const COOL: Duration = Duration::from_secs(75);

/// Sends so many small and so many large requests, and prints what is left.
pub async fn run(small: usize, large: usize, mock: &Mock, folder: &Path) -> Result<()> {
    let system = Kind::Serve.start(mock, folder).await?;
    println!(
        "| | MB | file descriptors | threads | requests/s | MB an hour |\n|---|---:|---:|---:|---:|---:|"
    );
    show("started", &system, None)?;
    for (workload, requests) in WORKLOADS.iter().zip([small, large]) {
        let target = workload.target(&Kind::Serve, &system, mock).context("no such request")?;
        let length = verified(workload, &Kind::Serve, &target).await?;
        let (begun, mut seen) = (Instant::now(), Vec::with_capacity(PARTS));
        let each = requests.div_ceil(PARTS * CONNECTIONS);
        for part in 0..PARTS {
            let ran = target.run(CONNECTIONS, Until::Answered(each), length).await?;
            ensure!(ran.latencies.len() == each * CONNECTIONS, "requests are missing");
            if part >= WARM {
                seen.push((begun.elapsed().as_secs_f64() / 3600.0, system.memory()? as f64 / 1e6));
            }
        }
        let done = (each * CONNECTIONS * PARTS) as f64;
        let figures = (done / begun.elapsed().as_secs_f64(), slope(&seen));
        show(&format!("{done:.0} × {}", workload.name), &system, Some(figures))?;
    }
    tokio::time::sleep(COOL).await;
    show("at rest", &system, None)
}

fn show(when: &str, system: &System, figures: Option<(f64, f64)>) -> Result<()> {
    let memory = system.memory()? as f64 / 1e6;
    let (files, threads) = (system.count("fd")?, system.count("task")?);
    let [rate, slope] = figures.map_or([String::new(), String::new()], |(rate, slope)| {
        [format!("{rate:.0}"), format!("{slope:.2}")]
    });
    println!("| {when} | {memory:.1} | {files} | {threads} | {rate} | {slope} |");
    Ok(())
}

/// Of the line with the least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let rise: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    rise / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}
