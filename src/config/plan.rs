//! A checked routing config. Whoever holds a [`Plan`] can execute it without another check.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};

use super::{
    condition::Condition,
    identity::Identity,
    policies::{Breaker, CachePolicy, Retry},
    providers::Providers,
    spec::{ParamsPolicy, Secret},
    strategy::{OnRefusal, OnUnsupported, Policy},
};
use crate::{egress::Egress, pb, quota::Metered};

/// A checked strategy tree.
#[derive(Debug)]
pub enum Plan {
    /// One provider call.
    Target(Box<Target>),
    /// In order, until one succeeds.
    Fallback(Fallback),
    /// One of them.
    Balance(Balance),
    /// The one that the request's own facts name.
    Conditional(Conditional),
    /// In order, the next one as soon as the one before is late.
    Hedge(Hedge),
    /// Whatever is below, within a time.
    Deadline(Duration, Box<Plan>),
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

/// Children of which one is chosen.
#[derive(Debug)]
pub struct Balance {
    /// For what it remembers from request to request.
    pub id: Identity,
    /// At least one, and one with a weight.
    pub children: Vec<Weighted>,
    /// How.
    pub policy: Policy,
    /// What an unsuitable target does.
    pub on_unsupported: OnUnsupported,
}

/// A child of a balance.
#[derive(Debug)]
pub struct Weighted {
    /// Not negative. 0: never chosen.
    pub weight: f64,
    /// What is run.
    pub plan: Plan,
}

/// Children of which the first case that holds names one.
#[derive(Debug)]
pub struct Conditional {
    /// At least one.
    pub children: Vec<Plan>,
    /// In order, each with the index of its child.
    pub cases: Vec<(Condition, usize)>,
    /// The child if no case holds.
    pub default: Option<usize>,
}

/// Children that are started one after the other, each when the one before is late or has failed.
#[derive(Debug)]
pub struct Hedge {
    /// For what it remembers from request to request.
    pub id: Identity,
    /// In this order, with what a failure does.
    pub order: Fallback,
    /// What late is.
    pub after: Duration,
    /// Extra calls per request on average.
    pub budget: f64,
}

/// One provider with everything a call needs, inheritance done.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its place: `config.targets[1]`.
    pub path: String,
    /// Provider and credential.
    pub source: Source,
    /// Whom it calls, as far as the config says.
    pub identity: Identity,
    /// The config says which model.
    pub names_model: bool,
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
    /// When it is left alone; none: never.
    pub breaker: Option<Breaker>,
    /// Which answers are kept.
    pub cache: Option<CachePolicy>,
    /// Limit of one attempt, body included.
    pub request_timeout: Option<Duration>,
    /// Limit of the silence before an answer's first byte.
    pub first_byte_timeout: Option<Duration>,
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
#[derive(Clone)]
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
    /// Credential or settings came with a request.
    pub from_caller: bool,
    /// What models at this address can do, before what their provider's record says.
    pub models: Arc<[pb::ModelCapability]>,
    /// How much may be asked with it; none: there is no limit.
    pub metered: Option<Metered>,
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
    /// It must not be used: why, as in "virtual key x is disabled".
    Withdrawn(String),
}

/// An upstream address.
#[derive(Clone, PartialEq, Eq)]
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
    pub providers: &'a Providers,
    /// Stored credentials.
    pub virtual_keys: &'a BTreeMap<String, Arc<Upstream>>,
    /// For hosts that come with a request.
    pub egress: &'a Egress,
    /// The config came with a request.
    pub from_caller: bool,
}

/// Without what may be a token.
impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.split('?').next().unwrap_or_default())
    }
}

/// Without the values of its settings: a token may be among them.
impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("provider", &self.provider)
            .field("virtual_key", &self.virtual_key)
            .field("credential", &self.credential)
            .field("base_url", &self.base_url)
            .field("options", &self.options.keys())
            .finish()
    }
}

impl Upstream {
    /// Whom it calls.
    pub fn identity(&self) -> Identity {
        let credential = match &self.credential {
            Credential::None | Credential::Withdrawn(_) => "",
            Credential::ApiKey(key) => key.0.expose_secret(),
            Credential::HeldByWorker(name) => name,
        };
        let base_url = self.base_url.as_ref().map_or("", |base_url| base_url.url.as_str());
        let options = self.options.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        let parts = [self.provider.as_str(), base_url, credential];
        Identity::of(parts.into_iter().chain(options))
    }
}

impl Target {
    /// The model that the config says, whatever the request does.
    pub fn model(&self) -> Option<&str> {
        self.override_params.get("model").and_then(Value::as_str)
    }
}

impl Plan {
    /// Every target, in order.
    pub fn targets(&self) -> Vec<&Target> {
        let mut targets = Vec::new();
        self.visit(&mut |target| targets.push(target));
        targets
    }

    /// Whether any target takes its provider from the request.
    pub fn takes_from_request(&self) -> bool {
        let mut takes = false;
        self.visit(&mut |target| takes |= matches!(target.source, Source::Request));
        takes
    }

    /// Shows every target, in order. For what every request asks: nothing is collected.
    pub fn visit<'a>(&'a self, see: &mut dyn FnMut(&'a Target)) {
        match self {
            Self::Target(target) => see(target),
            Self::Fallback(Fallback { children, .. })
            | Self::Conditional(Conditional { children, .. })
            | Self::Hedge(Hedge { order: Fallback { children, .. }, .. }) => {
                children.iter().for_each(|child| child.visit(see));
            }
            Self::Balance(balance) => balance.children.iter().for_each(|child| child.plan.visit(see)),
            Self::Deadline(_, inner) => inner.visit(see),
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
    let parsed = url::Url::parse(url);
    // Not shown: what is wrong with the rest of it may well be the password.
    if url.contains('@')
        && parsed.as_ref().map_or(true, |url| !url.username().is_empty() || url.password().is_some())
    {
        return Err("credentials in an address are not allowed; write them as api_key".to_owned());
    }
    let parsed = parsed.map_err(|error| format!("\"{url}\" is not a URL: {error}"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
        return Err(format!("\"{url}\" is not allowed; allowed: an http or https URL"));
    }
    Ok(BaseUrl { url: url.trim_end_matches('/').to_owned(), from_caller: false })
}

/// What Cloudflare's own model ids begin with, as in `@cf/vendor/name`. No virtual key may be called so.
pub const MODEL_NAMESPACES: &[&str] = &["cf", "hf"];

/// `@virtual-key/model` in its two parts. A model id of Cloudflare's names no virtual key.
pub fn split_model(model: &str) -> Option<(&str, &str)> {
    let parts = model.strip_prefix('@')?.split_once('/')?;
    (!MODEL_NAMESPACES.contains(&parts.0)).then_some(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct World {
        providers: Providers,
        virtual_keys: BTreeMap<String, Arc<Upstream>>,
        egress: Egress,
    }

    fn world() -> World {
        let record = |name: &str| pb::Provider { name: name.into(), ..Default::default() };
        let upstream = Upstream {
            provider: "stability-ai".into(),
            virtual_key: Some("vk".into()),
            credential: Credential::ApiKey(Secret::new("sk-secret")),
            base_url: None,
            options: BTreeMap::new(),
            from_caller: false,
            models: Arc::default(),
            metered: None,
        };
        World {
            providers: Providers::default()
                .with(&record("openai"))
                .with(&record("stability-ai"))
                .with_own("sandbox"),
            virtual_keys: [("vk".to_owned(), Arc::new(upstream))].into(),
            egress: Egress::default(),
        }
    }

    fn plan(config: &Value) -> Result<Plan, Vec<String>> {
        let world = world();
        let known = Known {
            providers: &world.providers,
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
            (
                json!({"strategy": {"mode": "hedge", "after_ms": 0}, "targets": [key]}),
                "strategy.after_ms|0 is not allowed",
            ),
            (
                json!({"strategy": {"mode": "loadbalance", "sticky": {"hash_fields": []}}, "targets": [key]}),
                "strategy.sticky.hash_fields|at least one field",
            ),
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
                json!({"virtual_key": "vk", "resource_name": "mine"}),
                "resource_name|where virtual key \"vk\" is sent, and as whom, is not for a request to say",
            ),
            (
                json!({"virtual_key": "vk", "comfyui_workflow": {"1": {"class_type": "RunShell"}}}),
                "comfyui_workflow|where virtual key \"vk\" is sent",
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
    fn a_model_id_of_cloudflares_names_no_virtual_key() {
        for (model, parts) in [
            ("@vk/sd3", Some(("vk", "sd3"))),
            ("@cf/black-forest-labs/flux-1-schnell", None),
            ("@hf/vendor/name", None),
            ("@cfo/sd3", Some(("cfo", "sd3"))),
            ("@vk/@cf/leonardo/phoenix-1.0", Some(("vk", "@cf/leonardo/phoenix-1.0"))),
            ("sd3", None),
        ] {
            assert_eq!(split_model(model), parts, "{model}");
        }
        let model = "@cf/leonardo/phoenix-1.0";
        for params in [json!({"model": model}), json!({"model": format!("@vk/{model}")})] {
            let plan = plan(&json!({"virtual_key": "vk", "override_params": params})).unwrap();
            assert_eq!(plan.targets()[0].override_params["model"], model);
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let config = json!({"provider": "openai", "api_key": "sk-live-1", "azure_ad_token": "ey-live-2"});
        let shown = format!("{:?}", plan(&config).unwrap());
        assert!(shown.contains("azure_ad_token"));
        assert!(!shown.contains("sk-live-1") && !shown.contains("ey-live-2"));
    }
}
