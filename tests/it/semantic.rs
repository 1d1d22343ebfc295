//! Answers to prompts that mean the same, with a strict embeddings endpoint on this machine.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use futures::future::join_all;
use imagegate::pb::CacheStatus;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::support::{Gateway, Mode, Outcome, Worker, both_ways, report, target, with};

/// A prompt's direction is how often it has each of these.
const WORDS: [&str; 4] = ["cat", "dog", "red", "night"];

/// An embeddings endpoint, with the prompts it was asked about.
struct Endpoint {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl Endpoint {
    async fn new() -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let answer = async move |headers: HeaderMap, body: Bytes| match read(&headers, &body) {
            Ok(prompt) => {
                seen.lock().unwrap().push(prompt.clone());
                embedding(&prompt).await
            }
            Err(what) => panic!("a malformed request: {what}"),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/embeddings", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        let routes = Router::new().route("/v1/embeddings", post(answer));
        server.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, asked, _server: server }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn gateway(&self, mode: Mode, worker: &Arc<Worker>, threshold: f64) -> Gateway {
        let cache = json!({"cache": {"mode": "semantic", "threshold": threshold}});
        let config = with(target("a"), &cache);
        let url = &self.url;
        let yaml = format!(
            "configs: {{it: {config}}}\ndefault_config: it\nembeddings: {{url: '{url}', model: words, api_key: \
             {{env: PAINT_KEY}}, timeout_ms: 300}}\n"
        );
        Gateway::new(mode, &yaml, &[worker])
    }
}

fn read(headers: &HeaderMap, body: &[u8]) -> Result<String, &'static str> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if header("content-type") != Some("application/json") {
        return Err("content type");
    }
    if header("authorization") != Some("Bearer sk-stored") {
        return Err("credential");
    }
    let body: Value = serde_json::from_slice(body).map_err(|_| "not JSON")?;
    let prompt = body["input"].as_str().ok_or("no input")?.to_owned();
    let expected = json!({"model": "words", "input": prompt, "encoding_format": "float"});
    if body == expected { Ok(prompt) } else { Err("fields") }
}

async fn embedding(prompt: &str) -> Response {
    let count = |word: &&str| prompt.matches(*word).count() as f64;
    let body = match prompt {
        "slow" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return StatusCode::OK.into_response();
        }
        "down" => return (StatusCode::INTERNAL_SERVER_ERROR, "oops").into_response(),
        "empty" => json!({"data": []}),
        "zero" => json!({"data": [{"embedding": [0.0, 0.0, 0.0, 0.0]}]}),
        "odd" => json!({"data": [{"embedding": "AAAA"}]}),
        "page" => return (StatusCode::OK, "<html>").into_response(),
        _ => {
            let embedding: Vec<f64> = WORDS.iter().map(count).collect();
            json!({"object": "list", "model": "words", "data": [{"index": 0, "embedding": embedding}]})
        }
    };
    axum::Json(body).into_response()
}

async fn send(gateway: &Gateway, fields: &Value) -> CacheStatus {
    report(&gateway.generate(fields).await.unwrap()).cache_status()
}

async fn paint(gateway: &Gateway, prompt: &str) -> CacheStatus {
    send(gateway, &json!({"prompt": prompt})).await
}

#[tokio::test]
async fn a_prompt_that_means_the_same_gets_the_same_answer() {
    both_ways(async |mode| {
        let (endpoint, worker) = (Endpoint::new().await, Worker::paint());
        let gateway = endpoint.gateway(mode, &worker, 0.9);
        let first = gateway.generate(&json!({"prompt": "a red cat"})).await.unwrap();
        assert_eq!(report(&first).cache_status(), CacheStatus::SemanticMiss);
        // The very same prompt is found without asking what it means.
        assert_eq!(paint(&gateway, "a red cat").await, CacheStatus::Hit);
        assert_eq!(endpoint.asked(), ["a red cat"]);
        let near = gateway.generate(&json!({"prompt": "a cat, red"})).await.unwrap();
        assert_eq!(report(&near).cache_status(), CacheStatus::SemanticHit);
        assert_eq!(near.images, first.images);
        assert_eq!((report(&near).attempts.len(), report(&near).cost_lines.len()), (0, 0));
        assert_eq!(worker.requests().len(), 1);
        for prompt in ["a red dog", "a cat at night"] {
            assert_eq!(paint(&gateway, prompt).await, CacheStatus::SemanticMiss);
        }
        assert_eq!(paint(&gateway, "a dog: red").await, CacheStatus::SemanticHit);
        assert_eq!(worker.requests().len(), 3);
    })
    .await;
}

#[tokio::test]
async fn only_prompts_are_near_each_other() {
    both_ways(async |mode| {
        let (endpoint, worker) = (Endpoint::new().await, Worker::paint());
        let gateway = endpoint.gateway(mode, &worker, 0.0);
        assert_eq!(paint(&gateway, "a cat").await, CacheStatus::SemanticMiss);
        for fields in [json!({"n": 2}), json!({"seed": 1}), json!({"size": "64x64"}), json!({"model": "b"})] {
            let mut fields = fields;
            fields["prompt"] = "the cat".into();
            // The config names the model, whatever the request says.
            let same = fields.get("model").is_some();
            let expected = if same { CacheStatus::SemanticHit } else { CacheStatus::SemanticMiss };
            assert_eq!(send(&gateway, &fields).await, expected, "{fields}");
        }
        let headers = [("x-portkey-cache-namespace", "other")];
        let result = gateway.generate_with(&json!({"prompt": "the cat"}), &headers).await.unwrap();
        assert_eq!(report(&result).cache_status(), CacheStatus::SemanticMiss);
    })
    .await;
}

#[tokio::test]
async fn without_an_embedding_the_image_is_made_all_the_same() {
    both_ways(async |mode| {
        let (endpoint, worker) = (Endpoint::new().await, Worker::paint());
        let gateway = endpoint.gateway(mode, &worker, 0.0);
        assert_eq!(paint(&gateway, "a cat").await, CacheStatus::SemanticMiss);
        for prompt in ["down", "empty", "zero", "odd", "page", "slow"] {
            let begun = Instant::now();
            assert_eq!(paint(&gateway, prompt).await, CacheStatus::SemanticMiss, "{prompt}");
            assert!(begun.elapsed() < Duration::from_secs(30), "{prompt}");
            assert_eq!(paint(&gateway, prompt).await, CacheStatus::Hit, "{prompt}");
        }
        assert_eq!(worker.requests().len(), 7);
    })
    .await;
}

#[tokio::test]
async fn nobody_there_is_no_embedding_either() {
    both_ways(async |mode| {
        let mut endpoint = Endpoint::new().await;
        endpoint.url = format!("{}/v1/embeddings", crate::support::nowhere());
        let worker = Worker::paint();
        let gateway = endpoint.gateway(mode, &worker, 0.0);
        for expected in [CacheStatus::SemanticMiss, CacheStatus::Hit] {
            assert_eq!(paint(&gateway, "a cat").await, expected);
        }
    })
    .await;
}

#[tokio::test]
async fn requests_for_the_same_answer_ask_once_what_it_means() {
    both_ways(async |mode| {
        let slow = Outcome::After(Duration::from_millis(300), Box::new(Outcome::Good));
        let (endpoint, worker) = (Endpoint::new().await, Worker::paint().script("a", [slow]));
        let gateway = endpoint.gateway(mode, &worker, 0.9);
        let statuses = join_all((0..10).map(|_| paint(&gateway, "a cat"))).await;
        assert_eq!(statuses.iter().filter(|status| **status == CacheStatus::Hit).count(), 9);
        assert_eq!((endpoint.asked().len(), worker.requests().len()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_refreshed_answer_is_found_by_prompts_like_its_own() {
    both_ways(async |mode| {
        let (endpoint, worker) = (Endpoint::new().await, Worker::paint());
        let gateway = endpoint.gateway(mode, &worker, 0.9);
        let headers = [("x-portkey-cache-force-refresh", "true")];
        for _ in 0..2 {
            let result = gateway.generate_with(&json!({"prompt": "a cat"}), &headers).await.unwrap();
            assert_eq!(report(&result).cache_status(), CacheStatus::Refresh);
        }
        assert_eq!(paint(&gateway, "the cat").await, CacheStatus::SemanticHit);
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn prompts_are_sent_for_semantic_caches_only() {
    both_ways(async |mode| {
        let (endpoint, worker) = (Endpoint::new().await, Worker::paint());
        let gateway = endpoint.gateway(mode, &worker, 0.9);
        for cache in [json!({}), json!({"cache": {"mode": "simple"}})] {
            let config = with(target("a"), &cache).to_string();
            gateway.generate_with(&json!({}), &[("x-portkey-config", &config)]).await.unwrap();
        }
        let off = [("x-portkey-debug", "false")];
        gateway.generate_with(&json!({"prompt": "secret"}), &off).await.unwrap();
        assert!(endpoint.asked().is_empty());
    })
    .await;
}
