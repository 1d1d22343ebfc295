//! A random scenario for each number: a tree of all strategies over providers with all faults, and the bounds that
//! its config sets.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value, json};

use crate::world::draws::Draws;

/// A scenario, and what may happen at most in it.
pub struct Case {
    /// The scenario's file.
    pub text: String,
    /// Of one request.
    pub most_calls: usize,
    /// By provider.
    pub leaves: BTreeMap<String, Leaf>,
    /// Parts of the tree with a time limit: the providers below, and the limit.
    pub limited: Vec<(Vec<String>, Duration)>,
    /// Of the whole tree.
    pub limit: Option<Duration>,
}

/// What targets may do with one provider for one request.
#[derive(Debug, Default)]
pub struct Leaf {
    /// Of one request.
    pub most_calls: usize,
    /// None: the attempt may take as long as the request.
    pub attempt_limit: Option<Duration>,
    /// 0: no limit.
    pub max_prompt_chars: usize,
    /// What it has.
    pub models: Vec<String>,
    /// It can do what is asked for.
    pub generates: bool,
}

/// Settings that a node hands down, as far as they bound anything.
#[derive(Clone, Copy, Default)]
struct Inherited {
    retries: usize,
    request_timeout: Option<Duration>,
    first_byte_timeout: Option<Duration>,
}

/// A config that grows.
struct Growing {
    draws: Draws,
    images: usize,
    providers: Map<String, Value>,
    leaves: BTreeMap<String, Leaf>,
    limited: Vec<(Vec<String>, Duration)>,
}

/// A part of a config: how it is written, the most calls it makes, and the providers in it.
struct Part {
    config: Value,
    most_calls: usize,
    providers: Vec<String>,
}

fn pick<T: Clone>(draws: &mut Draws, choices: &[T]) -> T {
    choices[below(draws, choices.len())].clone()
}

fn below(draws: &mut Draws, end: usize) -> usize {
    ((draws.fraction() * end as f64) as usize).min(end - 1)
}

fn millis(draws: &mut Draws, min: u64, max: u64) -> u64 {
    draws.between(Duration::from_millis(min), Duration::from_millis(max)).as_millis() as u64
}

impl Growing {
    fn node(&mut self, depth: usize, inherited: Inherited) -> Part {
        let mut config = Map::new();
        let inherited = self.settings(&mut config, inherited);
        let leaf = depth == 0 || self.draws.happens(0.3);
        let mut part = if leaf { self.leaf(config, inherited) } else { self.inner(config, depth, inherited) };
        if self.draws.happens(0.15) {
            let limit = millis(&mut self.draws, 1000, 15_000);
            part.config["total_timeout_ms"] = json!(limit);
            self.limited.push((part.providers.clone(), Duration::from_millis(limit)));
        }
        part
    }

    fn settings(&mut self, config: &mut Map<String, Value>, mut inherited: Inherited) -> Inherited {
        let draws = &mut self.draws;
        if draws.happens(0.3) {
            inherited.retries = below(draws, 4);
            let mut retry = json!({
                "attempts": inherited.retries,
                "jitter": draws.happens(0.8),
                "use_retry_after_header": draws.happens(0.5),
                "budget": pick(draws, &[json!(false), json!(0.2), json!(1.0), json!(10.0)]),
                "max_delay_ms": millis(draws, 100, 8000),
            });
            if draws.happens(0.5) {
                retry["on_status_codes"] = json!([408, 429, 500, 503, 400, 404]);
            }
            if draws.happens(0.3) {
                retry["max_duplicate_spend_usd"] = json!(pick(draws, &[0.0, 0.05, 0.2]));
            }
            config.insert("retry".into(), retry);
        }
        if draws.happens(0.3) {
            let breaker = json!({
                "consecutive_failures": 1 + below(draws, 8),
                "failure_ratio": pick(draws, &[0.2, 0.6, 1.0]),
                "min_requests": 5,
                "cooldown_s": pick(draws, &[0.1, 1.0, 5.0]),
            });
            config.insert("breaker".into(), pick(draws, &[json!(false), breaker.clone(), breaker]));
        }
        if draws.happens(0.2) {
            let limit = millis(draws, 500, 10_000);
            config.insert("request_timeout".into(), json!(limit));
            inherited.request_timeout = Some(Duration::from_millis(limit));
        }
        if draws.happens(0.15) {
            let limit = millis(draws, 500, 10_000);
            config.insert("first_byte_timeout_ms".into(), json!(limit));
            inherited.first_byte_timeout = Some(Duration::from_millis(limit));
        }
        inherited
    }

    fn leaf(&mut self, mut config: Map<String, Value>, inherited: Inherited) -> Part {
        let known = self.providers.len();
        // Some providers stand in a config twice.
        let is_new = known == 0 || self.draws.happens(0.85);
        let name = format!("p{}", if is_new { known } else { below(&mut self.draws, known) });
        if is_new {
            self.provider(&name);
        }
        config.insert("provider".into(), json!(name));
        let model =
            pick(&mut self.draws, &[None, None, None, Some("standard"), Some("fine"), Some("missing")]);
        if let Some(model) = model {
            config.insert("override_params".into(), json!({ "model": model }));
        }
        let max_n = self.providers[&name]["max_n"].as_u64().unwrap() as usize;
        let most_calls = (inherited.retries + 1) * self.images.div_ceil(max_n);
        let leaf = self.leaves.get_mut(&name).unwrap();
        let limit = [inherited.request_timeout, inherited.first_byte_timeout].into_iter().flatten().min();
        leaf.attempt_limit = if leaf.most_calls == 0 {
            limit
        } else {
            leaf.attempt_limit.zip(limit).map(|(one, other)| one.max(other))
        };
        leaf.most_calls += most_calls;
        Part { config: Value::Object(config), most_calls, providers: vec![name] }
    }

    fn inner(&mut self, mut config: Map<String, Value>, depth: usize, inherited: Inherited) -> Part {
        let count = 1 + below(&mut self.draws, 4);
        let mut parts: Vec<Part> = (0..count).map(|_| self.node(depth - 1, inherited)).collect();
        let draws = &mut self.draws;
        let sum = parts.iter().map(|part| part.most_calls).sum();
        let most = parts.iter().map(|part| part.most_calls).max().unwrap();
        let (mut strategy, most_calls) = match below(draws, 12) {
            0..4 => (json!({"mode": "fallback"}), sum),
            4..7 => (balance(draws, &mut parts), most),
            7..9 => {
                let after = millis(draws, 100, 5000);
                (json!({"mode": "hedge", "after_ms": after, "budget": pick(draws, &[0.05, 0.5, 1.0])}), sum)
            }
            9..11 => (conditional(draws, &mut parts), most),
            _ => (json!({"mode": "single"}), parts[0].most_calls),
        };
        if draws.happens(0.2) {
            strategy["on_status_codes"] =
                pick(draws, &[json!([429]), json!([500, 502, 503]), json!([408, 429, 503])]);
        }
        if draws.happens(0.2) {
            strategy["on_refusal"] = json!("return");
        }
        if draws.happens(0.2) {
            strategy["on_unsupported"] = json!("fail");
        }
        let providers = parts.iter().flat_map(|part| part.providers.clone()).collect();
        config.insert("strategy".into(), strategy);
        config.insert("targets".into(), parts.into_iter().map(|part| part.config).collect());
        Part { config: Value::Object(config), most_calls, providers }
    }

    fn provider(&mut self, name: &str) {
        let draws = &mut self.draws;
        let mut script = faults(draws);
        script["max_n"] = json!(1 + below(draws, 4));
        script["models"] = json!(["standard", "fine"]);
        let generates = draws.happens(0.93);
        script["operations"] = json!([if generates { "generate" } else { "edit" }]);
        // Prompts are `picture 7`, `picture 16` and so on.
        let max_prompt_chars = pick(draws, &[0, 0, 0, 9, 10]);
        script["max_prompt_chars"] = json!(max_prompt_chars);
        if draws.happens(0.8) {
            script["price_usd"] = json!(pick(draws, &[0.01, 0.04, 0.2]));
        }
        script["phases"] = (0..below(draws, 3))
            .map(|_| {
                let from = below(draws, 30);
                let mut phase = faults(draws);
                phase["from_s"] = json!(from);
                phase["until_s"] = json!(from + 5 + below(draws, 15));
                phase
            })
            .collect();
        self.providers.insert(name.to_owned(), script);
        let models = vec!["standard".to_owned(), "fine".to_owned()];
        self.leaves.insert(name.to_owned(), Leaf { max_prompt_chars, models, generates, ..Leaf::default() });
    }
}

fn balance(draws: &mut Draws, parts: &mut [Part]) -> Value {
    let policy =
        pick(draws, &["weighted", "round_robin", "least_busy", "least_latency", "sticky", "cheapest"]);
    if matches!(policy, "weighted" | "least_busy" | "least_latency" | "sticky") {
        for part in &mut *parts {
            part.config["weight"] = json!(pick(draws, &[0.2, 1.0, 3.0]));
        }
    }
    let mut strategy = json!({"mode": "loadbalance", "policy": policy});
    if policy == "sticky" {
        strategy["sticky"] = json!({"hash_fields": ["metadata.user"], "ttl": 1 + below(draws, 20)});
    }
    strategy
}

fn conditional(draws: &mut Draws, parts: &mut [Part]) -> Value {
    for (i, part) in parts.iter_mut().enumerate() {
        part.config["name"] = json!(format!("t{i}"));
    }
    let last = parts.len() - 1;
    let conditions: Vec<Value> = (0..=last)
        .map(|i| json!({"query": {"metadata.user": {"$in": [i.to_string(), (i + 4).to_string()]}}, "then": format!("t{i}")}))
        .collect();
    let mut strategy = json!({"mode": "conditional", "conditions": conditions});
    if draws.happens(0.8) {
        strategy["default"] = json!(format!("t{last}"));
    }
    strategy
}

fn faults(draws: &mut Draws) -> Value {
    let slow = json!({"fraction": pick(draws, &[0.0, 0.05, 0.2]), "factor": 10});
    let median = millis(draws, 50, 2500);
    let latency = match below(draws, 3) {
        0 => json!({"dist": "constant", "ms": median, "slow": slow}),
        1 => json!({"dist": "exponential", "mean_ms": median, "slow": slow}),
        _ => json!({"dist": "lognormal", "median_ms": median, "sigma": 0.4, "slow": slow}),
    };
    let failure = |draws: &mut Draws| {
        let mut failure = json!({
            "status": pick(draws, &[400, 401, 402, 403, 404, 408, 409, 422, 429, 500, 502, 503, 504, 529]),
            "billed": pick(draws, &["not_sent", "rejected_unbilled", "unknown", "billed"]),
        });
        if draws.happens(0.4) {
            failure["retry_after_ms"] = json!(millis(draws, 0, 8000));
        }
        failure
    };
    let mut errors = failure(draws);
    errors["rate"] = json!(pick(draws, &[0.0, 0.0, 0.05, 0.3, 1.0]));
    errors["after_ms"] = json!(millis(draws, 0, 2000));
    let mut script = json!({"latency": latency, "errors": errors, "silent": draws.happens(0.04)});
    if draws.happens(0.2) {
        script["refusals"] = json!({"rate": pick(draws, &[0.1, 0.9])});
    }
    if draws.happens(0.3) {
        let mut over = failure(draws);
        if draws.happens(0.5) {
            over = json!({"status": 429, "retry_after_ms": millis(draws, 100, 5000)});
        }
        script["capacity"] = json!({"in_flight": 1 + below(draws, 20), "over": over});
    }
    script
}

/// The case of a number.
pub fn case(number: u64) -> Case {
    let mut draws = Draws::new(number, "case", 0);
    let images = pick(&mut draws, &[1, 1, 1, 2, 5]);
    let mut growing =
        Growing { draws, images, providers: Map::new(), leaves: BTreeMap::new(), limited: Vec::new() };
    let root = growing.node(3, Inherited::default());
    let Growing { mut draws, providers, leaves, limited, .. } = growing;
    let arrivals = if draws.happens(0.3) {
        json!({"concurrency": 1 + below(&mut draws, 20), "think_ms": millis(&mut draws, 1000, 3000)})
    } else {
        json!({"rate_per_s": pick(&mut draws, &[1, 5, 10])})
    };
    let limit = root.config.get("total_timeout_ms").and_then(Value::as_u64).map(Duration::from_millis);
    let scenario = json!({
        "seed": number,
        "duration_s": 40,
        "arrivals": arrivals,
        "deadline_ms": millis(&mut draws, 500, 25_000),
        "request": {"n": images},
        "users": 10,
        "headers": {"x-portkey-metadata": "{\"user\": \"{user}\"}"},
        "cancel": {"rate": pick(&mut draws, &[0.0, 0.0, 0.1, 0.5]), "after_ms": [0, 6000]},
        "clients": {"retries": pick(&mut draws, &[0, 0, 0, 1]), "pause_ms": 500},
        "config": root.config,
        "providers": providers,
    });
    Case { text: scenario.to_string(), most_calls: root.most_calls, leaves, limited, limit }
}
