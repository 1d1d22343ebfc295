//! A routing config as a user writes it: the reference's format and our extensions (docs/routing.md).
//!
//! Reading finds everything that is wrong with the shape. What needs the rest of the configuration (known
//! providers, virtual keys, inheritance) is the business of `plan`.

use std::{fmt, time::Duration};

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{
    read::{Object, Problems},
    yaml::join,
};

/// One node of a routing config.
#[derive(Debug, Default)]
pub struct Spec {
    /// Where it stands, for problems.
    pub path: String,
    /// How it chooses among `targets`.
    pub strategy: Option<Strategy>,
    /// Its children.
    pub targets: Option<Vec<Spec>>,
    /// Provider id, or `@virtual-key`.
    pub provider: Option<String>,
    /// The provider's credential.
    pub api_key: Option<Secret>,
    /// Id of a stored credential.
    pub virtual_key: Option<String>,
    /// Provider and credential come with the request.
    pub passthrough: bool,
    /// Always overwrite the request's fields. Merged downwards, the child wins.
    pub override_params: Map<String, Value>,
    /// Fill in fields that the request does not have. Merged downwards, the child wins.
    pub default_params: Map<String, Value>,
    /// Removed from the request at last. Added up downwards.
    pub drop_params: Vec<String>,
    /// Replaces the parent's.
    pub retry: Option<Retry>,
    /// Present, but there is no cache in this version.
    pub cache: bool,
    /// Limit of one attempt, body included. The nearest wins.
    pub request_timeout: Option<Duration>,
    /// Replaces the provider's address. The nearest wins.
    pub custom_host: Option<String>,
    /// Headers of the request that go to the provider. The nearest list wins.
    pub forward_headers: Option<Vec<String>>,
    /// False lets fields through that OpenAI's answers do not have. Inherited.
    pub strict_open_ai_compliance: Option<bool>,
    /// What negotiation may do. Inherited.
    pub params_policy: Option<ParamsPolicy>,
    /// The provider's own settings: `openai_organization`, `aws_region`, ...
    pub options: Vec<(String, String)>,
}

/// How a node chooses among its targets.
#[derive(Debug)]
pub struct Strategy {
    /// Which way.
    pub mode: Mode,
    /// Statuses that let the next target try; none means any failure.
    pub on_status_codes: Option<Vec<u16>>,
    /// What a content refusal does.
    pub on_refusal: OnRefusal,
    /// What a target does that cannot serve the request.
    pub on_unsupported: OnUnsupported,
}

/// Strategies of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The first target only.
    Single,
    /// In order, until one succeeds.
    Fallback,
}

/// What a content refusal does in a fallback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefusal {
    /// The next target tries, as with any failure.
    #[default]
    Fallback,
    /// The caller gets it.
    Return,
}

/// What happens to a target that cannot serve the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnsupported {
    /// The next one tries.
    #[default]
    Skip,
    /// The request fails.
    Fail,
}

/// What negotiation may do to parameters that a target lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ParamsPolicy {
    /// Adjust, else drop; report.
    #[default]
    Nearest,
    /// Nothing: the target is unsupported.
    Strict,
    /// Drop; report.
    Drop,
}

/// When a target is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// After the first try.
    pub attempts: u32,
    /// Which statuses.
    pub on_status_codes: Vec<u16>,
    /// Wait as long as the provider asks.
    pub use_retry_after_header: bool,
    /// Longest wait of our own.
    pub max_delay: Duration,
}

/// A secret that was read and will not be shown.
#[derive(Clone)]
pub struct Secret(pub SecretString);

impl Secret {
    /// Takes a secret out of a text.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Statuses that a retry without `on_status_codes` repeats.
const RETRY_STATUSES: [u16; 6] = [429, 500, 502, 503, 504, 529];

/// Fields that a provider may want, by prefix; their meaning is the provider's.
const OPTION_PREFIXES: &[&str] =
    &["openai_", "azure_", "aws_", "vertex_", "workers_ai_", "fireworks_", "huggingface_", "stability_"];
const OPTION_NAMES: &[&str] = &["resource_name", "deployment_id", "api_version", "ad_auth"];

/// Checks of the reference that this version does not carry out: refusing beats skipping them in silence.
const GUARDRAILS: &[&str] = &[
    "before_request_hooks",
    "after_request_hooks",
    "input_guardrails",
    "output_guardrails",
    "default_input_guardrails",
    "default_output_guardrails",
];

impl Spec {
    /// Reads a config and everything below it.
    pub fn read(value: &Value, path: &str, problems: &Problems) -> Option<Self> {
        let mut object = Object::open(value, path, problems)?;
        if object.has("options") {
            object.problem(
                "options",
                "This version of config is not supported in this route. Please migrate to the latest version",
            );
            return None;
        }
        let strategy = object.object("strategy").and_then(Strategy::read);
        let targets = object.list("targets").map(|targets| {
            let path = join(path, "targets");
            let read = |(i, target)| Self::read(target, &join(&path, &format!("{i}")), problems);
            targets.iter().enumerate().filter_map(read).collect()
        });
        for name in GUARDRAILS {
            if object.value(name).is_some() {
                object.problem(name, "guardrails are not available in this version; remove them");
            }
        }
        // Names and weights belong to strategies of later versions; their types are checked all the same.
        object.text("name");
        if object.number("weight").is_some_and(|weight| weight < 0.0) {
            object.problem("weight", "a weight cannot be negative");
        }
        object.map("cb_config");
        object.statuses("on_status_codes");
        let cache = object.object("cache").map(read_cache).is_some();
        let forward_headers = object
            .texts("forward_headers")
            .map(|names| names.iter().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>());
        if forward_headers.iter().flatten().any(|name| name == "x-portkey-forward-headers") {
            object.problem(
                "forward_headers",
                "forward_headers must not contain the 'x-portkey-forward-headers' header",
            );
        }
        let spec = Self {
            path: path.to_owned(),
            strategy,
            targets,
            provider: object.text("provider").map(str::to_owned),
            api_key: object.text("api_key").filter(|key| !key.is_empty()).map(Secret::new),
            virtual_key: object.text("virtual_key").map(str::to_owned),
            passthrough: object.flag("passthrough").unwrap_or_default(),
            override_params: object.map("override_params").cloned().unwrap_or_default(),
            default_params: object.map("default_params").cloned().unwrap_or_default(),
            drop_params: object
                .texts("drop_params")
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect(),
            retry: object.object("retry").and_then(Retry::read),
            cache,
            request_timeout: object.millis("request_timeout"),
            custom_host: object.text("custom_host").map(str::to_owned),
            forward_headers,
            strict_open_ai_compliance: object.flag("strict_open_ai_compliance"),
            params_policy: choice(
                &mut object,
                "params_policy",
                &[
                    ("nearest", ParamsPolicy::Nearest),
                    ("strict", ParamsPolicy::Strict),
                    ("drop", ParamsPolicy::Drop),
                ],
            ),
            options: object.texts_where(is_provider_option),
        };
        object.finish();
        Some(spec)
    }
}

impl Strategy {
    fn read(mut object: Object<'_>) -> Option<Self> {
        let mode = object.required("mode").map(|value| value.as_str().unwrap_or_default());
        let mode = match mode? {
            "single" => Some(Mode::Single),
            "fallback" => Some(Mode::Fallback),
            mode @ ("loadbalance" | "conditional" | "hedge") => {
                object.problem(
                    "mode",
                    format!("'{mode}' is not available in this version; available: single, fallback"),
                );
                None
            }
            _ => {
                object.problem(
                    "mode",
                    "Invalid 'mode' value. Must be one of: single, loadbalance, fallback, conditional",
                );
                None
            }
        };
        read_conditions(&mut object);
        object.text("default");
        let on_status_codes = object.statuses("on_status_codes");
        let on_refusal = choice(
            &mut object,
            "on_refusal",
            &[("fallback", OnRefusal::Fallback), ("return", OnRefusal::Return)],
        );
        let on_unsupported = choice(
            &mut object,
            "on_unsupported",
            &[("skip", OnUnsupported::Skip), ("fail", OnUnsupported::Fail)],
        );
        object.map("cb_config");
        object.map("sticky");
        object.finish();
        Some(Self {
            mode: mode?,
            on_status_codes,
            on_refusal: on_refusal.unwrap_or_default(),
            on_unsupported: on_unsupported.unwrap_or_default(),
        })
    }
}

impl Retry {
    fn read(mut object: Object<'_>) -> Option<Self> {
        object.required("attempts");
        let attempts = object.whole("attempts", 0, 10);
        let retry = Self {
            attempts: attempts.unwrap_or_default() as u32,
            on_status_codes: object.statuses("on_status_codes").unwrap_or_else(|| RETRY_STATUSES.to_vec()),
            // The reference's schema and its changelog spell it differently.
            use_retry_after_header: object.flag("use_retry_after_header").unwrap_or_default()
                | object.flag("use_retry_after_headers").unwrap_or_default(),
            max_delay: object.millis("max_delay_ms").unwrap_or(Duration::from_secs(16)),
        };
        object.finish();
        attempts.map(|_| retry)
    }
}

/// Whether a field is a setting of the provider's own.
pub fn is_provider_option(name: &str) -> bool {
    OPTION_NAMES.contains(&name) || OPTION_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn read_conditions(object: &mut Object<'_>) {
    let Some(conditions) = object.list("conditions") else { return };
    for (i, condition) in conditions.iter().enumerate() {
        let path = object.at(&format!("conditions.{i}"));
        if let Some(mut condition) = Object::open(condition, path, object.problems()) {
            if condition.required("query").is_some() {
                condition.map("query");
            }
            if condition.required("then").is_some() {
                condition.text("then");
            }
            condition.finish();
        }
    }
}

fn read_cache(mut object: Object<'_>) {
    if let Some(mode) = object.required("mode")
        && !matches!(mode.as_str(), Some("simple" | "semantic"))
    {
        object.problem("mode", "Invalid 'cache.mode' value. Must be one of: simple, semantic");
    }
    object.number("max_age");
    object.text("namespace");
    object.number("threshold");
    object.finish();
}

fn choice<T: Copy>(object: &mut Object<'_>, name: &str, allowed: &[(&str, T)]) -> Option<T> {
    let said = object.text(name)?;
    let found = allowed.iter().find(|(word, _)| *word == said);
    if found.is_none() {
        let words: Vec<_> = allowed.iter().map(|(word, _)| *word).collect();
        object.problem(name, format!("'{said}' is not allowed; allowed: {}", words.join(", ")));
    }
    found.map(|(_, value)| *value)
}
