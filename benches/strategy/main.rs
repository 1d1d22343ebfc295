//! `cargo bench --bench strategy`: what a strategy costs beside the call it decides about (docs/benchmarks.md).
//!
//! The router runs in this process over a worker that answers at once. Each strategy's cost is what a request
//! takes with it less what the same request takes to a single target, in turns, so that a change of the
//! machine's pace meets both. Nothing in it decides anything.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

use std::{hint::black_box, io::Cursor, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Parser;
use futures::stream;
use imagegate::{
    config::{self, Settings, providers::Providers},
    pb::{
        self, generate_response::Event, router_service_server::RouterService,
        worker_service_server::WorkerService,
    },
    router::{Router, State},
    worker::{EventStream, SharedWorker, Workers},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, time::Instant};
use tonic::{Request, Response, Status};

#[derive(Debug, Parser)]
struct Args {
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,

    /// Times that each strategy is measured
    #[arg(long, default_value_t = 15)]
    rounds: usize,

    /// Requests of one measurement
    #[arg(long, default_value_t = 2000)]
    requests: u32,
}

/// A worker that has its image ready. The model `broken` fails.
struct Instantly {
    image: Bytes,
}

#[tonic::async_trait]
impl WorkerService for Instantly {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        Ok(Response::new(pb::DescribeResponse { providers: vec![record()] }))
    }

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<EventStream>, Status> {
        if request.get_ref().image.as_ref().is_some_and(|image| image.model == "broken") {
            return Err(Status::unavailable("broken"));
        }
        let chunk = pb::ImageChunk { image_index: 0, data: self.image.clone() };
        let done = pb::GenerateDone { images: vec![pb::Image::default()], ..Default::default() };
        let events = [Event::ImageChunk(chunk), Event::Done(done)];
        let events = events.map(|event| Ok(pb::GenerateResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(stream::iter(events))))
    }
}

fn record() -> pb::Provider {
    let model = pb::ModelCapability {
        model: "*".into(),
        operations: vec![pb::Operation::Generate.into()],
        max_n: 10,
        formats: vec![pb::ImageFormat::Png.into()],
        prices: vec![pb::Price { item: "image".into(), usd: 0.04, ..Default::default() }],
        ..Default::default()
    };
    pb::Provider { name: "paint".into(), models: vec![model], keyless: true, ..Default::default() }
}

fn settings(config: &Value) -> Settings {
    let yaml = format!("configs: {{it: {config}}}\ndefault_config: it\n");
    let built_in = Providers::default().with_own("paint");
    config::read(&yaml, &built_in, &|_| None).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn router(config: &Value) -> Router {
    let mut image = Cursor::new(Vec::new());
    image::RgbImage::new(1, 1).write_to(&mut image, image::ImageFormat::Png).expect("a pixel can be encoded");
    let worker: SharedWorker = Arc::new(Instantly { image: image.into_inner().into() });
    let mut workers = Workers::default();
    workers.insert("paint", worker);
    let built_in = Providers::default().with_own("paint");
    Router::new(State::new(Arc::new(settings(config)), Arc::new(workers), &built_in))
}

async fn request(router: &Router) {
    let image = pb::ImageRequest { prompt: "a cat".into(), model: "m".into(), ..Default::default() };
    let mut request = Request::new(pb::GenerateImageRequest { image: Some(image) });
    let metadata = r#"{"plan": "p49"}"#.parse().expect("plain text");
    request.metadata_mut().insert("x-portkey-metadata", metadata);
    black_box(router.generate_image(request).await.expect("the worker answers"));
}

fn measure(runtime: &Runtime, router: &Router, requests: u32) -> Duration {
    runtime.block_on(async {
        let started = Instant::now();
        for _ in 0..requests {
            request(router).await;
        }
        started.elapsed() / requests
    })
}

fn target(model: &str) -> Value {
    json!({"provider": "paint", "override_params": {"model": model}})
}

fn balance(policy: &str) -> Value {
    let mut strategy = json!({"mode": "loadbalance", "policy": policy});
    if policy == "sticky" {
        strategy["sticky"] = json!({"hash_fields": ["metadata.plan"]});
    }
    json!({"strategy": strategy, "targets": (0..100).map(|i| target(&format!("m{i}"))).collect::<Vec<_>>()})
}

fn strategies() -> Vec<(&'static str, Value)> {
    let conditions: Vec<Value> = (0..50)
        .map(|i| json!({"query": {"metadata.plan": format!("p{i}")}, "then": format!("t{i}")}))
        .collect();
    let named = (0..50).map(|i| {
        let mut target = target("m");
        target["name"] = format!("t{i}").into();
        target
    });
    let named: Vec<Value> = named.collect();
    let fallback = |targets: &[Value]| json!({"strategy": {"mode": "fallback"}, "targets": targets});
    let mut broken = target("broken");
    broken["breaker"] = json!({"consecutive_failures": 1, "cooldown_s": 86400});
    vec![
        ("a fallback whose first target answers", fallback(&[target("m"), target("m2")])),
        ("a fallback whose first target is left alone", fallback(&[broken, target("m")])),
        (
            "a hedge whose first target answers",
            json!({"strategy": {"mode": "hedge", "after_ms": 60000}, "targets": [target("m"), target("m2")]}),
        ),
        ("a balance over 100 targets, weighted", balance("weighted")),
        ("a balance over 100 targets, round_robin", balance("round_robin")),
        ("a balance over 100 targets, least_busy", balance("least_busy")),
        ("a balance over 100 targets, least_latency", balance("least_latency")),
        ("a balance over 100 targets, sticky", balance("sticky")),
        (
            "a conditional with 50 conditions, the last one true",
            json!({"strategy": {"mode": "conditional", "conditions": conditions}, "targets": named}),
        ),
        ("ten nested fallbacks", (0..10).fold(target("m"), |inner, _| fallback(&[inner]))),
    ]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let single = router(&target("m"));
    let alone = median((0..args.rounds).map(|_| nanos(measure(&runtime, &single, args.requests))).collect());
    println!("a request to a single target, router and worker in one process: {alone:.0} ns");
    println!();
    println!("| strategy | ns more than a single target |");
    println!("|---|---|");
    for (name, config) in strategies() {
        let router = router(&config);
        measure(&runtime, &router, 200);
        let differences = (0..args.rounds).map(|_| {
            let base = nanos(measure(&runtime, &single, args.requests));
            nanos(measure(&runtime, &router, args.requests)) - base
        });
        println!("| {name} | {:.0} |", median(differences.collect()));
    }
    println!();
    let large = json!({
        "strategy": {"mode": "fallback"},
        "targets": (0..10_000).map(|i| target(&format!("m{i}"))).collect::<Vec<_>>(),
    });
    let loads = (0..5).map(|_| {
        let started = Instant::now();
        black_box(settings(&large));
        started.elapsed().as_secs_f64() * 1000.0
    });
    println!("a config of 10,000 targets is read and checked in {:.0} ms", median(loads.collect()));
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}
