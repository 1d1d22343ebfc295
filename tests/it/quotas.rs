//! Rate limits and budgets: what they count, what they let through, and what they say.

use std::sync::Arc;

use futures::future::join_all;
use imagegate::{
    error::{Error, ErrorKind},
    pb::{self, BillingClass},
};
use serde_json::json;

use crate::support::{Gateway, Mode, Outcome, Worker, attempts, both_ways, fails, model, report, warnings};

const YAML: &str = "
workers: {vault: 'http://vault.example:50061'}
virtual_keys:
  few: {provider: vault, api_key: {env: PAINT_KEY}, rate_limits: [{type: requests, unit: rpw, value: 2}]}
  poor:
    provider: vault
    api_key: {env: PAINT_KEY}
    usage_limits: {type: cost, credit_limit: 0.10, periodic_reset: monthly}
configs:
  paint: {provider: paint, override_params: {model: a}}
  twice: {provider: paint, override_params: {model: a}, retry: {attempts: 2, on_status_codes: [500], jitter: false}}
  few: {virtual_key: few, override_params: {model: v}}
  poor: {virtual_key: poor, override_params: {model: v}}
  rescued: {strategy: {mode: fallback}, targets: [{virtual_key: few, override_params: {model: v}}, {provider: paint, override_params: {model: a}}]}
  kept: {provider: paint, override_params: {model: a}, cache: {mode: simple}}
default_config: paint
api_keys:
  - {name: free, key: ig-free}
  - {name: slow, key: ig-slow, rate_limits: [{unit: rpw, value: 2}]}
  - {name: tight, key: ig-tight, usage_limits: {credit_limit: 0.20}}
  - {name: red-one, key: ig-red-one, tenant: red}
  - {name: red-two, key: ig-red-two, tenant: red}
quotas:
  - {tenant: red, rate_limits: [{unit: rpw, value: 3}]}
  - {metadata: _user, usage_limits: {credit_limit: 0.08}}
";

/// A model at four cents an image.
fn priced(name: &str) -> pb::ModelCapability {
    let price = pb::Price { item: "image".into(), usd: 0.04, ..Default::default() };
    pb::ModelCapability { prices: vec![price], ..model(name) }
}

struct House {
    gateway: Gateway,
    paint: Arc<Worker>,
    vault: Arc<Worker>,
}

fn house(mode: Mode) -> House {
    let paint = Worker::new("paint", vec![priced("a"), priced("b")]);
    let vault = Worker::locked("vault", vec![priced("v")]);
    House { gateway: Gateway::new(mode, YAML, &[&paint, &vault]), paint, vault }
}

impl House {
    async fn ask(&self, key: &str, more: &[(&'static str, &str)]) -> Result<pb::ImageResult, Error> {
        self.ask_for(&json!({}), key, more).await
    }

    async fn ask_for(
        &self,
        fields: &serde_json::Value,
        key: &str,
        more: &[(&'static str, &str)],
    ) -> Result<pb::ImageResult, Error> {
        let headers = [&[("x-portkey-api-key", key)], more].concat();
        self.gateway.generate_with(fields, &headers).await
    }
}

#[tokio::test]
async fn a_callers_rate_limit_refuses_the_request_before_anything_is_tried() {
    both_ways(async |mode| {
        let house = house(mode);
        for _ in 0..2 {
            house.ask("ig-slow", &[]).await.unwrap();
        }
        let error = house.ask("ig-slow", &[]).await.unwrap_err();
        assert_eq!(
            (error.kind, error.status, error.billing),
            (ErrorKind::RateLimited, 429, BillingClass::NotSent)
        );
        assert!(error.retry_after.is_some_and(|pause| pause.as_secs() <= 7 * 86_400), "{error:?}");
        let said = "the rate limit of API key \"slow\" is reached: 2 requests a week; it resets at ";
        assert!(error.message.starts_with(said), "{}", error.message);
        assert!(error.report.as_ref().is_some_and(|report| report.attempts.is_empty()));
        house.ask("ig-free", &[]).await.unwrap();
        assert_eq!(house.paint.requests().len(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_tenants_limit_is_shared_by_its_callers() {
    both_ways(async |mode| {
        let house = house(mode);
        for key in ["ig-red-one", "ig-red-two", "ig-red-one"] {
            house.ask(key, &[]).await.unwrap();
        }
        let error = house.ask("ig-red-two", &[]).await.unwrap_err();
        assert!(
            error.message.starts_with("the rate limit of tenant \"red\" is reached"),
            "{}",
            error.message
        );
        house.ask("ig-free", &[]).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn each_value_of_metadata_has_a_budget_of_its_own() {
    both_ways(async |mode| {
        let house = house(mode);
        let user = |name: &'static str| [("x-portkey-metadata", name)];
        let (al, bo) = (user(r#"{"_user": "al"}"#), user(r#"{"_user": "bo"}"#));
        for _ in 0..2 {
            house.ask("ig-free", &al).await.unwrap();
        }
        let error = house.ask("ig-free", &al).await.unwrap_err();
        assert_eq!((error.kind, error.status), (ErrorKind::QuotaExhausted, 412));
        assert_eq!(
            error.message,
            "the budget of metadata _user=al is spent: $0.08 in all; it does not reset"
        );
        house.ask("ig-free", &bo).await.unwrap();
        house.ask("ig-free", &[]).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_virtual_keys_limit_is_a_failure_of_its_target() {
    both_ways(async |mode| {
        let house = house(mode);
        let rescued = [("x-portkey-config", "rescued")];
        for _ in 0..2 {
            assert_eq!(report(&house.ask("ig-free", &rescued).await.unwrap()).provider, "vault");
        }
        let result = house.ask("ig-free", &rescued).await.unwrap();
        let seen = report(&result);
        assert_eq!((seen.provider.as_str(), seen.attempts[0].reason.as_str()), ("paint", "over_quota"));
        assert_eq!(attempts(seen), ["config.targets[0] skipped 0", "config.targets[1] ok 200"]);
        let error = house.ask("ig-free", &[("x-portkey-config", "few")]).await.unwrap_err();
        assert_eq!((error.kind, error.status), (ErrorKind::RateLimited, 429));
        assert!(error.message.starts_with("the rate limit of virtual key \"few\""), "{}", error.message);
        assert_eq!(house.vault.requests().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_budget_says_what_is_left_and_takes_what_fits() {
    both_ways(async |mode| {
        let house = house(mode);
        let poor = [("x-portkey-config", "poor")];
        house.ask_for(&json!({"n": 2}), "ig-free", &poor).await.unwrap();
        let error = house.ask("ig-free", &poor).await.unwrap_err();
        assert_eq!((error.status, error.code.as_deref()), (412, Some("budget_exceeded")));
        let said = "the budget of virtual key \"poor\" has $0.02 left and the call is expected to cost $0.04: $0.10 a month";
        assert!(error.message.starts_with(said), "{}", error.message);
        assert_eq!(house.vault.requests().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn calls_that_cost_nothing_leave_the_budget_as_it_was() {
    both_ways(async |mode| {
        let house = house(mode);
        house.paint.script("a", [fails(500), fails(500), fails(500), Outcome::Good]);
        for _ in 0..3 {
            house.ask("ig-tight", &[]).await.unwrap_err();
        }
        for _ in 0..5 {
            house.ask("ig-tight", &[]).await.unwrap();
        }
        assert_eq!(house.ask("ig-tight", &[]).await.unwrap_err().status, 412);
    })
    .await;
}

#[tokio::test]
async fn a_call_that_may_have_been_billed_counts_as_if_it_was() {
    both_ways(async |mode| {
        let house = house(mode);
        let lost = Error::transport(ErrorKind::Unavailable, BillingClass::Unknown, "the connection broke");
        let filtered = Outcome::Withheld;
        house.paint.script("a", [Outcome::Fail(lost), filtered, Outcome::Good]);
        for _ in 0..2 {
            house.ask("ig-tight", &[]).await.unwrap_err();
        }
        for _ in 0..3 {
            house.ask("ig-tight", &[]).await.unwrap();
        }
        assert_eq!(house.ask("ig-tight", &[]).await.unwrap_err().status, 412);
        assert_eq!(house.paint.requests().len(), 5);
    })
    .await;
}

#[tokio::test]
async fn a_hundred_at_once_spend_no_more_than_there_is() {
    both_ways(async |mode| {
        let house = house(mode);
        let all = join_all((0..100).map(|_| house.ask("ig-tight", &[]))).await;
        let good = all.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!((good, house.paint.requests().len()), (5, 5));
        assert!(all.iter().filter_map(|outcome| outcome.as_ref().err()).all(|error| error.status == 412));
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_held() {
    both_ways(async |mode| {
        let house = house(mode);
        house.paint.script("a", [Outcome::Silent, Outcome::Good]);
        let gone = house.ask("ig-tight", &[]);
        tokio::select! {
            _ = gone => panic!("it cannot be answered"),
            () = house.paint.is_called(1) => {}
        }
        house.paint.is_dropped(1).await;
        // It may have been billed, and so it has cost what was expected; nothing else is missing.
        for _ in 0..4 {
            house.ask("ig-tight", &[]).await.unwrap();
        }
        assert_eq!(house.ask("ig-tight", &[]).await.unwrap_err().status, 412);
    })
    .await;
}

#[tokio::test]
async fn a_retry_that_the_budget_does_not_allow_is_withheld_and_said() {
    both_ways(async |mode| {
        let house = house(mode);
        let broken = Error::new(ErrorKind::Unavailable, "no").with_status(500).billed(BillingClass::Unknown);
        house.paint.script("a", [Outcome::Good, Outcome::Good, Outcome::Good, Outcome::Fail(broken)]);
        for _ in 0..3 {
            house.ask("ig-tight", &[]).await.unwrap();
        }
        let error = house.ask("ig-tight", &[("x-portkey-config", "twice")]).await.unwrap_err();
        assert_eq!((error.kind, error.status), (ErrorKind::Unavailable, 500));
        let said = &error.report.as_ref().unwrap().warnings[0].detail;
        assert!(said.starts_with("no retry: a rate limit or a budget"), "{said}");
        assert_eq!(house.paint.requests().len(), 5);
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_was_paid_for_is_given_again_when_the_budget_is_spent() {
    both_ways(async |mode| {
        let house = house(mode);
        let again = [("idempotency-key", "k-1")];
        house.ask("ig-tight", &again).await.unwrap();
        for _ in 0..4 {
            house.ask("ig-tight", &[]).await.unwrap();
        }
        assert_eq!(house.ask("ig-tight", &[]).await.unwrap_err().status, 412);
        let result = house.ask("ig-tight", &again).await.unwrap();
        assert!(warnings(&result).is_empty() && house.paint.requests().len() == 5);
    })
    .await;
}

#[tokio::test]
async fn an_answer_from_the_cache_costs_nothing() {
    both_ways(async |mode| {
        let house = house(mode);
        let kept = [("x-portkey-config", "kept")];
        for _ in 0..10 {
            house.ask("ig-tight", &kept).await.unwrap();
        }
        for _ in 0..4 {
            house.ask("ig-tight", &[]).await.unwrap();
        }
        assert_eq!(house.paint.requests().len(), 5);
    })
    .await;
}
