//! What the request log says of a request once it is over.

use std::{sync::Arc, time::Duration};

use imagegate::{
    config::{
        callers::{Caller, Scope, digest},
        images::ImagesSettings,
        memory::{Keeps, MemorySettings, StoreChoice},
        saved::{Saved, SavedCaller},
    },
    objects::{Objects, gallery::Gallery},
    pb,
    store::{Store, journal::Journal},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{pause, resume, sleep};

use crate::support::{Gateway, Outcome, Worker, ask, fails, message, rate_limited, slow, target, with};

/// A gateway with a log.
pub struct House {
    pub gateway: Arc<Gateway>,
    pub store: Arc<Store>,
    journal: Arc<Journal>,
    _folder: TempDir,
}

impl House {
    /// With one config over one worker.
    pub async fn over(worker: &Arc<Worker>, config: &Value) -> Self {
        Self::new(worker, &format!("configs: {{it: {config}}}\ndefault_config: it\n")).await
    }

    /// With a whole configuration.
    pub async fn new(worker: &Arc<Worker>, yaml: &str) -> Self {
        Self::remembering(worker, yaml, &Saved::default()).await
    }

    /// The same with what was saved while it ran.
    pub async fn remembering(worker: &Arc<Worker>, yaml: &str, saved: &Saved) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = MemorySettings {
            store: StoreChoice::File,
            vault: None,
            keeps: Keeps::default(),
            retention: Duration::from_secs(3600),
            flush_every: Duration::from_millis(10),
        };
        let store = Arc::new(Store::open(&settings, folder.path()).await.unwrap());
        let images = ImagesSettings::below(folder.path());
        let journal = Journal::new(Gallery::new(Objects::open(&images).unwrap()));
        let gateway = Arc::new(Gateway::logging(worker, yaml, saved, &journal));
        Self { gateway, store, journal, _folder: folder }
    }

    /// What the log has, the oldest first. The store does not know of paused clocks.
    pub async fn records(&self) -> Vec<pb::RequestRecord> {
        self.journal.flush(Some(&self.store)).await;
        let listed =
            self.store.list_requests("default", &pb::RequestFilter::default(), 1000, "").await.unwrap();
        let mut records = Vec::new();
        for request in listed.requests.iter().rev() {
            records.push(self.store.get_request("default", &request.id).await.unwrap());
        }
        records
    }
}

/// In milliseconds, to ten of them: timers may be late by one.
fn millis(micros: u64) -> u64 {
    micros / 10_000 * 10
}

#[tokio::test]
async fn the_log_tells_where_the_time_went() {
    let worker = Worker::paint();
    let failing = Outcome::After(Duration::from_millis(300), Box::new(rate_limited(Duration::from_secs(2))));
    worker.script("a", [failing, Outcome::After(Duration::from_millis(50), Box::new(fails(500)))]);
    worker.script("b", [slow(1000)]);
    let config = json!({
        "strategy": {"mode": "fallback"},
        "retry": {"attempts": 1, "use_retry_after_header": true},
        "targets": [target("a"), target("unknown"), target("b")],
    });
    let house = House::over(&worker, &config).await;
    pause();
    house.gateway.generate(&json!({})).await.unwrap();
    resume();
    let record = house.records().await.remove(0);
    let timings = record.timings.unwrap();
    let [routing, cache, upstream, verifying] =
        [timings.routing_us, timings.cache_us, timings.upstream_us, timings.verifying_us].map(millis);
    assert_eq!((routing, cache, upstream, verifying), (0, 0, 1350, 0));
    // What the provider asked for, and a part of it by chance.
    assert!((2000..=3010).contains(&millis(timings.waiting_us)), "{timings:?}");
    assert_eq!(record.duration_ms, timings.total_us / 1000);
    assert!(timings.gateway_us().abs_diff(timings.waiting_us) <= 10_000, "{timings:?}");
    assert_eq!(timings.first_preview_us, None);
    let attempts = record.report.unwrap().attempts;
    let waited = timings.waiting_us / 1000;
    let expected = [[0, 300], [300 + waited, 50], [350 + waited, 0], [350 + waited, 1000]];
    assert_eq!(attempts.len(), expected.len());
    for (attempt, [began, took]) in attempts.iter().zip(expected) {
        let is_near = |a: u64, b: u64| a.abs_diff(b) <= 10;
        assert!(is_near(attempt.started_ms, began) && is_near(attempt.duration_ms, took), "{attempt:?}");
    }
}

#[tokio::test]
async fn waiting_for_the_same_answer_is_no_call() {
    let worker = Worker::paint().script("a", [slow(1000)]);
    let config = with(target("a"), &json!({"cache": {"mode": "simple"}}));
    let house = House::over(&worker, &config).await;
    let later = async |key: &'static str, seed: u64| {
        sleep(Duration::from_millis(400)).await;
        house.gateway.generate_with(&json!({"seed": seed}), &[("idempotency-key", key)]).await.unwrap();
    };
    pause();
    tokio::join!(
        async {
            house.gateway.generate_with(&json!({"seed": 1}), &[("idempotency-key", "k1")]).await.unwrap()
        },
        // The same request comes again with its key, and without: it waits for its turn, or for what comes into the cache.
        later("k1", 1),
        later("k2", 1),
    );
    resume();
    let records = house.records().await;
    let spent = |i: usize| {
        let timings = records[i].timings.unwrap();
        [timings.upstream_us, timings.waiting_us, timings.cache_us].map(millis)
    };
    assert_eq!(spent(0), [1000, 0, 0]);
    let mut others = [spent(1), spent(2)];
    others.sort_unstable();
    assert_eq!(others, [[0, 0, 600], [0, 600, 0]]);
}

#[tokio::test]
async fn the_first_preview_has_its_time() {
    let late = |then| Outcome::After(Duration::from_millis(700), Box::new(then));
    let worker = Worker::paint().script("a", [late(Outcome::Previews(2, Box::new(slow(300))))]);
    let house = House::over(&worker, &target("a")).await;
    pause();
    house.gateway.stream(&json!({"partial_images": 2})).await.1.unwrap();
    resume();
    let timings = house.records().await.remove(0).timings.unwrap();
    assert_eq!((timings.first_preview_us.map(millis), millis(timings.total_us)), (Some(700), 1000));
}

#[tokio::test]
async fn lists_tell_of_retries_hedges_and_adjusted_parameters() {
    let worker = Worker::paint()
        .script("a", [fails(503), slow(100)])
        .script("b", [slow(5000)])
        .script("d", [slow(100)]);
    let retry = with(target("a"), &json!({"retry": {"attempts": 1, "on_status_codes": [503]}}));
    let strategy = json!({"mode": "hedge", "after_ms": 1000, "budget": 1});
    let hedge = json!({"strategy": strategy, "targets": [target("b"), target("d")]});
    let yaml =
        format!("configs: {{it: {}, retry: {retry}, hedge: {hedge}}}\ndefault_config: it\n", target("c"));
    let house = House::new(&worker, &yaml).await;
    pause();
    for (config, asked) in
        [("it", json!({})), ("retry", json!({})), ("hedge", json!({})), ("it", json!({"guidance": 7}))]
    {
        house.gateway.generate_with(&asked, &[("x-portkey-config", config)]).await.unwrap();
    }
    resume();
    house.records().await;
    let listed = house.store.list_requests("default", &pb::RequestFilter::default(), 10, "").await.unwrap();
    let badges: Vec<_> = listed.requests.iter().rev().map(|record| record.badges().join(" ")).collect();
    assert_eq!(badges, ["", "retry calls:2", "fallback hedge calls:2", "adjusted"]);
}

fn saved_caller(key: &str, scope: Scope) -> SavedCaller {
    let (id, scopes) = (format!("id of {key}"), [scope].into());
    let metadata = json!({"team": "red"}).as_object().unwrap().clone();
    let caller = Caller { id, scopes, metadata, ..Caller::anybody() };
    SavedCaller { digest: digest(key), expires_ms: None, caller }
}

#[tokio::test]
async fn what_was_refused_before_its_route_was_known_is_in_the_log_of_its_caller() {
    let worker = Worker::paint();
    let yaml = format!("configs: {{it: {}}}\ndefault_config: it\n", target("a"));
    let callers = vec![saved_caller("ig-app", Scope::Generate), saved_caller("ig-ops", Scope::Logs)];
    let saved = Saved { callers, ..Saved::default() };
    let house = House::remembering(&worker, &yaml, &saved).await;
    let app = ("x-portkey-api-key", "ig-app");
    let too_many = ask(&json!({}));
    let too_many = pb::ImageRequest { n: Some(99), ..too_many };
    for (image, headers, status) in [
        (too_many.clone(), vec![app, ("x-portkey-trace-id", "t-1")], 400),
        (ask(&json!({"prompt": "a secret"})), vec![app, ("x-portkey-config", "gone")], 404),
        (ask(&json!({})), vec![("x-portkey-api-key", "ig-ops")], 403),
        (too_many.clone(), vec![app, ("x-portkey-debug", "false")], 400),
        (ask(&json!({})), vec![app, ("idempotency-key", &*"k".repeat(5000))], 400),
        // Strangers fill nobody's log.
        (ask(&json!({})), vec![("x-portkey-api-key", "ig-wrong")], 401),
        (ask(&json!({})), vec![], 401),
    ] {
        let sent =
            house.gateway.send(message(pb::GenerateImageRequest { image: Some(image) }, &headers)).await;
        assert_eq!(sent.unwrap_err().status, status, "{headers:?}");
    }
    let records = house.records().await;
    let told: Vec<_> = records
        .iter()
        .map(|record| (record.status, &*record.outcome, &*record.caller, &*record.config))
        .collect();
    let expected = [
        (400, "invalid_request", "id of ig-app", "it"),
        (404, "not_found", "id of ig-app", ""),
        (403, "permission_denied", "id of ig-ops", ""),
        (400, "invalid_request", "id of ig-app", "it"),
        (400, "invalid_request", "id of ig-app", "it"),
    ];
    assert_eq!(told, expected);
    let [first, second, _, private, _] = &records[..] else { panic!() };
    assert_eq!((first.trace_id.as_str(), first.cost_usd), ("t-1", Some(0.0)));
    assert_eq!((first.asked.as_ref().unwrap().n, &*first.metadata["team"]), (Some(99), "red"));
    assert!(first.error_message.contains("n: 99 is not allowed"), "{}", first.error_message);
    assert!(second.error_message.contains("gone") && !format!("{second:?}").contains("a secret"));
    assert!(private.asked.is_none() && private.error_message.is_empty());
    assert!(worker.requests().is_empty());
    // What no target was looked for tells nothing about targets.
    let tried = house.gateway.local().dry_run("default", "tried", &target("b")).unwrap().of(first).await;
    assert_eq!(tried.reason, "not_routed");
}

#[tokio::test]
async fn a_flood_of_refused_requests_is_kept_in_part() {
    let house = House::over(&Worker::paint(), &target("a")).await;
    let wrong = pb::ImageRequest { n: Some(99), ..ask(&json!({})) };
    for _ in 0..200 {
        let request = message(pb::GenerateImageRequest { image: Some(wrong.clone()) }, &[]);
        house.gateway.send(request).await.unwrap_err();
    }
    house.gateway.generate(&json!({})).await.unwrap();
    let records = house.records().await;
    assert!((20..60).contains(&records.len()), "{}", records.len());
    assert_eq!(records.last().unwrap().status, 200);
}
