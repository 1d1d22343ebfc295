//! `cargo bench --bench month`: a month of requests in the request log (docs/benchmarks.md).
//!
//! A million requests over every price in the book are charged by `route::cost`, written through the store, summed up
//! by it, and compared with an invoice that is computed otherwise. Then the log is searched, and forgotten.

#![expect(clippy::print_stdout, reason = "the tables are what this program is for")]

mod invoice;
mod traffic;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use imagegate::{
    config::memory::{Keeps, MemorySettings, StoreChoice, VaultKeys},
    pb::{GetUsageRequest, RequestFilter, UsageGroup},
    store::{Logged, Store},
};
use tokio::time::Instant;

use crate::{
    invoice::{ATTOS, Invoice, cents},
    traffic::{FROM_MS, MONTH_MS, TENANT, Traffic},
};

#[derive(Debug, Parser)]
struct Args {
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,

    /// Requests of the month
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,

    /// Where the log is kept afterwards, and searched again if it is there; nothing is forgotten then
    #[arg(long)]
    keep: Option<PathBuf>,

    /// Times that each search is made
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let temporary = tempfile::tempdir().expect("a folder can be made");
    let folder = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let is_there = folder.join("imagegate.db").exists();
    let settings = MemorySettings {
        store: StoreChoice::File,
        vault: Some(VaultKeys { current: Arc::new([1; 32]), previous: Vec::new() }),
        keeps: Keeps::default(),
        retention: Duration::from_secs(1),
        flush_every: Duration::from_millis(500),
    };
    let store = Store::open(&settings, &folder).await.expect("the store can be opened");
    if !is_there {
        fill(&store, args.requests).await;
    }
    let file = std::fs::metadata(folder.join("imagegate.db")).expect("the log is a file");
    println!("{:.0} bytes a request, indexes included", file.len() as f64 / args.requests as f64);
    searches(&store, args.rounds).await;
    usages(&store).await;
    if args.keep.is_none() {
        let started = Instant::now();
        let half = store.forget_before(FROM_MS + MONTH_MS / 2).await.expect("the log forgets");
        println!("forgetting {half} requests: {:.1} s", started.elapsed().as_secs_f64());
    }
}

async fn fill(store: &Store, requests: u64) {
    let (mut invoice, mut batch) = (Invoice::default(), Vec::<Logged>::new());
    let traffic = Traffic::new(requests);
    println!("{requests} requests over {} entries of price books", traffic.models());
    let mut writing = Duration::ZERO;
    for made in traffic {
        made.calls.iter().for_each(|call| invoice.add(call));
        batch.push(made.logged);
        if batch.len() == 2000 {
            write(store, &mut batch, &mut writing).await;
        }
    }
    write(store, &mut batch, &mut writing).await;
    println!("writing: {:.0} requests/s in batches of 2,000", requests as f64 / writing.as_secs_f64());
    compare(store, &invoice).await;
}

async fn write(store: &Store, batch: &mut Vec<Logged>, writing: &mut Duration) {
    let started = Instant::now();
    let written = store.log(batch).await.expect("the log is written");
    *writing += started.elapsed();
    assert_eq!(written.kept, batch.len());
    batch.clear();
}

async fn usage(store: &Store, tenant: &str, group_by: &str) -> Vec<UsageGroup> {
    let request = GetUsageRequest { group_by: group_by.to_owned(), ..Default::default() };
    store.usage(tenant, &request).await.expect("usage is summed up")
}

async fn compare(store: &Store, invoice: &Invoice) {
    let mut ours = BTreeMap::<(&str, String), i128>::new();
    for by in ["", "day", "provider", "model"] {
        for tenant in [TENANT, "other"] {
            for group in usage(store, tenant, by).await {
                let key = if by == "day" { String::new() } else { group.key };
                *ours.entry((by, key)).or_default() +=
                    (group.cost_usd * 1e9).round() as i128 * (ATTOS / 1_000_000_000);
            }
        }
    }
    let dollars = |attos: i128| format!("{:.9}", attos as f64 / ATTOS as f64);
    println!("\n| | log, USD | invoice, USD | difference, USD | cents |");
    println!("|---|---:|---:|---:|---|");
    let mut differ = 0;
    let mut row = |name: &str, ours: i128, theirs: i128| {
        let same = cents(ours) == cents(theirs);
        differ += usize::from(!same);
        let cents = if same { "equal" } else { "DIFFERENT" };
        println!(
            "| {name} | {} | {} | {} | {cents} |",
            dollars(ours),
            dollars(theirs),
            dollars(ours - theirs)
        );
    };
    for (provider, theirs) in &invoice.by_provider {
        row(provider, ours[&("provider", provider.clone())], *theirs);
    }
    row("all", ours[&("", String::new())], invoice.total);
    row("all, by day", ours[&("day", String::new())], invoice.total);
    let models = invoice.by_model.iter();
    let models =
        models.filter(|(model, theirs)| cents(ours[&("model", (*model).clone())]) == cents(**theirs));
    println!("\nmodels equal to the cent: {} of {}", models.count(), invoice.by_model.len());
    println!("calls: {}, of unknown price: {}\n", invoice.calls, invoice.unpriced);
    assert_eq!(differ, 0, "the log and the invoice differ");
}

/// Every kind of search, with values that are common, rare and never there.
fn filters() -> Vec<(&'static str, RequestFilter)> {
    let none = RequestFilter::default;
    let metadata = |pairs: &[(&str, &str)]| {
        let metadata = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        RequestFilter { metadata: metadata.collect(), ..none() }
    };
    let provider = |name: &str| RequestFilter { provider: name.into(), ..none() };
    let model = |name: &str| RequestFilter { model: name.into(), ..none() };
    let caller = |number: usize| format!("00000000-0000-4000-8000-{number:012x}");
    let day = FROM_MS + 12 * 86_400_000;
    vec![
        ("everything", none()),
        ("a day", RequestFilter { from_unix_ms: Some(day), until_unix_ms: Some(day + 86_400_000), ..none() }),
        ("a time without requests", RequestFilter { from_unix_ms: Some(FROM_MS + 2 * MONTH_MS), ..none() }),
        ("provider, common", provider("bedrock")),
        ("provider, rare", provider("sandbox")),
        ("provider, none", provider("nobody")),
        ("model, common", model("gpt-image-2")),
        ("model, rare", model("by-the-second")),
        ("model, none", model("nothing")),
        (
            "provider and a model of another",
            RequestFilter { model: "gpt-image-1.5".into(), ..provider("bedrock") },
        ),
        ("config, common", RequestFilter { config: "pc-config-3-3f9a1c".into(), ..none() }),
        ("config, none", RequestFilter { config: "pc-none".into(), ..none() }),
        ("key, common", RequestFilter { caller: caller(0), ..none() }),
        ("key, rare", RequestFilter { caller: caller(198), ..none() }),
        ("key, none", RequestFilter { caller: "nobody".into(), ..none() }),
        ("virtual key, common", RequestFilter { virtual_key: "bedrock-key-1".into(), ..none() }),
        ("virtual key, none", RequestFilter { virtual_key: "none".into(), ..none() }),
        ("status 200", RequestFilter { statuses: vec![200], ..none() }),
        ("status 429", RequestFilter { statuses: vec![429], ..none() }),
        ("status 429, 502, 503", RequestFilter { statuses: vec![429, 502, 503], ..none() }),
        ("status, none", RequestFilter { statuses: vec![418], ..none() }),
        ("status, none that succeeds", RequestFilter { statuses: vec![206, 299], ..none() }),
        ("answered", RequestFilter { success: Some(true), ..none() }),
        ("failed", RequestFilter { success: Some(false), ..none() }),
        ("fallback", RequestFilter { fallback: Some(true), ..none() }),
        ("no fallback", RequestFilter { fallback: Some(false), ..none() }),
        ("refused", RequestFilter { refused: Some(true), ..none() }),
        ("not refused", RequestFilter { refused: Some(false), ..none() }),
        (
            "refused, and answered by a fallback",
            RequestFilter { refused: Some(true), fallback: Some(true), ..none() },
        ),
        (
            "failed, and answered by a fallback",
            RequestFilter { success: Some(false), fallback: Some(true), ..none() },
        ),
        ("cache hit", RequestFilter { cache_status: "hit".into(), ..none() }),
        ("cache status, rare", RequestFilter { cache_status: "refresh".into(), ..none() }),
        ("cache status, none", RequestFilter { cache_status: "semantic_hit".into(), ..none() }),
        ("trace id, none", RequestFilter { trace_id: "nothing".into(), ..none() }),
        ("metadata, common", metadata(&[("environment", "production")])),
        ("metadata, one in twelve", metadata(&[("team", "team-7")])),
        ("metadata, rare", metadata(&[("_user", "user-77")])),
        ("metadata, none", metadata(&[("team", "nobody")])),
        ("metadata, two common", metadata(&[("environment", "staging"), ("team", "team-3")])),
        ("metadata, two that never meet", metadata(&[("environment", "staging"), ("team", "nobody")])),
        ("cost, common", RequestFilter { min_cost_usd: Some(0.04), max_cost_usd: Some(0.08), ..none() }),
        ("cost, rare", RequestFilter { min_cost_usd: Some(2.39), ..none() }),
        ("cost, none", RequestFilter { min_cost_usd: Some(1000.0), ..none() }),
        (
            "cost, none between",
            RequestFilter { min_cost_usd: Some(0.000_000_001), max_cost_usd: Some(0.000_000_002), ..none() },
        ),
        ("provider and cost, none", RequestFilter { min_cost_usd: Some(1000.0), ..provider("bedrock") }),
        (
            "provider and metadata",
            RequestFilter { provider: "fal".into(), ..metadata(&[("team", "team-7")]) },
        ),
        ("key and metadata", RequestFilter { caller: caller(0), ..metadata(&[("team", "team-7")]) }),
        (
            "metadata and cost, none",
            RequestFilter { min_cost_usd: Some(1000.0), ..metadata(&[("team", "team-7")]) },
        ),
        (
            "hits that cost something",
            RequestFilter { cache_status: "hit".into(), min_cost_usd: Some(0.01), ..none() },
        ),
        (
            "everything at once",
            RequestFilter {
                from_unix_ms: Some(FROM_MS),
                until_unix_ms: Some(FROM_MS + MONTH_MS),
                config: "pc-config-3-3f9a1c".into(),
                statuses: vec![200],
                success: Some(true),
                refused: Some(false),
                fallback: Some(true),
                min_cost_usd: Some(0.01),
                max_cost_usd: Some(1.0),
                ..metadata(&[("environment", "production"), ("team", "team-7")])
            },
        ),
    ]
}

async fn searches(store: &Store, rounds: usize) {
    println!("\n| search | found on page 1 | ms | worst ms | ms, page 20 | ms, page in the middle |");
    println!("|---|---:|---:|---:|---:|---:|");
    let page = store.list_requests(TENANT, &RequestFilter::default(), 0, "").await.expect("the log is read");
    let trace = &page.requests[7].trace_id;
    let by_trace = ("trace id", RequestFilter { trace_id: trace.clone(), ..RequestFilter::default() });
    let mut slowest = (0.0, "");
    for (name, filter) in [by_trace].into_iter().chain(filters()) {
        let mut times = Vec::new();
        let mut found = 0;
        for _ in 0..rounds {
            let (ms, page) = search(store, &filter, "").await;
            times.push(ms);
            found = page.0;
        }
        times.sort_by(f64::total_cmp);
        let worst = times[times.len() - 1];
        let (mut token, mut deep) = (String::new(), None);
        for number in 1..=20 {
            let (ms, (_, next)) = search(store, &filter, &token).await;
            deep = (number == 20).then_some(ms);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        // As if somebody had read on until then.
        let middle = format!("{}.x", FROM_MS + MONTH_MS / 2);
        let (ms, _) = search(store, &filter, &middle).await;
        let deep_text = deep.map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        println!("| {name} | {found} | {:.1} | {worst:.1} | {deep_text} | {ms:.1} |", times[times.len() / 2]);
        let here = [worst, ms, deep.unwrap_or_default()].into_iter().fold(0.0, f64::max);
        if here > slowest.0 {
            slowest = (here, name);
        }
    }
    println!("\nslowest of all: {:.1} ms, {}\n", slowest.0, slowest.1);
}

async fn search(store: &Store, filter: &RequestFilter, token: &str) -> (f64, (usize, String)) {
    let started = Instant::now();
    let page = store.list_requests(TENANT, filter, 50, token).await.expect("the log is read");
    (started.elapsed().as_secs_f64() * 1000.0, (page.requests.len(), page.next_page_token))
}

async fn usages(store: &Store) {
    println!("| usage of the month by | groups | ms |");
    println!("|---|---:|---:|");
    for by in [
        "",
        "day",
        "hour",
        "provider",
        "model",
        "caller",
        "config",
        "virtual_key",
        "operation",
        "status",
        "cache_status",
        "metadata.team",
        "metadata._user",
    ] {
        let started = Instant::now();
        let groups = usage(store, TENANT, by).await.len();
        let name = if by.is_empty() { "nothing" } else { by };
        println!("| {name} | {groups} | {:.0} |", started.elapsed().as_secs_f64() * 1000.0);
    }
    println!();
}
