//! From a config as it was written to a plan: inheritance, what it refers to, and the checks that need both.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{
    Problem,
    condition::Condition,
    identity::Identity,
    plan::{
        Balance, BaseUrl, Conditional, Credential, Fallback, Hedge, Known, Plan, Source, Target, Upstream,
        Weighted, caller_host, operator_host, split_model,
    },
    policies::{Breaker, CachePolicy, Retry},
    read::{Problems, suggestion},
    spec::{ParamsPolicy, Spec, is_operators_option},
    strategy::{Case, Mode, Policy, Strategy},
    yaml::join,
};
use crate::{pb, provider::canonical_name};

const PRESENCE: &str = "Invalid configuration. It must have either 'provider' and 'api_key', or 'virtual_key', or \
                        'strategy' and 'targets', or 'cache', or 'retry', or 'request_timeout'";

impl Plan {
    /// Checks a config and everything it refers to.
    ///
    /// # Errors
    /// Everything that is wrong, each with its path below `path`.
    pub fn try_new(value: &Value, path: &str, known: Known<'_>) -> Result<Self, Vec<Problem>> {
        let problems = Problems::default();
        let spec = Spec::read(value, path, &problems);
        let plan = spec.and_then(|spec| build(&spec, "config".into(), &Inherited::new(), known, &problems));
        match plan {
            Some(plan) if problems.is_empty() => Ok(plan),
            _ => Err(problems.into_vec()),
        }
    }

    /// A single target whose provider and credential come with the request.
    pub fn from_request() -> Self {
        Self::Target(Box::new(Inherited::new().target("config".into(), Source::Request)))
    }
}

/// Settings that a node hands to its children.
#[derive(Clone)]
struct Inherited {
    override_params: Map<String, Value>,
    default_params: Map<String, Value>,
    drop_params: Vec<String>,
    params_policy: ParamsPolicy,
    retry: Option<Retry>,
    breaker: Option<Breaker>,
    cache: Option<CachePolicy>,
    request_timeout: Option<Duration>,
    first_byte_timeout: Option<Duration>,
    custom_host: Option<BaseUrl>,
    forward_headers: Vec<String>,
    strict: Option<bool>,
}

impl Inherited {
    /// What a config without any setting has.
    fn new() -> Self {
        Self {
            override_params: Map::new(),
            default_params: Map::new(),
            drop_params: Vec::new(),
            params_policy: ParamsPolicy::default(),
            retry: None,
            breaker: Some(Breaker::default()),
            cache: None,
            request_timeout: None,
            first_byte_timeout: None,
            custom_host: None,
            forward_headers: Vec::new(),
            strict: None,
        }
    }

    fn with(&self, spec: &Spec, known: Known<'_>, problems: &Problems) -> Self {
        let mut next = self.clone();
        next.override_params.extend(spec.override_params.clone());
        next.default_params.extend(spec.default_params.clone());
        next.drop_params.extend(spec.drop_params.clone());
        next.params_policy = spec.params_policy.unwrap_or(self.params_policy);
        next.retry = spec.retry.clone().or(next.retry);
        next.cache = spec.cache.clone().or(next.cache);
        let of_strategy = spec.strategy.as_ref().and_then(|strategy| strategy.breaker.clone());
        if let Some(breaker) = of_strategy.or_else(|| spec.breaker.clone()) {
            next.breaker = breaker;
        }
        next.request_timeout = spec.request_timeout.or(self.request_timeout);
        next.first_byte_timeout = spec.first_byte_timeout.or(self.first_byte_timeout);
        next.strict = spec.strict_open_ai_compliance.or(self.strict);
        if let Some(headers) = &spec.forward_headers {
            next.forward_headers.clone_from(headers);
        }
        if let Some(url) = &spec.custom_host {
            let host = if known.from_caller { caller_host(url, known.egress) } else { operator_host(url) };
            match host {
                Ok(host) => next.custom_host = Some(host),
                Err(message) => problems.add(join(&spec.path, "custom_host"), message),
            }
        }
        next
    }

    fn target(self, path: String, source: Source) -> Target {
        let mut identity = match &source {
            Source::Fixed(upstream) => upstream.identity(),
            Source::Request => Identity::default(),
        };
        if let Some(host) = &self.custom_host {
            identity = identity.with(&host.url);
        }
        let model = self.override_params.get("model").and_then(Value::as_str);
        if let Some(model) = model {
            identity = identity.with(model);
        }
        Target {
            path,
            source,
            identity,
            names_model: model.is_some(),
            override_params: self.override_params,
            default_params: self.default_params,
            drop_params: self.drop_params,
            params_policy: self.params_policy,
            retry: self.retry,
            breaker: self.breaker,
            cache: self.cache,
            request_timeout: self.request_timeout,
            first_byte_timeout: self.first_byte_timeout,
            custom_host: self.custom_host,
            forward_headers: self.forward_headers,
            strict_open_ai_compliance: self.strict.unwrap_or(true),
        }
    }
}

fn build(
    spec: &Spec,
    path: String,
    inherited: &Inherited,
    known: Known<'_>,
    problems: &Problems,
) -> Option<Plan> {
    let inherited = inherited.with(spec, known, problems);
    check_params(spec, problems);
    let plan = match &spec.targets {
        Some(targets) => node(spec, targets, &path, &inherited, known, problems),
        None if spec.strategy.is_some() && spec.provider.is_none() && spec.virtual_key.is_none() => {
            problems.add(join(&spec.path, "targets"), "Required: a strategy chooses among targets");
            None
        }
        None => leaf(spec, path, inherited, known, problems),
    }?;
    Some(match spec.total_timeout {
        Some(limit) => Plan::Deadline(limit, Box::new(plan)),
        None => plan,
    })
}

fn node(
    spec: &Spec,
    targets: &[Spec],
    path: &str,
    inherited: &Inherited,
    known: Known<'_>,
    problems: &Problems,
) -> Option<Plan> {
    let child = |(i, target): (usize, &Spec)| {
        build(target, format!("{path}.targets[{i}]"), inherited, known, problems)
    };
    let children: Vec<Option<Plan>> = targets.iter().enumerate().map(child).collect();
    let Some(strategy) = &spec.strategy else {
        // A strategy that could not be read has been reported already.
        if problems.is_empty() {
            problems.add(spec.path.clone(), PRESENCE);
        }
        return None;
    };
    if targets.is_empty() {
        // A strategy whose targets could not be read is not empty.
        if problems.is_empty() {
            problems.add(join(&spec.path, "targets"), "at least one target is required");
        }
        return None;
    }
    let cases = match &strategy.mode {
        Mode::Conditional { cases, default } => {
            Some(name_cases(spec, targets, cases, default.as_deref(), problems))
        }
        _ => None,
    };
    if let Mode::Loadbalance(policy) = &strategy.mode {
        check_weights(targets, policy, problems);
    }
    let mut children: Vec<Plan> = children.into_iter().collect::<Option<_>>()?;
    Some(match &strategy.mode {
        Mode::Single => children.swap_remove(0),
        Mode::Fallback => Plan::Fallback(in_order(strategy, children)),
        Mode::Hedge { after, budget } => Plan::Hedge(Hedge {
            id: node_id(path, &children),
            order: in_order(strategy, children),
            after: *after,
            budget: *budget,
        }),
        Mode::Loadbalance(policy) => {
            let id = node_id(path, &children);
            let weights = targets.iter().map(|target| target.weight.unwrap_or(1.0));
            let children = weights.zip(children).map(|(weight, plan)| Weighted { weight, plan });
            Plan::Balance(Balance {
                id,
                children: children.collect(),
                policy: policy.clone(),
                on_unsupported: strategy.on_unsupported,
            })
        }
        Mode::Conditional { .. } => {
            let (cases, default) = cases??;
            Plan::Conditional(Conditional { children, cases, default })
        }
    })
}

/// By what a strategy is known again: its place, and whom it calls.
fn node_id(path: &str, children: &[Plan]) -> Identity {
    let mut id = Identity::of([path]);
    children.iter().for_each(|child| child.visit(&mut |target| id = id.and(target.identity)));
    id
}

fn in_order(strategy: &Strategy, children: Vec<Plan>) -> Fallback {
    Fallback {
        children,
        on_status_codes: strategy.on_status_codes.clone(),
        on_refusal: strategy.on_refusal,
        on_unsupported: strategy.on_unsupported,
    }
}

/// The cases with the targets they name.
type NamedCases = (Vec<(Condition, usize)>, Option<usize>);

fn name_cases(
    spec: &Spec,
    targets: &[Spec],
    cases: &[Case],
    default: Option<&str>,
    problems: &Problems,
) -> Option<NamedCases> {
    let find = |name: &str, field: &str| {
        let found = targets.iter().position(|target| target.name.as_deref() == Some(name));
        if found.is_none() {
            let names: Vec<&str> = targets.iter().filter_map(|target| target.name.as_deref()).collect();
            let hint = suggestion(name, &names);
            let message = format!("Invalid target name found in the query router: {name}{hint}");
            problems.add(join(&join(&spec.path, "strategy"), field), message);
        }
        found
    };
    let named = cases.iter().enumerate().map(|(i, case)| {
        let target = find(&case.then, &format!("conditions.{i}.then"))?;
        Some((case.query.clone(), target))
    });
    let named: Vec<_> = named.collect();
    let default = match default {
        Some(name) => Some(find(name, "default")?),
        None => None,
    };
    Some((named.into_iter().collect::<Option<_>>()?, default))
}

/// A balance needs somebody to choose, and weights only where they have a meaning.
fn check_weights(targets: &[Spec], policy: &Policy, problems: &Problems) {
    let path = |target: &Spec| join(&target.path, "weight");
    if targets.iter().all(|target| target.weight == Some(0.0)) {
        problems.add(path(&targets[0]), "at least one target needs a weight above 0");
    }
    let name = match policy {
        Policy::RoundRobin => "round_robin",
        Policy::Cheapest => "cheapest",
        Policy::Weighted | Policy::LeastBusy | Policy::LeastLatency | Policy::Sticky(_) => return,
    };
    for target in
        targets.iter().filter(|target| target.weight.is_some_and(|weight| weight > 0.0 && weight != 1.0))
    {
        problems.add(
            path(target),
            format!("a weight has no meaning with policy {name}, except 0 to leave it out"),
        );
    }
}

fn leaf(
    spec: &Spec,
    path: String,
    mut inherited: Inherited,
    known: Known<'_>,
    problems: &Problems,
) -> Option<Plan> {
    let named = named_in_model(&mut inherited.override_params);
    let slug = spec.virtual_key.as_deref().or_else(|| spec.provider.as_deref()?.strip_prefix('@'));
    if let (Some(named), Some(slug)) = (named.as_deref(), slug)
        && named != slug
    {
        let message = format!("the model names virtual key \"{named}\", the target \"{slug}\"");
        problems.add(join(&spec.path, "override_params.model"), message);
        return None;
    }
    let source = if let Some(slug) = slug.or(named.as_deref()) {
        let field = if spec.virtual_key.is_some() { "virtual_key" } else { "provider" };
        let Some(upstream) = known.virtual_keys.get(slug) else {
            let names: Vec<&str> = known.virtual_keys.keys().map(String::as_str).collect();
            // A caller may guess at names; only a near miss is confirmed to it.
            let hint = suggestion(slug, &names);
            let hint = if known.from_caller && !hint.contains("did you mean") { "" } else { &hint };
            problems.add(join(&spec.path, field), format!("virtual key \"{slug}\" does not exist{hint}"));
            return None;
        };
        let mut upstream = Upstream::clone(upstream);
        if known.from_caller {
            // Or else any caller could send a stored credential to a resource of its own.
            for (name, _) in spec.options.iter().filter(|(name, _)| is_operators_option(name)) {
                let message =
                    format!("where virtual key \"{slug}\" is sent, and as whom, is not for a request to say");
                problems.add(join(&spec.path, name), message);
            }
        }
        upstream.from_caller |= known.from_caller && !spec.options.is_empty();
        upstream.options.extend(spec.options.iter().cloned());
        Source::Fixed(Arc::new(upstream))
    } else if let Some(provider) = &spec.provider {
        Source::Fixed(Arc::new(inline_upstream(spec, provider, &inherited, known, problems)?))
    } else if spec.passthrough || path == "config" {
        Source::Request
    } else {
        problems.add(spec.path.clone(), PRESENCE);
        return None;
    };
    Some(Plan::Target(Box::new(inherited.target(path, source))))
}

fn inline_upstream(
    spec: &Spec,
    provider: &str,
    inherited: &Inherited,
    known: Known<'_>,
    problems: &Problems,
) -> Option<Upstream> {
    let name = canonical_name(provider);
    if !known.providers.contains(name) {
        let names = known.providers.names().join(", ");
        let message = format!("Invalid 'provider' value. Must be one of: {names}");
        problems.add(join(&spec.path, "provider"), message);
        return None;
    }
    let credential = match &spec.api_key {
        Some(key) => Credential::ApiKey(key.clone()),
        None if inherited.custom_host.is_some() => Credential::None,
        None if known
            .providers
            .does_without_key(name, |wanted| spec.options.iter().any(|(name, _)| name == wanted)) =>
        {
            Credential::None
        }
        None => {
            problems.add(spec.path.clone(), PRESENCE);
            return None;
        }
    };
    Some(Upstream {
        provider: name.to_owned(),
        virtual_key: None,
        credential,
        base_url: None,
        options: spec.options.iter().cloned().collect(),
        from_caller: known.from_caller,
        models: Arc::default(),
        metered: None,
    })
}

/// Takes the virtual key out of `@virtual-key/model`.
fn named_in_model(params: &mut Map<String, Value>) -> Option<String> {
    let (slug, model) = split_model(params.get("model")?.as_str()?)?;
    let (slug, model) = (slug.to_owned(), Value::from(model));
    params.insert("model".into(), model);
    Some(slug)
}

/// Parameters of the wrong type are found now, not when a request arrives.
fn check_params(spec: &Spec, problems: &Problems) {
    for (field, params) in
        [("override_params", &spec.override_params), ("default_params", &spec.default_params)]
    {
        for (name, value) in params {
            if let Err(error) = crate::params::set(&mut pb::ImageRequest::default(), name, value) {
                problems.add(join(&join(&spec.path, field), name), error.message.clone());
            }
        }
    }
}
