//! What a config does, as the tree of its plan.

use std::time::Duration;

use serde_json::{Map, Value};
use tonic::Request;

use super::Admin;
use crate::{
    config::{
        callers::Scope,
        plan::{Balance, Conditional, Credential, Fallback, Hedge, Plan, Source, Target},
        policies::{Breaker, CacheMode, CachePolicy, RETRY_STATUSES, Retry},
        spec::ParamsPolicy,
        strategy::{OnRefusal, OnUnsupported, Policy},
    },
    error::{Error, Result},
    pb::{self, PlanNode, plan_node::Kind},
};

impl Admin {
    pub(super) async fn check_config(
        &self,
        request: Request<pb::CheckConfigRequest>,
    ) -> Result<pb::CheckConfigResponse> {
        let caller = self.reader(&request, Scope::Configs)?;
        let pb::CheckConfigRequest { config_json, slug } = request.into_inner();
        let plan = match (config_json.as_str(), slug.as_str()) {
            ("", "") => return Err(Error::invalid("config", "config: Required, or the slug of one")),
            (text, "") => tree(&self.checked(&caller.tenant, text)?),
            ("", slug) => {
                let version = self.router.known().0.config_of(&caller.tenant, slug);
                let version = version.ok_or_else(|| Error::missing("config", slug))?;
                tree(&*version.plan.map_err(|problem| Error::invalid("config", problem))?)
            }
            _ => return Err(Error::invalid("slug", "slug: not together with config; allowed: one of them")),
        };
        Ok(pb::CheckConfigResponse { plan: Some(plan) })
    }
}

/// The whole of a plan.
fn tree(plan: &Plan) -> PlanNode {
    match plan {
        Plan::Target(target) => of_target(target),
        Plan::Fallback(fallback) => PlanNode {
            settings: in_order(fallback),
            children: placed(&fallback.children, |i| {
                if i == 0 { "first" } else { "if that fails" }.to_owned()
            }),
            ..node(Kind::Fallback)
        },
        Plan::Hedge(hedge) => of_hedge(hedge),
        Plan::Balance(balance) => of_balance(balance),
        Plan::Conditional(conditional) => of_conditional(conditional),
        // Not a step of its own: it holds for whatever is below.
        Plan::Deadline(limit, inner) => {
            let mut inner = tree(inner);
            inner.settings.push(format!("{} in all", length(*limit)));
            inner
        }
    }
}

fn node(kind: Kind) -> PlanNode {
    PlanNode { kind: kind.into(), ..Default::default() }
}

fn placed(children: &[Plan], when: impl Fn(usize) -> String) -> Vec<PlanNode> {
    let place = |(i, child)| PlanNode { when: vec![when(i)], ..tree(child) };
    children.iter().enumerate().map(place).collect()
}

fn of_hedge(hedge: &Hedge) -> PlanNode {
    let late = format!("{} later, or if that fails", length(hedge.after));
    let mut settings = in_order(&hedge.order);
    settings.push(format!("extra calls for {} of requests", percent(hedge.budget)));
    PlanNode {
        settings,
        children: placed(&hedge.order.children, |i| if i == 0 { "first".to_owned() } else { late.clone() }),
        ..node(Kind::Hedge)
    }
}

fn of_balance(balance: &Balance) -> PlanNode {
    let sum: f64 = balance.children.iter().map(|child| child.weight).sum();
    let is_drawn = matches!(balance.policy, Policy::Weighted | Policy::Sticky(_));
    let children = balance.children.iter().map(|child| {
        let when = match child.weight {
            weight if weight <= 0.0 => "never: its weight is 0".to_owned(),
            weight if is_drawn => percent(weight / sum),
            1.0 => return tree(&child.plan),
            weight => format!("weight {weight}"),
        };
        PlanNode { when: vec![when], never: child.weight <= 0.0, ..tree(&child.plan) }
    });
    let mut settings = vec![match &balance.policy {
        Policy::Weighted => "by chance".to_owned(),
        Policy::RoundRobin => "in turn".to_owned(),
        Policy::LeastBusy => "the least busy".to_owned(),
        Policy::LeastLatency => "the fastest lately".to_owned(),
        Policy::Cheapest => "the cheapest".to_owned(),
        Policy::Sticky(sticky) => {
            let fields: Vec<_> = sticky.fields.iter().map(ToString::to_string).collect();
            format!("the same for the same {}, for {}", fields.join(", "), length(sticky.ttl))
        }
    }];
    settings.extend(unsupported(balance.on_unsupported));
    PlanNode { settings, children: children.collect(), ..node(Kind::Loadbalance) }
}

fn of_conditional(conditional: &Conditional) -> PlanNode {
    let child = |(i, child)| {
        let cases = conditional.cases.iter().enumerate().filter(|(_, (_, then))| *then == i);
        let mut when: Vec<String> =
            cases.map(|(number, (condition, _))| format!("{}. if {condition}", number + 1)).collect();
        if conditional.default == Some(i) {
            when.push("otherwise".to_owned());
        }
        let never = when.is_empty();
        if never {
            when.push("never: no case names it".to_owned());
        }
        PlanNode { when, never, ..tree(child) }
    };
    let is_open = conditional.default.is_none();
    PlanNode {
        settings: is_open.then(|| "refused if no case holds".to_owned()).into_iter().collect(),
        children: conditional.children.iter().enumerate().map(child).collect(),
        ..node(Kind::Conditional)
    }
}

fn of_target(target: &Target) -> PlanNode {
    let upstream = match &target.source {
        Source::Fixed(upstream) => Some(upstream),
        Source::Request => None,
    };
    let withdrawn = upstream.and_then(|upstream| match &upstream.credential {
        Credential::Withdrawn(why) => Some(format!("its virtual key {why}")),
        _ => None,
    });
    let all = [
        withdrawn,
        target.retry.as_ref().and_then(retries),
        target.cache.as_ref().map(cached),
        target.request_timeout.map(|limit| format!("{} a try", length(limit))),
        target.first_byte_timeout.map(|limit| format!("{} to the first byte", length(limit))),
        match &target.breaker {
            None => Some("no breaker".to_owned()),
            Some(breaker) => (*breaker != Breaker::default()).then(|| "a breaker of its own".to_owned()),
        },
        match target.params_policy {
            ParamsPolicy::Nearest => None,
            ParamsPolicy::Strict => Some("parameters strictly".to_owned()),
            ParamsPolicy::Drop => Some("parameters or nothing".to_owned()),
        },
        names("sets", &target.override_params),
        names("by default sets", &target.default_params),
        (!target.drop_params.is_empty()).then(|| format!("drops {}", target.drop_params.join(", "))),
        target.custom_host.is_some().then(|| "another host".to_owned()),
    ];
    PlanNode {
        settings: all.into_iter().flatten().collect(),
        target: target.path.clone(),
        provider: upstream.map(|upstream| upstream.provider.clone()).unwrap_or_default(),
        virtual_key: upstream.and_then(|upstream| upstream.virtual_key.clone()).unwrap_or_default(),
        model: target.model().unwrap_or_default().to_owned(),
        ..node(Kind::Target)
    }
}

fn in_order(order: &Fallback) -> Vec<String> {
    let statuses = order.on_status_codes.as_ref().map(|statuses| format!("only on {}", numbers(statuses)));
    let refusal = (order.on_refusal == OnRefusal::Return).then(|| "a refusal is returned".to_owned());
    [statuses, refusal, unsupported(order.on_unsupported)].into_iter().flatten().collect()
}

fn unsupported(on: OnUnsupported) -> Option<String> {
    (on == OnUnsupported::Fail).then(|| "fails at what a target cannot do".to_owned())
}

fn retries(retry: &Retry) -> Option<String> {
    let mut text = match retry.attempts {
        0 => return None,
        1 => "1 retry".to_owned(),
        attempts => format!("{attempts} retries"),
    };
    if retry.on_status_codes != RETRY_STATUSES {
        text.push_str(&format!(" on {}", numbers(&retry.on_status_codes)));
    }
    Some(text)
}

fn cached(cache: &CachePolicy) -> String {
    let mode = match cache.mode {
        CacheMode::Simple => "simple".to_owned(),
        CacheMode::Semantic { threshold } => format!("semantic from {threshold}"),
    };
    format!("cache: {mode}, {}", length(cache.max_age))
}

/// Names only: values may be long, and the config has them.
fn names(verb: &str, params: &Map<String, Value>) -> Option<String> {
    // The model stands in a place of its own, unless it is only a default.
    let names: Vec<&str> =
        params.keys().map(String::as_str).filter(|name| verb != "sets" || *name != "model").collect();
    (!names.is_empty()).then(|| format!("{verb} {}", names.join(", ")))
}

fn numbers(statuses: &[u16]) -> String {
    statuses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn percent(share: f64) -> String {
    let percent = (share * 1000.0).round() / 10.0;
    if percent == 0.0 && share > 0.0 { "less than 0.1 %".to_owned() } else { format!("{percent} %") }
}

/// In the largest unit that says it exactly.
fn length(length: Duration) -> String {
    let ms = length.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    match units.iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", ms / unit),
        None => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{config::saved::DEFAULT_TENANT, gateway};

    const FILE: &str = "virtual_keys:\n  a: {provider: openai, api_key: k}\n  b: {provider: sandbox}\n";

    fn drawn(config: &Value) -> PlanNode {
        let providers = gateway::built_in();
        let settings = crate::config::read(FILE, &providers, &|_| None).unwrap();
        tree(&settings.check_config(DEFAULT_TENANT, config, &providers).unwrap())
    }

    /// A node and what is below it, a line each.
    fn lines(node: &PlanNode, depth: usize, into: &mut Vec<String>) {
        let who = [node.provider.as_str(), node.virtual_key.as_str(), node.model.as_str()].join("|");
        let (when, kind) = (node.when.join(" + "), node.kind().as_str_name().replace("KIND_", ""));
        into.push(format!("{}{when}> {kind} {who} [{}]", " ".repeat(depth), node.settings.join("; ")));
        node.children.iter().for_each(|child| lines(child, depth + 1, into));
    }

    fn shown(config: &Value) -> Vec<String> {
        let mut shown = Vec::new();
        lines(&drawn(config), 0, &mut shown);
        shown
    }

    #[test]
    fn every_strategy_says_when_it_takes_which_child() {
        let shown = shown(&json!({
            "strategy": {"mode": "conditional", "default": "rest", "conditions": [
                {"query": {"metadata.plan": "pro"}, "then": "pro"},
                {"query": {"params.n": {"$gt": 1}}, "then": "rest"},
            ]},
            "targets": [
                {"name": "pro", "strategy": {"mode": "hedge", "after_ms": 800, "budget": 0.1}, "total_timeout_ms": 90000,
                 "targets": [{"virtual_key": "a"}, {"virtual_key": "b"}]},
                {"name": "rest", "strategy": {"mode": "fallback", "on_status_codes": [429], "on_refusal": "return"},
                 "targets": [
                    {"strategy": {"mode": "loadbalance"}, "targets": [
                        {"virtual_key": "a", "weight": 3}, {"virtual_key": "b"}, {"virtual_key": "b", "weight": 0},
                    ]},
                    {"strategy": {"mode": "single"}, "targets": [{"virtual_key": "b"}, {"virtual_key": "a"}]},
                 ]},
                {"name": "odd", "virtual_key": "a"},
            ],
        }));
        assert_eq!(
            shown,
            [
                "> CONDITIONAL || []",
                r#" 1. if metadata.plan = "pro"> HEDGE || [extra calls for 10 % of requests; 90 s in all]"#,
                "  first> TARGET openai|a| []",
                "  800 ms later, or if that fails> TARGET sandbox|b| []",
                " 2. if params.n > 1 + otherwise> FALLBACK || [only on 429; a refusal is returned]",
                "  first> LOADBALANCE || [by chance]",
                "   75 %> TARGET openai|a| []",
                "   25 %> TARGET sandbox|b| []",
                "   never: its weight is 0> TARGET sandbox|b| []",
                "  if that fails> TARGET sandbox|b| []",
                " never: no case names it> TARGET openai|a| []",
            ]
        );
    }

    #[test]
    fn a_target_says_what_it_has_inherited_in_any_spelling() {
        let shown = shown(&json!({
            "strategy": {"mode": "loadbalance", "policy": "round_robin", "on_unsupported": "fail"},
            "retry": {"attempts": 2}, "cache": {"mode": "semantic", "max_age": 7200}, "requestTimeout": 1500,
            "overrideParams": {"model": "@b/sandbox-1", "size": "512x512"},
            "targets": [
                {"passthrough": true, "override_params": {"model": "x"}},
                {"virtual_key": "b", "override_params": {"model": "@b/y"}, "retry": {"attempts": 1, "on_status_codes": [500]},
                 "breaker": false, "params_policy": "strict", "drop_params": ["style"], "default_params": {"model": "z"}},
            ],
        }));
        assert_eq!(
            shown,
            [
                "> LOADBALANCE || [in turn; fails at what a target cannot do]",
                " > TARGET ||x [2 retries; cache: semantic from 0.95, 2 h; 1500 ms a try; sets size]",
                " > TARGET sandbox|b|y [1 retry on 500; cache: semantic from 0.95, 2 h; 1500 ms a try; no breaker; \
                 parameters strictly; sets size; by default sets model; drops style]",
            ]
        );
    }

    #[test]
    fn lengths_and_shares_are_told_exactly() {
        assert_eq!(
            [1, 1500, 2000, 90_000, 7_200_000, 604_800_000].map(|ms| length(Duration::from_millis(ms))),
            ["1 ms", "1500 ms", "2 s", "90 s", "2 h", "7 d"]
        );
        assert_eq!(
            [0.75, 1.0 / 3.0, 0.0001, 1.0].map(percent),
            ["75 %", "33.3 %", "less than 0.1 %", "100 %"]
        );
    }
}
