//! Which targets are called, in what order, and with what.

use imagegate::{
    error::{Error, ErrorKind},
    pb::{self, BillingClass},
};
use serde_json::{Value, json};
use tonic::Status;

use crate::support::{
    Gateway, Mode, Outcome, Worker, attempts, both_ways, elsewhere, fallback, model, nowhere, png, report,
    target, with,
};

fn nothing() -> Value {
    json!({})
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "the provider is down")
}

#[tokio::test]
async fn targets_are_tried_in_order_until_one_succeeds() {
    both_ways(async |mode| {
        let worker = Worker::paint()
            .script("a", Outcome::fail(Error::new(ErrorKind::PermissionDenied, "bad key").with_status(401)))
            .script("b", Outcome::fail(unavailable()));
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b", "c", "d"]));
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(worker.models_called(), ["a", "b", "c"]);
        let report = report(&result);
        assert_eq!((report.target.as_str(), report.model.as_str()), ("config.targets[2]", "c"));
        assert_eq!(
            attempts(report),
            [
                "config.targets[0] permission_denied 401",
                "config.targets[1] unavailable 503",
                "config.targets[2] ok 200"
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn every_kind_of_failure_lets_the_next_target_try() {
    let kinds = [
        ErrorKind::InvalidRequest,
        ErrorKind::Unauthenticated,
        ErrorKind::PermissionDenied,
        ErrorKind::NotFound,
        ErrorKind::ContentRejected,
        ErrorKind::Unsupported,
        ErrorKind::RateLimited,
        ErrorKind::QuotaExhausted,
        ErrorKind::Unavailable,
        ErrorKind::Timeout,
        ErrorKind::BadAnswer,
        ErrorKind::Internal,
    ];
    let failures = kinds.map(|kind| Outcome::Fail(Error::new(kind, "no"))).into_iter().chain([
        Outcome::FailLate(unavailable()),
        Outcome::Withheld,
        Outcome::TooFew,
        Outcome::Truncated,
        Outcome::Html,
        Outcome::EndsEarly,
        Outcome::Images(Vec::new()),
        Outcome::Images(vec![bytes::Bytes::new()]),
        Outcome::Status(Status::unknown("a worker without details")),
        Outcome::Status(Status::data_loss("half a body")),
    ]);
    for failure in failures {
        both_ways(async |mode| {
            let worker = Worker::paint().script("a", [failure.clone()]);
            let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b"]));
            let result = gateway.generate(&nothing()).await;
            let result = result.unwrap_or_else(|error| panic!("{failure:?}: {error:?}"));
            assert_eq!(report(&result).target, "config.targets[1]", "{failure:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_call_that_the_worker_cancelled_lets_the_next_target_try() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Status(Status::cancelled("shutting down"))]);
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b"]));
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(attempts(report(&result))[1], "config.targets[1] ok 200");
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_cannot_be_reached_lets_the_next_target_try() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        for (strategy, falls_back) in [
            (json!({"mode": "fallback"}), true),
            // What the reference shows a refused connection as, and what it really is.
            (json!({"mode": "fallback", "on_status_codes": [500]}), true),
            (json!({"mode": "fallback", "on_status_codes": [503]}), true),
            (json!({"mode": "fallback", "on_status_codes": [429]}), false),
        ] {
            let config = json!({"strategy": strategy, "targets": [{"provider": "far"}, target("b")]});
            let yaml = format!("workers: {{far: '{}'}}\nconfigs: {{it: {config}}}\n", nowhere());
            let gateway = Gateway::new(mode, &format!("{yaml}default_config: it\n"), &[&worker]);
            match gateway.generate(&nothing()).await {
                Ok(result) => assert!(falls_back, "{config}: {:?}", attempts(report(&result))),
                Err(error) => {
                    assert!(!falls_back, "{config}: {error:?}");
                    assert_eq!((error.kind, error.status), (ErrorKind::Unavailable, 503));
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_dies_during_a_call_lets_the_next_target_try() {
    for outcome in [Outcome::Silent, Outcome::Stalled] {
        let far = Worker::new("far", vec![model("a")]).script("a", [outcome]);
        let (runtime, uri) = elsewhere(&far);
        let worker = Worker::paint();
        let strategy = json!({"mode": "fallback", "on_status_codes": [500]});
        let config = json!({"strategy": strategy, "targets": [{"provider": "far"}, target("b")]});
        let yaml = format!("workers: {{far: '{uri}'}}\nconfigs: {{it: {config}}}\ndefault_config: it\n");
        let gateway = Gateway::new(Mode::OneProcess, &yaml, &[&worker]);
        let kill = async {
            far.is_called(1).await;
            runtime.shutdown_background();
        };
        let fields = json!({"model": "a"});
        let (result, ()) = futures::join!(gateway.generate(&fields), kill);
        let result = result.unwrap();
        assert_eq!(
            attempts(report(&result)),
            ["config.targets[0] unavailable 503", "config.targets[1] ok 200"]
        );
        assert_eq!(report(&result).attempts[0].billing(), BillingClass::Unknown);
        // Its record is still known, so that it is called, in vain. Whether the connection has been found dead
        // by then, so that nothing is sent, is a race.
        let again = gateway.generate(&fields).await.unwrap();
        assert_eq!(report(&again).attempts[0].outcome, "unavailable");
    }
}

#[tokio::test]
async fn status_codes_decide_what_lets_the_next_target_try() {
    let rate_limited = || Error::new(ErrorKind::RateLimited, "slow down");
    let refused = || Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, "connection refused");
    for (codes, error, falls_back) in [
        (json!([429]), unavailable().with_status(500), false),
        (json!([429]), rate_limited(), true),
        (json!([]), rate_limited(), false),
        (json!([]), unavailable(), false),
        (json!([500]), refused(), true),
        (json!([503]), refused(), true),
        (json!([429]), refused(), false),
        (json!([503]), unavailable().with_status(500), false),
        (json!([500, 529]), unavailable().with_status(529), true),
    ] {
        both_ways(async |mode| {
            let worker = Worker::paint().script("a", Outcome::fail(error.clone()));
            let strategy = json!({"strategy": {"mode": "fallback", "on_status_codes": codes}});
            let gateway = Gateway::over(mode, &worker, &with(fallback(&["a", "b"]), &strategy));
            match gateway.generate(&nothing()).await {
                Ok(_) => assert!(falls_back, "{codes} {error:?}"),
                Err(returned) => {
                    assert!(!falls_back, "{codes} {error:?}");
                    assert_eq!(returned.status, error.status);
                    assert_eq!(returned.report.as_ref().unwrap().target, "config.targets[0]");
                    assert_eq!(worker.models_called(), ["a"]);
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_refusal_is_returned_where_the_config_wants_that() {
    both_ways(async |mode| {
        for outcome in [Outcome::Fail(Error::refused("prompt", "not allowed")), Outcome::Withheld] {
            let worker = Worker::paint().script("a", [outcome]);
            let strategy = json!({"strategy": {"mode": "fallback", "on_refusal": "return"}});
            let gateway = Gateway::over(mode, &worker, &with(fallback(&["a", "b"]), &strategy));
            let error = gateway.generate(&nothing()).await.unwrap_err();
            assert_eq!((error.kind, error.status), (ErrorKind::ContentRejected, 400));
            assert_eq!(worker.models_called(), ["a"]);
        }
    })
    .await;
}

#[tokio::test]
async fn who_refused_is_told_when_another_target_answers() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Withheld]);
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b"]));
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(report(&result).refused_by, ["config.targets[0] paint"]);
    })
    .await;
}

#[tokio::test]
async fn a_target_that_cannot_serve_the_request_is_skipped_without_a_call() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &fallback(&["nosuch", "b"]));
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(worker.models_called(), ["b"]);
        let skipped = &report(&result).attempts[0];
        assert_eq!((skipped.outcome.as_str(), skipped.billing()), ("skipped", BillingClass::NotSent));
        assert!(skipped.message.contains("paint has no \"nosuch\""), "{}", skipped.message);
    })
    .await;
}

#[tokio::test]
async fn an_unsuitable_target_fails_the_request_where_the_config_wants_that() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let strategy = json!({"strategy": {"mode": "fallback", "on_unsupported": "fail"}});
        let gateway = Gateway::over(mode, &worker, &with(fallback(&["nosuch", "b"]), &strategy));
        let error = gateway.generate(&nothing()).await.unwrap_err();
        assert_eq!((error.kind, error.param.as_deref()), (ErrorKind::Unsupported, Some("model")));
        assert_eq!(worker.models_called(), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn the_last_target_speaks_for_all_when_all_were_skipped() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &fallback(&["nosuch", "neither"]));
        let error = gateway.generate(&nothing()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.starts_with("model: paint has no \"neither\""), "{}", error.message);
        assert_eq!(error.report.as_ref().unwrap().target, "config.targets[1]");
    })
    .await;
}

#[tokio::test]
async fn a_skipped_target_does_not_hide_why_the_others_failed() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", Outcome::fail(unavailable()));
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "nosuch"]));
        let error = gateway.generate(&nothing()).await.unwrap_err();
        assert_eq!((error.kind, error.status), (ErrorKind::Unavailable, 503));
        assert_eq!(error.report.as_ref().unwrap().target, "config.targets[0]");
    })
    .await;
}

#[tokio::test]
async fn when_all_are_down_the_last_status_is_returned_and_every_target_is_named() {
    both_ways(async |mode| {
        let worker = Worker::paint()
            .script("a", Outcome::fail(Error::new(ErrorKind::PermissionDenied, "bad key").with_status(401)))
            .script("b", Outcome::fail(unavailable()))
            .script("c", Outcome::fail(Error::new(ErrorKind::RateLimited, "slow down")));
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b", "c"]));
        let error = gateway.generate(&nothing()).await.unwrap_err();
        assert_eq!(
            (error.kind, error.status, error.provider.as_str()),
            (ErrorKind::RateLimited, 429, "paint")
        );
        for part in [
            "slow down (every target failed: ",
            "config.targets[0] paint: permission_denied (401): bad key",
            "config.targets[1] paint: unavailable (503): the provider is down",
            "config.targets[2] paint: rate_limited (429): slow down",
        ] {
            assert!(error.message.contains(part), "{part}: {}", error.message);
        }
        let report = error.report.as_ref().unwrap();
        assert_eq!((report.target.as_str(), report.retry_count), ("config.targets[2]", 0));
        assert!(!report.trace_id.is_empty() && !report.request_id.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_nested_fallback_names_its_targets_by_their_path() {
    both_ways(async |mode| {
        let worker = Worker::paint()
            .script("a", Outcome::fail(unavailable()))
            .script("b", Outcome::fail(unavailable()));
        let inner = with(fallback(&[]), &json!({"targets": [target("b"), target("a"), target("c")]}));
        let third = with(fallback(&[]), &json!({"targets": [target("a"), inner]}));
        let second = with(fallback(&[]), &json!({"targets": [third, target("d")]}));
        let config = with(fallback(&[]), &json!({"targets": [target("a"), second]}));
        let gateway = Gateway::over(mode, &worker, &config);
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(report(&result).target, "config.targets[1].targets[0].targets[1].targets[2]");
        assert_eq!(worker.models_called(), ["a", "a", "b", "a", "c"]);
    })
    .await;
}

#[tokio::test]
async fn single_calls_its_first_target_only() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", Outcome::fail(unavailable()));
        let config = json!({"strategy": {"mode": "single"}, "targets": [target("a"), target("b")]});
        let error = Gateway::over(mode, &worker, &config).generate(&nothing()).await.unwrap_err();
        assert_eq!(error.message, "the provider is down");
        assert_eq!(error.report.as_ref().unwrap().target, "config.targets[0]");
        assert_eq!(worker.models_called(), ["a"]);
    })
    .await;
}

#[tokio::test]
async fn parameters_are_inherited_and_reach_the_worker() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let config = json!({
            "strategy": {"mode": "fallback"},
            "override_params": {"model": "b", "style": "parent", "user": "u1"},
            "default_params": {"seed": 5, "negative_prompt": "rain", "n": 2},
            "drop_params": ["steps"],
            "strict_open_ai_compliance": false,
            "targets": [{
                "provider": "paint",
                "override_params": {"model": "a", "style": "child"},
                "default_params": {"seed": 6},
                "drop_params": ["negative_prompt"],
            }],
        });
        let gateway = Gateway::over(mode, &worker, &config);
        let result =
            gateway.generate(&json!({"model": "d", "style": "mine", "steps": 9, "n": 3})).await.unwrap();
        let sent = worker.only_request().image.unwrap();
        assert_eq!((sent.model.as_str(), sent.style.as_str(), sent.end_user.as_str()), ("a", "child", "u1"));
        assert_eq!((sent.seed, sent.steps, sent.n), (Some(6), None, Some(3)));
        assert_eq!(sent.negative_prompt, "");
        assert!(!report(&result).strict_open_ai_compliance);
    })
    .await;
}

#[tokio::test]
async fn what_one_target_overrides_does_not_reach_the_next() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", Outcome::fail(unavailable()));
        let first =
            json!({"provider": "paint", "override_params": {"model": "a", "style": "first", "seed": 1}});
        let config = json!({"strategy": {"mode": "fallback"}, "targets": [first, {"provider": "paint"}]});
        let gateway = Gateway::over(mode, &worker, &config);
        gateway.generate(&json!({"model": "b", "style": "mine"})).await.unwrap();
        let sent = &worker.images()[1];
        assert_eq!((sent.model.as_str(), sent.style.as_str(), sent.seed), ("b", "mine", None));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_models_limit_is_met_by_several_calls_in_a_stable_order() {
    both_ways(async |mode| {
        let one = pb::ModelCapability { max_n: 1, ..model("one") };
        // The first call is the last to finish, and its image the smallest.
        let later_is_faster = |request: &pb::ImageRequest| {
            let place = request.seed.unwrap() - 40;
            let side = 10 + u32::try_from(place).unwrap();
            let pause = std::time::Duration::from_millis(30 - 10 * place);
            Outcome::After(pause, Box::new(Outcome::Images(vec![png(side, side, 1)])))
        };
        let worker = Worker::new("paint", vec![one]).script("one", [Outcome::By(later_is_faster)]);
        let gateway = Gateway::over(mode, &worker, &target("one"));
        let result = gateway.generate(&json!({"n": 3, "seed": 40})).await.unwrap();
        assert_eq!(result.images.iter().map(|image| image.width).collect::<Vec<_>>(), [10, 11, 12]);
        let mut sent: Vec<_> = worker.images().iter().map(|image| (image.seed, image.n)).collect();
        sent.sort_unstable();
        assert_eq!(sent, [(Some(40), Some(1)), (Some(41), Some(1)), (Some(42), Some(1))]);
        let numbers: Vec<_> = report(&result).attempts.iter().map(|attempt| attempt.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(report(&result).retry_count, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_failed_call_of_several_fails_the_target_and_gives_up_the_others() {
    both_ways(async |mode| {
        let one = pb::ModelCapability { max_n: 1, ..model("one") };
        let second_fails = |request: &pb::ImageRequest| match request.seed {
            Some(8) => {
                let down = Outcome::Fail(Error::new(ErrorKind::Unavailable, "the second is down"));
                Outcome::After(std::time::Duration::from_millis(50), Box::new(down))
            }
            _ => Outcome::Silent,
        };
        let worker = Worker::new("paint", vec![one, model("b")]).script("one", [Outcome::By(second_fails)]);
        let gateway = Gateway::over(mode, &worker, &fallback(&["one", "b"]));
        let result = gateway.generate(&json!({"n": 3, "seed": 7})).await.unwrap();
        worker.is_dropped(2).await;
        assert_eq!(
            attempts(report(&result)),
            [
                "config.targets[0] cancelled 0",
                "config.targets[0] unavailable 503",
                "config.targets[0] cancelled 0",
                "config.targets[1] ok 200"
            ]
        );
        assert_eq!(report(&result).attempts[0].billing(), BillingClass::Unknown);
        assert_eq!(result.images.len(), 3);
    })
    .await;
}
