//! A checked routing config. Whoever holds a [`Plan`] can execute it without another check.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value};

use super::{
    Problem,
    read::{Problems, suggestion},
    spec::{Mode, OnRefusal, OnUnsupported, ParamsPolicy, Retry, Secret, Spec},
    yaml::join,
};
use crate::{egress::Egress, pb, provider::canonical_name};

/// A checked strategy tree.
#[derive(Debug)]
pub enum Plan {
    /// One provider call.
    Target(Box<Target>),
    /// In order, until one succeeds.
    Fallback(Fallback),
}

/// Children that are tried in order.
#[derive(Debug)]
pub struct Fallback {
    /// At least one.
    pub children: Vec<Plan>,
    /// Statuses that let the next one try; none means any failure.
    pub on_status_codes: Option<Vec<u16>>,
    /// What a content refusal does.
    pub on_refusal: OnRefusal,
    /// What an unsuitable target does.
    pub on_unsupported: OnUnsupported,
}

/// One provider with everything a call needs, inheritance done.
#[derive(Debug)]
pub struct Target {
    /// Its place: `config.targets[1]`.
    pub path: String,
    /// Provider and credential.
    pub source: Source,
    /// Always overwrite the request's fields.
    pub override_params: Map<String, Value>,
    /// Fill in what the request does not have.
    pub default_params: Map<String, Value>,
    /// Removed at last.
    pub drop_params: Vec<String>,
    /// What negotiation may do.
    pub params_policy: ParamsPolicy,
    /// When it is tried again.
    pub retry: Option<Retry>,
    /// Limit of one attempt, body included.
    pub request_timeout: Option<Duration>,
    /// Replaces the provider's address.
    pub custom_host: Option<BaseUrl>,
    /// Headers of the request that go to the provider.
    pub forward_headers: Vec<String>,
    /// False: answers may have fields that OpenAI's do not.
    pub strict_open_ai_compliance: bool,
}

/// Where a target's provider and credential come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The config says it.
    Fixed(Arc<Upstream>),
    /// The request says it: provider header, virtual key header, or `@virtual-key/model`.
    Request,
}

/// A provider and the credential for it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Provider id.
    pub provider: String,
    /// Id of the virtual key it comes from, if any.
    pub virtual_key: Option<String>,
    /// What the provider wants to see.
    pub credential: Credential,
    /// Replaces the provider's public address.
    pub base_url: Option<BaseUrl>,
    /// The provider's own settings.
    pub options: BTreeMap<String, String>,
}

/// A provider's credential.
#[derive(Clone, Debug)]
pub enum Credential {
    /// None needed.
    None,
    /// A key.
    ApiKey(Secret),
    /// The worker reads its own secret of this name.
    HeldByWorker(String),
}

/// An upstream address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    /// Without a trailing slash.
    pub url: String,
    /// It came with a request: only public addresses may be reached.
    pub from_caller: bool,
}

/// What a config may refer to.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Providers that there are workers for.
    pub providers: &'a BTreeSet<String>,
    /// Those of them that need no credential.
    pub keyless: &'a BTreeSet<String>,
    /// Stored credentials.
    pub virtual_keys: &'a BTreeMap<String, Arc<Upstream>>,
    /// For hosts that come with a request.
    pub egress: &'a Egress,
    /// The config came with a request.
    pub from_caller: bool,
}

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
        let plan =
            spec.and_then(|spec| build(&spec, "config".into(), &Inherited::default(), known, &problems));
        match plan {
            Some(plan) if problems.is_empty() => Ok(plan),
            _ => Err(problems.into_vec()),
        }
    }

    /// A single target whose provider and credential come with the request.
    pub fn from_request() -> Self {
        let inherited = Inherited::default();
        Self::Target(Box::new(inherited.target("config".into(), Source::Request)))
    }

    /// Every target, in order.
    pub fn targets(&self) -> Vec<&Target> {
        match self {
            Self::Target(target) => vec![target],
            Self::Fallback(fallback) => fallback.children.iter().flat_map(Self::targets).collect(),
        }
    }
}

/// Checks a host that came with a request.
///
/// # Errors
/// The reference's text, with the reason.
pub fn caller_host(url: &str, egress: &Egress) -> Result<BaseUrl, String> {
    egress.check(url).map_err(|reason| format!("Invalid custom host: {reason}"))?;
    Ok(BaseUrl { url: url.trim_end_matches('/').to_owned(), from_caller: true })
}

/// Checks a host that the operator wrote.
///
/// # Errors
/// Why it cannot be one.
pub fn operator_host(url: &str) -> Result<BaseUrl, String> {
    let parsed = url::Url::parse(url).map_err(|error| format!("\"{url}\" is not a URL: {error}"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
        return Err(format!("\"{url}\" is not allowed; allowed: an http or https URL"));
    }
    Ok(BaseUrl { url: url.trim_end_matches('/').to_owned(), from_caller: false })
}

/// Settings that a node hands to its children.
#[derive(Clone, Default)]
struct Inherited {
    override_params: Map<String, Value>,
    default_params: Map<String, Value>,
    drop_params: Vec<String>,
    params_policy: ParamsPolicy,
    retry: Option<Retry>,
    request_timeout: Option<Duration>,
    custom_host: Option<BaseUrl>,
    forward_headers: Vec<String>,
    strict: Option<bool>,
}

impl Inherited {
    fn with(&self, spec: &Spec, known: Known<'_>, problems: &Problems) -> Self {
        let mut next = self.clone();
        next.override_params.extend(spec.override_params.clone());
        next.default_params.extend(spec.default_params.clone());
        next.drop_params.extend(spec.drop_params.clone());
        next.params_policy = spec.params_policy.unwrap_or(self.params_policy);
        next.retry = spec.retry.clone().or(next.retry);
        next.request_timeout = spec.request_timeout.or(self.request_timeout);
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
        Target {
            path,
            source,
            override_params: self.override_params,
            default_params: self.default_params,
            drop_params: self.drop_params,
            params_policy: self.params_policy,
            retry: self.retry,
            request_timeout: self.request_timeout,
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
    let Some(targets) = &spec.targets else {
        if spec.strategy.is_some() && spec.provider.is_none() && spec.virtual_key.is_none() {
            problems.add(join(&spec.path, "targets"), "Required: a strategy chooses among targets");
            return None;
        }
        return leaf(spec, path, inherited, known, problems);
    };
    let child = |(i, target): (usize, &Spec)| {
        build(target, format!("{path}.targets[{i}]"), &inherited, known, problems)
    };
    let mut children: Vec<Option<Plan>> = targets.iter().enumerate().map(child).collect();
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
    match strategy.mode {
        Mode::Single => children.swap_remove(0),
        Mode::Fallback => Some(Plan::Fallback(Fallback {
            children: children.into_iter().collect::<Option<_>>()?,
            on_status_codes: strategy.on_status_codes.clone(),
            on_refusal: strategy.on_refusal,
            on_unsupported: strategy.on_unsupported,
        })),
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
        let names: Vec<_> = known.providers.iter().map(String::as_str).collect();
        let message = format!("Invalid 'provider' value. Must be one of: {}", names.join(", "));
        problems.add(join(&spec.path, "provider"), message);
        return None;
    }
    let credential = match &spec.api_key {
        Some(key) => Credential::ApiKey(key.clone()),
        None if known.keyless.contains(name) || inherited.custom_host.is_some() => Credential::None,
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
    })
}

/// Takes the virtual key out of `@virtual-key/model`.
fn named_in_model(params: &mut Map<String, Value>) -> Option<String> {
    let (slug, model) = split_model(params.get("model")?.as_str()?)?;
    let (slug, model) = (slug.to_owned(), Value::from(model));
    params.insert("model".into(), model);
    Some(slug)
}

/// `@virtual-key/model` in its two parts.
pub fn split_model(model: &str) -> Option<(&str, &str)> {
    model.strip_prefix('@')?.split_once('/')
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct World {
        providers: BTreeSet<String>,
        keyless: BTreeSet<String>,
        virtual_keys: BTreeMap<String, Arc<Upstream>>,
        egress: Egress,
    }

    fn world() -> World {
        let upstream = Upstream {
            provider: "stability-ai".into(),
            virtual_key: Some("vk".into()),
            credential: Credential::ApiKey(Secret::new("sk-secret")),
            base_url: None,
            options: BTreeMap::new(),
        };
        World {
            providers: ["openai", "stability-ai", "sandbox"].map(Into::into).into(),
            keyless: ["sandbox".into()].into(),
            virtual_keys: [("vk".to_owned(), Arc::new(upstream))].into(),
            egress: Egress::default(),
        }
    }

    fn plan(config: &Value) -> Result<Plan, Vec<String>> {
        let world = world();
        let known = Known {
            providers: &world.providers,
            keyless: &world.keyless,
            virtual_keys: &world.virtual_keys,
            egress: &world.egress,
            from_caller: true,
        };
        Plan::try_new(config, "", known).map_err(|problems| {
            problems.iter().map(|problem| format!("{}|{}", problem.path, problem.message)).collect()
        })
    }

    #[test]
    fn a_bad_config_is_refused_with_path_and_reason() {
        let key = json!({"provider": "openai", "api_key": "k"});
        for (config, expected) in [
            (json!({"strategy": {"mode": "random"}, "targets": [key]}), "strategy.mode|Invalid 'mode' value"),
            (json!({"strategy": {}, "targets": [key]}), "strategy.mode|Required"),
            (json!({"strategy": {"mode": "fallback"}, "targets": []}), "targets|at least one target"),
            (json!({"strategy": {"mode": "single"}, "targets": []}), "targets|at least one target"),
            (json!({"strategy": {"mode": "fallback"}}), "targets|Required"),
            (json!({"targets": [key]}), "|Invalid configuration"),
            (json!({"provider": "openai"}), "|Invalid configuration"),
            (
                json!({"strategy": {"mode": "fallback"}, "targets": [{"provider": "openai"}]}),
                "targets.0|Invalid configuration",
            ),
            (
                json!({"strategy": {"mode": "fallback"}, "targets": [{"retry": {"attempts": 1}}]}),
                "targets.0|Invalid configuration",
            ),
            (
                json!({"strategy": {"mode": "fallback"}, "targets": [key, {"strategy": {"mode": "single"}, "targets": [{"provider": "nope", "api_key": "k"}]}]}),
                "targets.1.targets.0.provider|Invalid 'provider' value. Must be one of: openai, sandbox, stability-ai",
            ),
            (json!({"provider": "openai", "api_key": "k", "retry": {}}), "retry.attempts|Required"),
            (
                json!({"provider": "openai", "api_key": "k", "retry": {"attempts": "3"}}),
                "retry.attempts|Expected number, received string",
            ),
            (json!({"provider": "openai", "api_key": "k", "cache": {}}), "cache.mode|Required"),
            (
                json!({"provider": "openai", "api_key": "k", "cache": {"mode": "x"}}),
                "cache.mode|Invalid 'cache.mode' value",
            ),
            (
                json!({"provider": "openai", "api_key": "k", "cache": "simple"}),
                "cache|Expected object, received string",
            ),
            (
                json!({"provider": "openai", "api_key": "k", "weight": "1"}),
                "weight|Expected number, received string",
            ),
            (
                json!({"provider": "openai", "api_key": "k", "request_timeout": "1"}),
                "request_timeout|Expected number, received string",
            ),
            (
                json!({"provider": "openai", "api_key": "k", "custom_host": "http://10.0.0.1"}),
                "custom_host|Invalid custom host",
            ),
            (
                json!({"provider": "openai", "api_key": "k", "forward_headers": ["X-Portkey-Forward-Headers"]}),
                "forward_headers|forward_headers must not contain",
            ),
            (
                json!({"strategy": {"mode": "conditional", "conditions": [{"then": 1}]}, "targets": [key]}),
                "strategy.conditions.0.query|Required",
            ),
            (json!({"options": []}), "options|This version of config is not supported"),
            (
                json!({"provider": "openai", "api_key": "k", "overide_params": {}}),
                "overide_params|unknown field; did you mean \"override_params\"?",
            ),
            (json!({"virtual_key": "nope"}), "virtual_key|virtual key \"nope\" does not exist"),
            (json!({"provider": "@nope"}), "provider|virtual key \"nope\" does not exist"),
            (
                json!({"virtual_key": "vk", "override_params": {"n": 0}}),
                "override_params.n|n: 0 is not allowed",
            ),
            (
                json!({"virtual_key": "vk", "input_guardrails": ["x"]}),
                "input_guardrails|guardrails are not available",
            ),
            (json!([]), "|Expected object, received array"),
        ] {
            let problems = plan(&config).expect_err(&config.to_string());
            assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{config}: {problems:?}");
        }
    }

    #[test]
    fn several_problems_are_reported_together() {
        let problems = plan(&json!({
            "strategy": {"mode": "random"},
            "targets": [{"provider": "nope", "api_key": "k"}, {"provider": "openai", "api_key": "k", "weight": "x"}],
        }))
        .unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn settings_are_inherited_as_the_reference_documents() {
        let plan = plan(&json!({
            "strategy": {"mode": "fallback"},
            "override_params": {"model": "parent", "user": "u"},
            "request_timeout": 1000,
            "strict_open_ai_compliance": false,
            "retry": {"attempts": 1, "on_status_codes": [400]},
            "targets": [
                {"virtual_key": "vk", "override_params": {"model": "child"}},
                {"provider": "@vk", "request_timeout": 5, "retry": {"attempts": 2}},
                {"override_params": {"model": "@vk/sd3"}},
            ],
        }))
        .unwrap();
        let targets = plan.targets();
        assert_eq!(targets[0].override_params, *json!({"model": "child", "user": "u"}).as_object().unwrap());
        assert_eq!(targets[0].request_timeout, Some(Duration::from_secs(1)));
        assert!(!targets[0].strict_open_ai_compliance);
        assert_eq!(targets[0].retry.as_ref().unwrap().on_status_codes, [400]);
        assert_eq!(targets[1].request_timeout, Some(Duration::from_millis(5)));
        assert!(targets[1].retry.as_ref().unwrap().on_status_codes.contains(&529));
        assert_eq!(targets[2].override_params["model"], "sd3");
        assert_eq!(targets[2].path, "config.targets[2]");
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let plan = plan(&json!({"provider": "openai", "api_key": "sk-live-1"})).unwrap();
        assert!(!format!("{plan:?}").contains("sk-live-1"));
    }
}
