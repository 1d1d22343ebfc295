//! What the request log says of a request once it is over.

use std::{sync::Arc, time::Duration};

use imagegate::{
    config::{
        memory::{MemorySettings, StoreChoice},
        saved::Saved,
    },
    pb,
    store::{Store, journal::Journal},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{pause, resume, sleep};

use crate::support::{Gateway, Outcome, Worker, fails, rate_limited, slow, target, with};

/// A gateway with a log.
pub struct House {
    pub gateway: Arc<Gateway>,
    pub store: Store,
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
            prompts: false,
            retention: Duration::from_secs(3600),
            flush_every: Duration::from_millis(10),
        };
        let store = Store::open(&settings, folder.path()).await.unwrap();
        let journal = Journal::new();
        let gateway = Arc::new(Gateway::logging(worker, yaml, saved, &journal));
        Self { gateway, store, journal, _folder: folder }
    }

    /// What the log has, the oldest first. The store does not know of paused clocks.
    pub async fn records(&self) -> Vec<pb::RequestRecord> {
        self.journal.flush(&self.store).await;
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
