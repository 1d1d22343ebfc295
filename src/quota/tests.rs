use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::pb::{BudgetReset, RateUnit};

/// 2026-11-27 12:00:00 UTC, a Friday.
const NOON: i64 = 1_795_780_800_000;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
const CENT: i64 = 10_000_000;

/// A ledger whose clock is set by hand.
struct World {
    ledger: Arc<Ledger>,
    now: Arc<AtomicI64>,
}

impl World {
    fn new() -> Self {
        let now = Arc::new(AtomicI64::new(NOON));
        let clock = Arc::clone(&now);
        let ledger = Ledger::with_clock(None, Box::new(move || clock.load(Ordering::Relaxed)));
        Self { ledger, now }
    }

    fn set(&self, now: i64) {
        self.now.store(now, Ordering::Relaxed);
    }

    async fn admit(&self, metered: &Metered) -> Result<(), Exceeded> {
        self.ledger.admit(std::slice::from_ref(metered)).await
    }

    async fn hold(&self, metered: &Metered, nanos: i64) -> Result<Hold, Exceeded> {
        self.ledger.hold(std::slice::from_ref(metered), None, 1, nanos).await
    }

    /// A call that costs just what was expected.
    async fn call(&self, metered: &Metered, nanos: i64) -> Result<(), Exceeded> {
        let hold = self.hold(metered, nanos).await?;
        hold.pay(nanos).is(nanos);
        Ok(())
    }

    fn use_of(&self, metered: &Metered) -> Vec<crate::pb::QuotaUse> {
        self.ledger.usage(std::slice::from_ref(metered))
    }
}

fn rate(unit: RateUnit, requests: i64) -> Limit {
    Limit::Rate { unit, requests }
}

fn budget(reset: BudgetReset, nanos: i64) -> Limit {
    Limit::Budget { reset, nanos, alert: None }
}

fn metered(tenant: &str, id: &str, limits: &[Limit]) -> Metered {
    let subject =
        Subject { kind: Kind::ApiKey, tenant: tenant.into(), id: id.into(), name: format!("{id}'s") };
    Metered { subject: Arc::new(subject), quota: Quota(limits.to_vec()) }
}

#[tokio::test]
async fn requests_are_counted_in_each_period_by_itself() {
    let world = World::new();
    let key = metered("t", "a", &[rate(RateUnit::Minute, 2), rate(RateUnit::Hour, 3)]);
    assert!(world.admit(&key).await.is_ok());
    assert!(world.admit(&key).await.is_ok());
    world.set(NOON + 10_500);
    let error = Error::from(world.admit(&key).await.unwrap_err());
    assert_eq!(
        (error.kind, error.status, error.retry_after),
        (ErrorKind::RateLimited, 429, Some(Duration::from_millis(49_500)))
    );
    assert_eq!(
        error.message,
        "the rate limit of API key \"a's\" is reached: 2 requests a minute; it resets at 2026-11-27T12:01:00Z \
         (in 50 s)"
    );
    world.set(NOON + 60_000);
    assert!(world.admit(&key).await.is_ok());
    // The hour's three are used, and what the minute refused was not counted.
    let error = Error::from(world.admit(&key).await.unwrap_err());
    assert!(error.message.contains("3 requests a hour") && error.message.contains("13:00:00Z"), "{error:?}");
    world.set(NOON + HOUR);
    assert!(world.admit(&key).await.is_ok());
}

#[tokio::test]
async fn money_is_held_while_a_call_runs_and_then_what_it_cost_is_spent() {
    let world = World::new();
    let key = metered("t", "a", &[budget(BudgetReset::Monthly, 10 * CENT)]);
    let hold = world.hold(&key, 6 * CENT).await.unwrap();
    let refused = Error::from(world.hold(&key, 5 * CENT).await.unwrap_err());
    assert_eq!((refused.status, refused.code.as_deref()), (412, Some("budget_exceeded")));
    assert_eq!(
        refused.message,
        "the budget of API key \"a's\" has $0.04 left and the call is expected to cost $0.05: $0.10 a month; it resets \
         at 2026-12-01T00:00:00Z (in 302400 s)"
    );
    hold.pay(6 * CENT).is(2 * CENT);
    drop(hold);
    let usage = &world.use_of(&key)[0];
    assert_eq!((usage.usd, usage.reserved_usd, usage.exhausted), (0.02, 0.0, false));
    assert!(world.call(&key, 8 * CENT).await.is_ok());
    let spent = Error::from(world.hold(&key, 1).await.unwrap_err());
    assert!(spent.message.starts_with("the budget of API key \"a's\" is spent: $0.10 a month"), "{spent:?}");
    assert!(world.ledger.check(std::slice::from_ref(&key)).is_err() && world.use_of(&key)[0].exhausted);
}

#[tokio::test]
async fn a_call_that_nobody_saw_the_end_of_has_cost_what_was_expected() {
    let world = World::new();
    let key = metered("t", "a", &[budget(BudgetReset::Unspecified, 10 * CENT)]);
    let hold = world.hold(&key, 9 * CENT).await.unwrap();
    // Three calls of one try: one fails for nothing, one is given up, one never begins.
    hold.pay(3 * CENT).is(0);
    drop(hold.pay(3 * CENT));
    drop(hold);
    assert_eq!(world.use_of(&key)[0].usd, 0.03);
}

#[tokio::test]
async fn either_all_limits_allow_it_or_none_counts_it() {
    let world = World::new();
    let of_request =
        [metered("t", "a", &[budget(BudgetReset::Daily, 100 * CENT), budget(BudgetReset::Weekly, CENT)])];
    let of_key = metered("", "k", &[rate(RateUnit::Day, 5), budget(BudgetReset::Daily, 100 * CENT)]);
    let refused = world.ledger.hold(&of_request, Some(&of_key), 2, 2 * CENT).await;
    // More than the whole budget by a guess may have one try.
    let hold = refused.unwrap();
    assert!(world.ledger.hold(&of_request, Some(&of_key), 2, CENT).await.is_err());
    let usage = world.use_of(&of_key);
    assert_eq!((usage[0].requests, usage[1].reserved_usd), (2, 0.02));
    drop(hold);
    let usage = [world.use_of(&of_key), world.use_of(&of_request[0])].concat();
    assert!(usage.iter().all(|usage| usage.reserved_usd == 0.0 && usage.usd == 0.0), "{usage:?}");
    assert_eq!(usage[0].requests, 2);
}

#[tokio::test]
async fn a_period_ends_for_new_calls_and_not_for_those_that_run() {
    let world = World::new();
    let key = metered("t", "a", &[budget(BudgetReset::Daily, 10 * CENT)]);
    world.set(NOON + 12 * HOUR - 1);
    let late = world.hold(&key, 10 * CENT).await.unwrap();
    assert!(world.hold(&key, CENT).await.is_err());
    world.set(NOON + 12 * HOUR);
    assert!(world.call(&key, 10 * CENT).await.is_ok());
    // It belongs to the day in which it began.
    late.pay(10 * CENT).is(10 * CENT);
    drop(late);
    assert_eq!(world.use_of(&key)[0].usd, 0.1);
    world.set(NOON);
    assert_eq!(world.use_of(&key)[0].usd, 0.1);
}

#[tokio::test]
async fn a_clock_that_jumps_there_and_back_forgives_nothing() {
    let world = World::new();
    let limits = [budget(BudgetReset::Monthly, 10 * CENT), rate(RateUnit::Day, 2)];
    let key = metered("t", "a", &limits);
    world.admit(&key).await.unwrap();
    world.call(&key, 10 * CENT).await.unwrap();
    world.set(NOON + 40 * DAY);
    world.admit(&key).await.unwrap();
    world.call(&key, 10 * CENT).await.unwrap();
    world.set(NOON);
    assert!(world.call(&key, CENT).await.is_err());
    world.admit(&key).await.unwrap();
    assert!(world.admit(&key).await.is_err());
    world.set(NOON - 40 * DAY);
    assert!(world.call(&key, CENT).await.is_ok());
}

#[tokio::test]
async fn names_cannot_be_chosen_to_share_a_counter() {
    let world = World::new();
    let limit = [rate(RateUnit::Day, 1)];
    for (tenant, id) in
        [("a", "b"), ("a\" \"b", ""), ("a", "b\" \"c"), ("a\" \"b", "c"), ("", "b"), ("b", "a")]
    {
        assert!(world.admit(&metered(tenant, id, &limit)).await.is_ok(), "{tenant} {id}");
    }
    assert!(world.admit(&metered("a", "b", &limit)).await.is_err());
}

#[tokio::test]
async fn a_price_nobody_knows_is_what_the_dearest_of_its_kind_has_cost() {
    let world = World::new();
    let ledger = &world.ledger;
    assert_eq!(ledger.expected("openai", "x", 2, Some(0.5)), 500_000_000);
    assert_eq!(ledger.expected("openai", "x", 2, None), 2_000_000_000);
    ledger.learn("openai", "x", 2, 0.08);
    ledger.learn("openai", "x", 1, 0.02);
    assert_eq!(ledger.expected("openai", "x", 3, None), 12 * CENT);
    assert_eq!(ledger.expected("xai", "x", 1, None), 1_000_000_000);
}

#[tokio::test]
async fn what_the_store_knows_counts() {
    let world = World::new();
    let key = metered("t", "a", &[budget(BudgetReset::Monthly, 10 * CENT)]);
    let counter = "api_key \"t\" \"a\" usd a month".to_owned();
    let window = Span::Month.window(NOON);
    world.ledger.load(vec![Kept { counter, start_ms: window.start, end_ms: window.end, amount: 7 * CENT }]);
    assert!(world.call(&key, 4 * CENT).await.is_err());
    assert!(world.call(&key, 3 * CENT).await.is_ok());
}

#[test]
fn a_request_comes_under_its_callers_limits_and_those_of_its_metadata() {
    let rule = |tenant: Option<&str>, metadata: Option<&str>, value: Option<&str>| Rule {
        tenant: tenant.map(str::to_owned),
        metadata: metadata.map(str::to_owned),
        value: value.map(str::to_owned),
        quota: Quota(vec![rate(RateUnit::Second, 1)]),
    };
    let rules = [
        rule(Some("acme"), None, None),
        rule(Some("other"), None, None),
        rule(None, Some("_user"), None),
        rule(None, Some("plan"), Some("free")),
        rule(None, Some("plan"), Some("paid")),
        rule(None, Some("number"), Some("7")),
        rule(None, Some("missing"), None),
    ];
    let caller = Caller {
        id: "k".into(),
        tenant: "acme".into(),
        quota: Quota(vec![rate(RateUnit::Second, 1)]),
        ..Caller::anybody()
    };
    let metadata = json!({"_user": "x".repeat(200), "plan": "free", "number": 7});
    let found = Metered::of_request(Some(&caller), "acme", &metadata, &rules);
    let ids: Vec<&str> = found.iter().map(|metered| metered.subject.id.as_str()).collect();
    assert_eq!(ids, ["k", "acme", &format!("_user={}", "x".repeat(128)), "plan=free", "number=7"]);
    let nobody = Metered::of_request(None, "default", &serde_json::Value::Null, &rules);
    assert!(nobody.is_empty(), "{nobody:?}");
}

#[tokio::test]
async fn each_value_of_metadata_is_seen_by_itself() {
    let world = World::new();
    let rule = Rule {
        tenant: None,
        metadata: Some("_user".into()),
        value: None,
        quota: Quota(vec![rate(RateUnit::Hour, 2)]),
    };
    let rules = [rule];
    for user in ["bo", "al", "al", "q\"uote"] {
        let metered = Metered::of_request(None, "t", &json!({ "_user": user }), &rules);
        world.ledger.admit(&metered).await.unwrap();
    }
    let other = Metered::of_request(None, "u", &json!({"_user": "al"}), &rules);
    world.ledger.admit(&other).await.unwrap();
    let usage = world.ledger.usage_by_value(&rules[0], "t");
    let seen: Vec<_> =
        usage.iter().map(|usage| (usage.name.as_str(), usage.requests, usage.exhausted)).collect();
    assert_eq!(seen, [("_user=al", 2, true), ("_user=bo", 1, false), ("_user=q\\\"uote", 1, false)]);
}

/// What happens to a call: how long it is held among others, and what it costs in the end.
#[derive(Clone, Debug)]
enum Step {
    Begin { expected: i64 },
    End { which: usize, cost: Option<i64> },
    Wait { ms: i64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let begin = (1_i64..40).prop_map(|expected| Step::Begin { expected });
    let end =
        (0_usize..8, proptest::option::of(0_i64..40)).prop_map(|(which, cost)| Step::End { which, cost });
    let wait = (-2 * DAY..2 * DAY).prop_map(|ms| Step::Wait { ms });
    proptest::collection::vec(prop_oneof![4 => begin, 4 => end, 1 => wait], 1..60)
}

proptest! {
    /// Whatever begins, ends, is given up or is late, and whatever clocks do: a period's spending exceeds its budget by
    /// no more than what calls cost beyond their price, and holds end with their calls.
    #[test]
    fn no_period_is_overspent(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let limit = 100;
            let key = metered("t", "a", &[budget(BudgetReset::Daily, limit)]);
            let mut running: Vec<(Hold, i64, i64)> = Vec::new();
            let mut days = std::collections::HashMap::<i64, (i64, i64)>::new();
            for step in steps {
                let day = Span::Day.window(world.now.load(Ordering::Relaxed)).start;
                match step {
                    Step::Begin { expected } => {
                        let (spent, _) = days.get(&day).copied().unwrap_or_default();
                        let held: i64 =
                            running.iter().filter(|(_, at, _)| *at == day).map(|(_, _, held)| held).sum();
                        let outcome = world.hold(&key, expected).await;
                        assert_eq!(outcome.is_ok(), spent + held + expected <= limit);
                        running.extend(outcome.ok().map(|hold| (hold, day, expected)));
                    }
                    Step::End { which, cost } if which < running.len() => {
                        let (hold, day, expected) = running.swap_remove(which);
                        match cost {
                            Some(cost) => hold.pay(expected).is(cost),
                            None => drop(hold.pay(expected)),
                        }
                        let (spent, beyond) = days.entry(day).or_default();
                        *spent += cost.unwrap_or(expected);
                        *beyond += (cost.unwrap_or(expected) - expected).max(0);
                    }
                    Step::End { .. } => {}
                    Step::Wait { ms } => _ = world.now.fetch_add(ms, Ordering::Relaxed),
                }
            }
            running.clear();
            for (day, (spent, beyond)) in days {
                assert!(spent <= limit + beyond, "{spent} of {limit}, {beyond} beyond the prices");
                world.set(day);
                let usage = &world.use_of(&key)[0];
                assert!(usage.reserved_usd == 0.0 && (usage.usd * 1e9).round() as i64 == spent, "{usage:?}");
            }
        });
    }
}
