//! Which answers are given again, to whom, for how long; and requests that wait for the same answer.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use imagegate::{
    error::{Error, ErrorKind, Result},
    pb::{self, CacheStatus, stream_image_response::Event},
};
use serde_json::{Value, json};
use tokio::time::{Instant, advance, sleep, timeout};

use crate::support::{
    Gateway, Outcome, Worker, ask, attempts, both_ways, fallback, message, model, png, report, target,
    warnings, with,
};

fn nothing() -> Value {
    json!({})
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "the provider is down")
}

/// A target with a cache.
fn cached(model: &str) -> Value {
    with(target(model), &json!({"cache": {"mode": "simple"}}))
}

/// The same as JSON, for a request of its own.
fn config_header(config: &Value) -> String {
    config.to_string()
}

fn status(result: &Result<pb::ImageResult>) -> CacheStatus {
    match result {
        Ok(result) => report(result).cache_status(),
        Err(error) => error.report.as_ref().unwrap().cache_status(),
    }
}

fn count(results: &[Result<pb::ImageResult>], wanted: CacheStatus) -> usize {
    results.iter().filter(|result| status(result) == wanted).count()
}

/// What a slow provider gives after some seconds.
fn slow(seconds: u64) -> Outcome {
    Outcome::After(Duration::from_secs(seconds), Box::new(Outcome::Good))
}

#[tokio::test]
async fn an_answer_is_given_again_without_a_call() {
    both_ways(async |mode| {
        let usage = Some(pb::Usage { output_image_tokens: Some(7), ..Default::default() });
        let made = pb::GenerateDone { usage, ..Default::default() };
        let worker =
            Worker::paint().script("a", [Outcome::Done(Box::new(made)), Outcome::Fail(unavailable())]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let first = gateway.generate(&json!({"n": 2})).await.unwrap();
        assert_eq!(report(&first).cache_status(), CacheStatus::Miss);
        // The same target at another place: the report is about the plan that ran now.
        let elsewhere = json!({"strategy": {"mode": "fallback"}, "targets": [cached("a")]});
        let headers = [("x-portkey-config", &*config_header(&elsewhere))];
        let second = gateway.generate_with(&json!({"n": 2}), &headers).await.unwrap();
        assert_eq!(worker.requests().len(), 1);
        assert_eq!(second.images, first.images);
        assert_eq!((second.usage, second.applied), (first.usage, first.applied));
        let report = report(&second);
        assert_eq!(report.cache_status(), CacheStatus::Hit);
        assert_eq!((report.target.as_str(), report.model.as_str()), ("config.targets[0]", "a"));
        assert_eq!((report.attempts.len(), report.cost_lines.len(), report.retry_count), (0, 0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_target_without_a_cache_neither_reads_nor_writes_one() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let plain = config_header(&target("b"));
        gateway.generate(&nothing()).await.unwrap();
        for expected in [2, 3] {
            let plain = config_header(&target("a"));
            let result = gateway.generate_with(&nothing(), &[("x-portkey-config", &plain)]).await;
            assert_eq!(status(&result), CacheStatus::Unspecified);
            assert_eq!(worker.requests().len(), expected);
        }
        gateway.generate_with(&nothing(), &[("x-portkey-config", &plain)]).await.unwrap();
        let then_cached = config_header(&cached("b"));
        let result = gateway.generate_with(&nothing(), &[("x-portkey-config", &then_cached)]).await;
        assert_eq!(status(&result), CacheStatus::Miss);
    })
    .await;
}

#[tokio::test]
async fn an_operator_or_a_caller_can_switch_it_off() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let yaml = format!("configs: {{it: {}}}\ndefault_config: it\n", cached("a"));
        let off = Gateway::new(mode, &format!("{yaml}limits: {{cache_bytes: 0}}\n"), &[&worker]);
        for _ in 0..2 {
            assert_eq!(status(&off.generate(&nothing()).await), CacheStatus::Unspecified);
        }
        let on = Gateway::new(mode, &yaml, &[&worker]);
        for _ in 0..2 {
            let result = on.generate_with(&nothing(), &[("x-portkey-debug", "false")]).await;
            assert_eq!(status(&result), CacheStatus::Unspecified);
        }
        assert_eq!(status(&on.generate(&nothing()).await), CacheStatus::Miss);
        assert_eq!(worker.requests().len(), 5);
    })
    .await;
}

#[tokio::test]
async fn callers_never_share_an_answer() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let yaml = format!(
            "configs: {{it: {}}}\ndefault_config: it\napi_keys:\n  - {{name: one, key: ig-1}}\n  - {{name: two, \
             key: ig-2}}\n  - {{name: one, key: ig-3}}\nauth: open\n",
            cached("a")
        );
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        for (key, expected) in [
            ("ig-1", CacheStatus::Miss),
            ("ig-2", CacheStatus::Miss),
            ("nobody", CacheStatus::Miss),
            ("ig-1", CacheStatus::Hit),
            ("ig-2", CacheStatus::Hit),
            ("nobody", CacheStatus::Hit),
            // Another key of the same caller.
            ("ig-3", CacheStatus::Hit),
        ] {
            let result = gateway.generate_with(&nothing(), &[("x-portkey-api-key", key)]).await;
            assert_eq!(status(&result), expected, "{key}");
        }
    })
    .await;
}

/// C1: provider, address and credential are part of what is asked.
#[tokio::test]
async fn a_request_with_another_credential_host_provider_or_forwarded_header_is_another() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let vault = Worker::locked("vault", vec![model("a")]);
        let gateway = Gateway::new(mode, "auth: open\n", &[&worker, &vault]);
        let own = |provider: &str| {
            json!({
                "provider": provider, "api_key": "sk-own", "cache": {"mode": "simple"},
                "override_params": {"model": "a"},
            })
        };
        let other_key = with(own("vault"), &json!({"api_key": "sk-other"}));
        let host = with(own("vault"), &json!({"custom_host": "https://one.example"}));
        let other_host = with(own("vault"), &json!({"custom_host": "https://two.example"}));
        let organization = with(own("vault"), &json!({"openai_organization": "two"}));
        let forwarding = with(own("vault"), &json!({"forward_headers": ["x-team"]}));
        let configs = [own("paint"), own("vault"), other_key, host, other_host, organization, forwarding];
        for expected in [CacheStatus::Miss, CacheStatus::Hit] {
            for config in &configs {
                let headers = [("x-portkey-config", &*config_header(config)), ("x-team", "one")];
                let result = gateway.generate_with(&nothing(), &headers).await;
                assert_eq!(status(&result), expected, "{config}");
            }
        }
        let headers = [("x-portkey-config", &*config_header(&configs[6])), ("x-team", "two")];
        assert_eq!(status(&gateway.generate_with(&nothing(), &headers).await), CacheStatus::Miss);
    })
    .await;
}

#[tokio::test]
async fn a_provider_key_that_comes_with_the_request_separates_its_owners() {
    both_ways(async |mode| {
        let vault = Worker::locked("vault", vec![model("a")]);
        let gateway = Gateway::new(mode, "auth: open\n", &[&vault]);
        let config = json!({"passthrough": true, "cache": {"mode": "simple"}}).to_string();
        let send = async |bearer: &str| {
            let headers =
                [("x-portkey-config", &*config), ("x-portkey-provider", "vault"), ("authorization", bearer)];
            status(&gateway.generate_with(&json!({"model": "a"}), &headers).await)
        };
        assert_eq!(send("Bearer sk-one").await, CacheStatus::Miss);
        assert_eq!(send("Bearer sk-two").await, CacheStatus::Miss);
        assert_eq!(send("Bearer sk-one").await, CacheStatus::Hit);
    })
    .await;
}

#[tokio::test]
async fn which_of_the_operators_keys_pays_makes_no_difference() {
    both_ways(async |mode| {
        let vault = Worker::locked("vault", vec![model("a")]);
        let yaml = "virtual_keys:\n  one: {provider: vault, api_key: sk-1}\n  two: {provider: vault, api_key: sk-2}\n";
        let gateway = Gateway::new(mode, yaml, &[&vault]);
        for (key, expected) in [("one", CacheStatus::Miss), ("two", CacheStatus::Hit)] {
            let config = json!({
                "virtual_key": key, "cache": {"mode": "simple"}, "override_params": {"model": "a"},
            });
            let headers = [("x-portkey-config", &*config_header(&config))];
            assert_eq!(status(&gateway.generate_with(&nothing(), &headers).await), expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_namespace_separates_and_the_requests_beats_the_configs() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let config = with(target("a"), &json!({"cache": {"mode": "simple", "namespace": "night"}}));
        let gateway = Gateway::over(mode, &worker, &config);
        for (namespace, expected) in [
            (None, CacheStatus::Miss),
            (Some("day"), CacheStatus::Miss),
            (Some("night"), CacheStatus::Hit),
            (Some("day"), CacheStatus::Hit),
            (None, CacheStatus::Hit),
        ] {
            let headers: Vec<_> =
                namespace.map(|name| ("x-portkey-cache-namespace", name)).into_iter().collect();
            let result = gateway.generate_with(&nothing(), &headers).await;
            assert_eq!(status(&result), expected, "{namespace:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_caller_says_about_a_request_makes_no_other_image() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        for (metadata, expected) in [("{\"_user\":\"x\"}", CacheStatus::Miss), ("{}", CacheStatus::Hit)] {
            let headers = [("x-portkey-metadata", metadata), ("x-portkey-trace-id", metadata)];
            assert_eq!(status(&gateway.generate_with(&nothing(), &headers).await), expected);
        }
    })
    .await;
}

/// C3, and semantic without anybody who could compare prompts.
#[tokio::test]
async fn semantic_without_embeddings_keeps_answers_for_the_same_prompt_and_says_so() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let config = with(target("a"), &json!({"cache": {"mode": "semantic"}}));
        let gateway = Gateway::over(mode, &worker, &config);
        for expected in [CacheStatus::Miss, CacheStatus::Hit] {
            let result = gateway.generate(&nothing()).await.unwrap();
            assert_eq!(report(&result).cache_status(), expected);
            assert_eq!(warnings(&result), ["cache ACTION_NOTICE"]);
        }
    })
    .await;
}

/// C4: seconds are seconds.
#[tokio::test(start_paused = true)]
async fn an_answer_lives_for_max_age_seconds_from_when_it_was_stored() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(30)]);
        let config = with(target("a"), &json!({"cache": {"mode": "simple", "max_age": 60}}));
        let gateway = Gateway::over(mode, &worker, &config);
        assert_eq!(status(&gateway.generate(&nothing()).await), CacheStatus::Miss);
        advance(Duration::from_secs(59)).await;
        assert_eq!(status(&gateway.generate(&nothing()).await), CacheStatus::Hit);
        advance(Duration::from_secs(1)).await;
        assert_eq!(status(&gateway.generate(&nothing()).await), CacheStatus::Miss);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_gets_nothing_older_than_its_own_max_age() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let config = |seconds: u64| {
            with(target("a"), &json!({"cache": {"mode": "simple", "max_age": seconds}})).to_string()
        };
        let gateway = Gateway::new(mode, "auth: open\n", &[&worker]);
        let send = async |seconds: u64| {
            let config = config(seconds);
            status(&gateway.generate_with(&nothing(), &[("x-portkey-config", &config)]).await)
        };
        assert_eq!(send(1000).await, CacheStatus::Miss);
        advance(Duration::from_secs(100)).await;
        assert_eq!(send(1000).await, CacheStatus::Hit);
        assert_eq!(send(101).await, CacheStatus::Hit);
        assert_eq!(send(100).await, CacheStatus::Miss);
        // What that request had made is new again.
        assert_eq!(send(10).await, CacheStatus::Hit);
    })
    .await;
}

/// C5: only `true` refreshes.
#[tokio::test]
async fn a_refresh_makes_a_new_answer_and_keeps_it() {
    both_ways(async |mode| {
        let images = [1, 2].map(|shade| Outcome::Images(vec![png(8, 8, shade)]));
        let worker = Worker::paint().script("a", images);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let mut seen = Vec::new();
        for (refresh, expected) in [
            ("false", CacheStatus::Miss),
            ("false", CacheStatus::Hit),
            ("1", CacheStatus::Hit),
            ("TRUE", CacheStatus::Refresh),
            ("", CacheStatus::Hit),
        ] {
            let headers = [("x-portkey-cache-force-refresh", refresh)];
            let result = gateway.generate_with(&nothing(), &headers).await;
            assert_eq!(status(&result), expected, "{refresh}");
            seen.push(result.unwrap().images[0].data.clone());
        }
        assert_eq!(seen, [1, 1, 1, 2, 2].map(|shade| png(8, 8, shade)));
        let plain = config_header(&target("a"));
        let headers = [("x-portkey-cache-force-refresh", "true"), ("x-portkey-config", &plain)];
        let result = gateway.generate_with(&nothing(), &headers).await;
        assert_eq!(status(&result), CacheStatus::Unspecified);
    })
    .await;
}

/// C6.
#[tokio::test]
async fn failures_are_never_kept() {
    for failure in [
        Outcome::Fail(unavailable()),
        Outcome::Fail(Error::new(ErrorKind::InvalidRequest, "no")),
        Outcome::Fail(Error::refused("prompt", "not allowed")),
        Outcome::Withheld,
        Outcome::TooFew,
        Outcome::Truncated,
        Outcome::Html,
        Outcome::EndsEarly,
    ] {
        both_ways(async |mode| {
            let worker = Worker::paint().script("a", [failure.clone(), Outcome::Good]);
            let gateway = Gateway::over(mode, &worker, &cached("a"));
            let failed = gateway.generate(&nothing()).await;
            assert!(failed.is_err() && status(&failed) == CacheStatus::Miss, "{failure:?}");
            let answered = gateway.generate(&nothing()).await;
            assert!(answered.is_ok() && status(&answered) == CacheStatus::Miss, "{failure:?}");
            assert_eq!(status(&gateway.generate(&nothing()).await), CacheStatus::Hit);
        })
        .await;
    }
}

/// C7.
#[tokio::test]
async fn after_a_fallback_the_answer_of_the_target_that_gave_it_is_kept() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Fail(unavailable()), Outcome::Good]);
        let config = with(fallback(&["a", "b"]), &json!({"cache": {"mode": "simple"}}));
        let gateway = Gateway::over(mode, &worker, &config);
        let first = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(report(&first).target, "config.targets[1]");
        // The first target has nothing to give again, so it is asked.
        let second = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(attempts(report(&second)), ["config.targets[0] ok 200"]);
        assert_eq!(worker.models_called(), ["a", "b", "a"]);
        // The second one's answer is there for whom the first one fails.
        let only = config_header(&cached("b"));
        let third = gateway.generate_with(&nothing(), &[("x-portkey-config", &only)]).await;
        assert_eq!(status(&third), CacheStatus::Hit);
    })
    .await;
}

#[tokio::test]
async fn a_failed_request_has_the_cache_status_of_the_last_target_tried() {
    both_ways(async |mode| {
        let worker = Worker::paint()
            .script("a", Outcome::fail(unavailable()))
            .script("b", Outcome::fail(unavailable()));
        let gateway = Gateway::new(mode, "auth: open\n", &[&worker]);
        let unable = json!({"provider": "paint", "override_params": {"model": "unheard-of"}});
        for (targets, expected) in [
            (json!([cached("a"), target("b")]), CacheStatus::Unspecified),
            (json!([target("a"), cached("b")]), CacheStatus::Miss),
            (json!([cached("a"), unable]), CacheStatus::Miss),
        ] {
            let config = json!({"strategy": {"mode": "fallback"}, "targets": targets}).to_string();
            let result = gateway.generate_with(&nothing(), &[("x-portkey-config", &config)]).await;
            assert_eq!(status(&result), expected, "{targets}");
        }
    })
    .await;
}

/// C8: what a target does not take is no part of what it is asked.
#[tokio::test]
async fn requests_that_become_the_same_call_share_an_answer_and_each_is_told_what_was_changed() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        for (fields, expected, said) in [
            (json!({"background": "transparent"}), CacheStatus::Miss, vec!["background ACTION_DROPPED"]),
            (json!({}), CacheStatus::Hit, vec![]),
            (json!({"quality": "hd"}), CacheStatus::Hit, vec!["quality ACTION_DROPPED"]),
            (json!({"seed": 1}), CacheStatus::Miss, vec![]),
            (json!({"style": "vivid"}), CacheStatus::Miss, vec![]),
            (json!({"size": "64x64"}), CacheStatus::Miss, vec![]),
            (json!({"prompt": "a dog"}), CacheStatus::Miss, vec![]),
            (json!({"n": 2}), CacheStatus::Miss, vec![]),
        ] {
            let result = gateway.generate(&fields).await.unwrap();
            assert_eq!(report(&result).cache_status(), expected, "{fields}");
            assert_eq!(warnings(&result), said, "{fields}");
        }
    })
    .await;
}

/// C9.
#[tokio::test]
async fn answers_take_no_more_memory_than_they_may() {
    both_ways(async |mode| {
        let image = png(64, 64, 1);
        let worker = Worker::paint().script("a", [Outcome::Images(vec![image.clone()])]);
        let room = 3 * (image.len() + 1100);
        let yaml = format!(
            "configs: {{it: {}}}\ndefault_config: it\nlimits: {{cache_bytes: {room}}}\n",
            cached("a")
        );
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        let send = async |prompt: &str| status(&gateway.generate(&json!({"prompt": prompt})).await);
        for prompt in ["one", "two", "three"] {
            assert_eq!(send(prompt).await, CacheStatus::Miss);
        }
        assert_eq!(send("one").await, CacheStatus::Hit);
        assert_eq!(send("four").await, CacheStatus::Miss);
        for (prompt, expected) in [
            ("one", CacheStatus::Hit),
            ("three", CacheStatus::Hit),
            ("four", CacheStatus::Hit),
            ("two", CacheStatus::Miss),
        ] {
            assert_eq!(send(prompt).await, expected, "{prompt}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_is_not_kept_but_shared_with_those_who_waited() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(1)]);
        let yaml =
            format!("configs: {{it: {}}}\ndefault_config: it\nlimits: {{cache_bytes: 10}}\n", cached("a"));
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        let fields = nothing();
        let results = join_all((0..3).map(|_| gateway.generate(&fields))).await;
        assert_eq!(count(&results, CacheStatus::Hit), 2);
        assert_eq!(status(&gateway.generate(&nothing()).await), CacheStatus::Miss);
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn answers_outlive_the_configuration() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let yaml = format!("configs: {{it: {}}}\ndefault_config: it\n", cached("a"));
        let mut gateway = Gateway::new(mode, &yaml, &[&worker]);
        gateway.generate(&nothing()).await.unwrap();
        gateway.reload(&format!("{yaml}retired_models: fail\n"), &[&worker]);
        assert_eq!(status(&gateway.generate(&nothing()).await), CacheStatus::Hit);
        // Less room is less room at once.
        gateway.reload(&format!("{yaml}limits: {{cache_bytes: 100}}\n"), &[&worker]);
        assert_eq!(status(&gateway.generate(&nothing()).await), CacheStatus::Miss);
    })
    .await;
}

#[tokio::test]
async fn edits_of_different_images_are_different() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let send = async |shade: u8, mask: Option<u8>| {
            let image = pb::ImageRequest {
                inputs: vec![pb::InputImage {
                    source: Some(pb::input_image::Source::Data(png(16, 16, shade))),
                    ..Default::default()
                }],
                mask: mask.map(|shade| pb::Mask { data: png(16, 16, shade), polarity: 0 }),
                ..ask(&nothing())
            };
            let request = message(pb::EditImageRequest { image: Some(image) }, &[]);
            let answer = gateway.router().edit_image(request).await.unwrap();
            report(&answer.into_inner().result.unwrap()).cache_status()
        };
        for expected in [CacheStatus::Miss, CacheStatus::Hit] {
            for (shade, mask) in [(1, None), (2, None), (1, Some(1)), (1, Some(2))] {
                assert_eq!(send(shade, mask).await, expected, "{shade} {mask:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_gets_a_kept_answer_as_chunks_and_result_without_previews() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Previews(2, Box::new(Outcome::Good))]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = json!({"partial_images": 2});
        let mut images = Vec::new();
        for (expected, previews) in [(CacheStatus::Miss, 2), (CacheStatus::Hit, 0)] {
            let (events, end) = gateway.stream(&fields).await;
            end.unwrap();
            let seen = events.iter().filter(|event| matches!(event, Event::PartialImage(_))).count();
            assert_eq!(seen, previews);
            let Some(Event::Result(result)) = events.last() else { panic!("{events:?}") };
            assert_eq!(report(result).cache_status(), expected);
            let chunks = events.iter().filter_map(|event| match event {
                Event::ImageChunk(chunk) => Some(chunk.data.clone()),
                _ => None,
            });
            images.push(chunks.collect::<Vec<Bytes>>().concat());
        }
        assert_eq!(images[0], images[1]);
        // Without previews it is the same image.
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(report(&result).cache_status(), CacheStatus::Hit);
        assert_eq!(result.images[0].data, images[0]);
        assert_eq!(worker.requests().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_kept_answer_needs_no_healthy_target() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Good, Outcome::Fail(unavailable())]);
        let fragile = with(cached("a"), &json!({"breaker": {"consecutive_failures": 1}}));
        let config = json!({"strategy": {"mode": "fallback"}, "targets": [fragile, target("b")]});
        let gateway = Gateway::over(mode, &worker, &config);
        gateway.generate(&nothing()).await.unwrap();
        let other = gateway.generate(&json!({"prompt": "a dog"})).await.unwrap();
        assert_eq!(report(&other).target, "config.targets[1]");
        let skipped = gateway.generate(&json!({"prompt": "a dog"})).await.unwrap();
        assert_eq!(report(&skipped).attempts[0].reason, "breaker_open");
        let again = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(report(&again).cache_status(), CacheStatus::Hit);
        assert_eq!(report(&again).target, "config.targets[0]");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_requests_for_the_same_answer_make_one_call() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(20)]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = nothing();
        let results = join_all((0..100).map(|_| gateway.generate(&fields))).await;
        assert_eq!(worker.requests().len(), 1);
        assert_eq!(count(&results, CacheStatus::Miss), 1);
        assert_eq!(count(&results, CacheStatus::Hit), 99);
        let images: Vec<_> = results.into_iter().map(|result| result.unwrap().images).collect();
        assert!(images.iter().all(|other| *other == images[0]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn if_whoever_makes_the_call_goes_away_one_of_those_who_wait_makes_it() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent, slow(1)]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = nothing();
        let leaver = timeout(Duration::from_secs(5), gateway.generate(&fields));
        let others = async {
            worker.is_called(1).await;
            join_all((0..10).map(|_| gateway.generate(&fields))).await
        };
        let (left, results) = futures::join!(leaver, others);
        assert!(left.is_err());
        worker.is_dropped(1).await;
        assert_eq!(worker.requests().len(), 2);
        assert_eq!(count(&results, CacheStatus::Miss), 1);
        assert_eq!(count(&results, CacheStatus::Hit), 9);
        assert!(results.iter().all(Result::is_ok));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_by_all_who_waited_for_the_call() {
    both_ways(async |mode| {
        let failure = Outcome::After(Duration::from_secs(3), Box::new(Outcome::Fail(unavailable())));
        let worker = Worker::paint().script("a", [failure]);
        let config = with(fallback(&["a", "b"]), &json!({"cache": {"mode": "simple"}}));
        let gateway = Gateway::over(mode, &worker, &config);
        let fields = json!({"quality": "hd"});
        let results = join_all((0..10).map(|_| gateway.generate(&fields))).await;
        // One call each: the failure is shared, and so is the next target's answer.
        assert_eq!(worker.models_called(), ["a", "b"]);
        let seen: Vec<_> = results.iter().map(|result| attempts(report(result.as_ref().unwrap()))).collect();
        let led = ["config.targets[0] unavailable 503", "config.targets[1] ok 200"];
        assert_eq!(seen.iter().filter(|attempts| **attempts == led).count(), 1);
        let waited = seen.iter().filter(|attempts| **attempts == ["config.targets[0] skipped 0"]).count();
        assert_eq!(waited, 9);
        let waited = results.iter().map(|result| &report(result.as_ref().unwrap()).attempts[0]);
        for attempt in waited.filter(|attempt| attempt.outcome == "skipped") {
            assert_eq!(
                (attempt.reason.as_str(), attempt.message.as_str()),
                ("shared_failure", "the provider is down")
            );
            assert_eq!(attempt.billing(), pb::BillingClass::NotSent);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn those_who_share_a_failure_get_it_with_its_status_and_what_was_changed() {
    both_ways(async |mode| {
        let failure = Error::new(ErrorKind::RateLimited, "slow down");
        let failure = Outcome::After(Duration::from_secs(3), Box::new(Outcome::Fail(failure)));
        let worker = Worker::paint().script("a", [failure]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = json!({"quality": "hd"});
        let results = join_all((0..10).map(|_| gateway.generate(&fields))).await;
        assert_eq!(worker.requests().len(), 1);
        for error in results.into_iter().map(Result::unwrap_err) {
            assert_eq!((error.kind, error.status), (ErrorKind::RateLimited, 429));
            let report = error.report.as_ref().unwrap();
            assert_eq!((report.cache_status(), report.target.as_str()), (CacheStatus::Miss, "config"));
            assert_eq!(report.warnings[0].field, "quality");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_time_does_not_fail_those_who_have_it() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent, Outcome::Good]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = nothing();
        let hasty = gateway.generate_within(Duration::from_secs(5), &fields);
        let patient = async {
            worker.is_called(1).await;
            join_all((0..10).map(|_| gateway.generate(&fields))).await
        };
        let (hasty, patient) = futures::join!(hasty, patient);
        assert_eq!(hasty.unwrap_err().kind, ErrorKind::Timeout);
        assert!(patient.iter().all(Result::is_ok));
        assert_eq!(count(&patient, CacheStatus::Hit), 9);
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn those_who_run_out_of_time_together_do_not_call_one_after_the_other() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = nothing();
        let results = join_all((0..20).map(async |i| {
            sleep(Duration::from_millis(20 * i)).await;
            gateway.generate_within(Duration::from_secs(5), &fields).await
        }))
        .await;
        assert_eq!(worker.requests().len(), 1);
        for error in results.into_iter().map(Result::unwrap_err) {
            assert_eq!((error.kind, error.status), (ErrorKind::Timeout, 504));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_targets_own_limit_fails_all_who_waited_at_once() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]);
        let config = with(cached("a"), &json!({"request_timeout": 3000}));
        let gateway = Gateway::over(mode, &worker, &config);
        let (fields, begun) = (nothing(), Instant::now());
        let results = join_all((0..10).map(|_| gateway.generate(&fields))).await;
        assert!(begun.elapsed() < Duration::from_millis(3100));
        assert_eq!(worker.requests().len(), 1);
        assert!(results.iter().all(|result| result.as_ref().unwrap_err().status == 408));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_call_under_other_limits_than_its_own() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(10)]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = nothing();
        let patient = gateway.generate(&fields);
        let hasty = async {
            worker.is_called(1).await;
            gateway.generate_with(&fields, &[("x-portkey-request-timeout", "2000")]).await
        };
        let (patient, hasty) = futures::join!(patient, hasty);
        assert_eq!(status(&patient), CacheStatus::Miss);
        assert_eq!(hasty.unwrap_err().status, 408);
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_its_own_deadline() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(20)]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = nothing();
        let patient = gateway.generate(&fields);
        let hasty = async {
            worker.is_called(1).await;
            let begun = Instant::now();
            let failed = gateway.generate_within(Duration::from_secs(5), &fields).await;
            (failed.unwrap_err(), begun.elapsed())
        };
        let (patient, (error, waited)) = futures::join!(patient, hasty);
        assert!(patient.is_ok());
        assert!(waited <= Duration::from_secs(5), "{waited:?}");
        assert_eq!((error.kind, error.status), (ErrorKind::Timeout, 504));
        assert_eq!(attempts(error.report.as_ref().unwrap()), ["config skipped 0"]);
        assert_eq!(worker.requests().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_waits_for_no_call_that_began_before_it_and_is_not_undone_by_it() {
    both_ways(async |mode| {
        let [early, late] = [1, 2].map(|shade| Outcome::Images(vec![png(8, 8, shade)]));
        let early = Outcome::After(Duration::from_secs(20), Box::new(early));
        let worker = Worker::paint().script("a", [early, late]);
        let gateway = Gateway::over(mode, &worker, &cached("a"));
        let fields = nothing();
        let first = gateway.generate(&fields);
        let refresh = async {
            worker.is_called(1).await;
            let headers = [("x-portkey-cache-force-refresh", "true")];
            gateway.generate_with(&fields, &headers).await
        };
        let (first, refreshed) = futures::join!(first, refresh);
        assert_eq!((status(&first), status(&refreshed)), (CacheStatus::Miss, CacheStatus::Refresh));
        let again = gateway.generate(&fields).await.unwrap();
        assert_eq!(report(&again).cache_status(), CacheStatus::Hit);
        assert_eq!(again.images[0].data, png(8, 8, 2));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hedge_over_the_same_target_still_makes_its_second_call() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent, Outcome::Good]);
        let config = json!({
            "strategy": {"mode": "hedge", "after_ms": 1000}, "targets": [cached("a"), cached("a")],
        });
        let gateway = Gateway::over(mode, &worker, &config);
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(report(&result).target, "config.targets[1]");
        assert_eq!(status(&gateway.generate(&nothing()).await), CacheStatus::Hit);
    })
    .await;
}
