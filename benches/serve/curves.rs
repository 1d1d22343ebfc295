//! How costs grow: with the size of an image, with requests in flight, with targets, with workers. Drawn, and kept as
//! numbers.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Args, CONNECTIONS, Sample,
    load::Until,
    median, sample, sample_fresh, save,
    system::{Kind, Mock, System},
    verified,
    workload::{TARGETS, Workload},
};

/// Requests in flight at once.
const IN_FLIGHT: [usize; 5] = [1, 10, 100, 300, 1000];
const IN_FLIGHT_ROUNDS: usize = 2;

/// Worker processes.
const WORKERS: [usize; 4] = [1, 2, 4, 8];

/// Connections that ask for images of 32 MB.
const FEW: usize = 4;
const LARGE: usize = 8 << 20;

const WIDTH: u32 = 760;
const HEIGHT: u32 = 420;
const TEXT: u32 = 15;
const COLOURS: [RGBColor; 2] = [RGBColor(0x33, 0x42, 0xb5), RGBColor(0x0f, 0x76, 0x6e)];
const NGINX: RGBColor = RGBColor(0x87, 0x52, 0x00);
const PORTKEY: RGBColor = RGBColor(0xb3, 0x26, 0x1e);

/// Room for the legend, as a share of what the lines span.
const LEGEND: f64 = 0.4;

/// Values over a number, one line for each system. Both axes are logarithmic.
#[derive(Deserialize, Serialize)]
struct Curve {
    file: String,
    over: String,
    value: String,
    lines: Vec<Line>,
}

#[derive(Deserialize, Serialize)]
struct Line {
    system: String,
    points: Vec<(f64, f64)>,
}

/// What was saved of them.
#[derive(Deserialize)]
struct Saved {
    measured: Vec<Curve>,
}

/// Draws those that were saved.
pub fn draw_saved(saved: &Path, drawings: &Path) -> Result<()> {
    let saved: Saved = serde_json::from_slice(&fs::read(saved)?)?;
    draw(&saved.measured, drawings)
}

/// Measures and draws all of them.
pub async fn measure(args: &Args, drawings: &Path, mock: &Mock, folder: &Path) -> Result<()> {
    let mut kinds = vec![Kind::Serve, Kind::Apart(1)];
    kinds.extend(args.nginx.then_some(Kind::Nginx));
    kinds.extend(args.portkey.clone().map(Kind::Portkey));
    let curves = [
        over_sizes(args, &kinds, mock, folder).await?,
        over_requests(&kinds, mock, folder).await?,
        over_targets(args, &kinds, mock, folder).await?,
        over_workers(args, mock, folder).await?,
    ];
    draw(&curves, drawings)?;
    args.save.as_ref().map_or(Ok(()), |path| save(path, &curves))
}

fn draw(curves: &[Curve], drawings: &Path) -> Result<()> {
    fs::create_dir_all(drawings)?;
    curves.iter().try_for_each(|curve| {
        curve.draw(&drawings.join(&curve.file)).map_err(|error| anyhow!("{}: {error}", curve.file))
    })
}

async fn over_sizes(args: &Args, kinds: &[Kind], mock: &Mock, folder: &Path) -> Result<Curve> {
    let mut lines = Vec::new();
    for kind in kinds {
        let system = kind.start(mock, folder).await?;
        let mut points = Vec::new();
        for workload in Workload::sizes() {
            let connections = if workload.text_bytes > LARGE { FEW } else { CONNECTIONS };
            let samples = samples(args, kind, &system, &workload, mock, connections).await?;
            points.push((workload.text_bytes as f64 / 1024.0, median_of(&samples, Sample::cpu_ms)));
        }
        lines.push(Line { system: kind.name(), points });
    }
    Ok(Curve::new("cpu-by-size.svg", "KB of base64", "CPU ms a request", lines))
}

async fn over_requests(kinds: &[Kind], mock: &Mock, folder: &Path) -> Result<Curve> {
    let workload = Workload::waiting();
    let mut lines = Vec::new();
    for kind in kinds {
        let mut points = Vec::new();
        for count in IN_FLIGHT {
            let sample = sample_fresh(kind, &workload, count, IN_FLIGHT_ROUNDS, mock, folder).await?;
            points.extend(sample.map(|sample| (count as f64, sample.peak_mb())));
        }
        lines.push(Line { system: kind.name(), points });
    }
    Ok(Curve::new("memory-by-requests.svg", "requests of 256 KB in flight", "MB at most", lines))
}

async fn over_targets(args: &Args, kinds: &[Kind], mock: &Mock, folder: &Path) -> Result<Curve> {
    let mut lines = Vec::new();
    for kind in kinds {
        let system = kind.start(mock, folder).await?;
        let mut points = Vec::new();
        for targets in TARGETS {
            let workload = Workload::balanced(targets);
            let samples = samples(args, kind, &system, &workload, mock, CONNECTIONS).await?;
            if !samples.is_empty() {
                points.push((targets as f64, median_of(&samples, Sample::cpu_ms)));
            }
        }
        if !points.is_empty() {
            lines.push(Line { system: kind.name(), points });
        }
    }
    Ok(Curve::new("cpu-by-targets.svg", "targets of the config", "CPU ms a request of 1 KB", lines))
}

async fn over_workers(args: &Args, mock: &Mock, folder: &Path) -> Result<Curve> {
    let mut lines: Vec<Line> = Vec::new();
    for workers in WORKERS {
        let kind = Kind::Apart(workers);
        let system = kind.start(mock, folder).await?;
        for (i, workload) in super::workload::WORKLOADS.iter().take(2).enumerate() {
            let samples = samples(args, &kind, &system, workload, mock, CONNECTIONS).await?;
            let point = (workers as f64, median_of(&samples, |sample| sample.per_second));
            match lines.get_mut(i) {
                Some(line) => line.points.push(point),
                None => {
                    lines.push(Line { system: format!("images of {}", workload.name), points: vec![point] })
                }
            }
        }
    }
    Ok(Curve::new("requests-by-workers.svg", "worker processes", "requests a second", lines))
}

/// Samples of one system. None, if it cannot be asked for that.
async fn samples(
    args: &Args,
    kind: &Kind,
    system: &System,
    workload: &Workload,
    mock: &Mock,
    connections: usize,
) -> Result<Vec<Sample>> {
    let Some(target) = workload.target(kind, system, mock) else { return Ok(Vec::new()) };
    let length = verified(workload, kind, &target).await?;
    let limit = Until::Elapsed(Duration::from_secs_f64(args.seconds));
    let mut samples = Vec::with_capacity(args.rounds);
    for _ in 0..args.rounds {
        samples.push(sample(system, &target, connections, limit, length).await?);
    }
    Ok(samples)
}

fn median_of(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    median(samples.iter().map(value).collect())
}

impl Curve {
    fn new(file: &str, over: &str, value: &str, lines: Vec<Line>) -> Self {
        Self { file: file.into(), over: over.into(), value: value.into(), lines }
    }

    fn draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let range = |value: fn(&(f64, f64)) -> f64| {
            let (least, most) = points()
                .map(value)
                .fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
            (least, most)
        };
        let (least_over, most_over) = range(|point| point.0);
        let (least, most) = range(|point| point.1);
        // With room for the legend above all lines.
        let top = most * (most / least).powf(LEGEND).max(1.1);
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(
                (least_over * 0.9..most_over * 1.1).log_scale(),
                (least * 0.9..top).log_scale(),
            )?;
        let text = ("sans-serif", TEXT).into_font();
        chart
            .configure_mesh()
            .x_desc(&self.over)
            .y_desc(&self.value)
            .x_label_formatter(&f64::to_string)
            .y_label_formatter(&f64::to_string)
            .label_style(text.clone())
            .axis_desc_style(text.clone())
            .light_line_style(WHITE)
            .draw()?;
        for (i, line) in self.lines.iter().enumerate() {
            let colour = colour(&line.system, i);
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
                .label(&line.system)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .label_font(text)
            .draw()?;
        area.present()?;
        Ok(())
    }
}

/// The same for a system in all drawings.
fn colour(system: &str, line: usize) -> RGBColor {
    match system {
        "nginx" => NGINX,
        "Portkey" => PORTKEY,
        _ => COLOURS[line % COLOURS.len()],
    }
}
