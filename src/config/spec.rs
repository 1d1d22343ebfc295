//! A routing config as a user writes it: the reference's format and our extensions (docs/routing.md).
//!
//! Reading finds everything that is wrong with the shape. What needs the rest of the configuration (known
//! providers, virtual keys, inheritance) is the business of `plan`.

use std::{fmt, time::Duration};

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{
    policies::{Breaker, CachePolicy, Retry},
    read::{Object, Problems},
    strategy::Strategy,
    yaml::join,
};

/// One node of a routing config.
#[derive(Default)]
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
    /// What a conditional calls it.
    pub name: Option<String>,
    /// Its share in a balance.
    pub weight: Option<f64>,
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
    /// Which answers are kept. Replaces the parent's.
    pub cache: Option<CachePolicy>,
    /// When targets are left alone. The nearest wins.
    pub breaker: Option<Option<Breaker>>,
    /// Limit of one attempt, body included. The nearest wins.
    pub request_timeout: Option<Duration>,
    /// Limit of the silence before an answer's first byte. The nearest wins.
    pub first_byte_timeout: Option<Duration>,
    /// Limit of everything below this node.
    pub total_timeout: Option<Duration>,
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

/// Fields that a provider may want, by prefix; their meaning is the provider's.
const OPTION_PREFIXES: &[&str] = &[
    "openai_",
    "azure_",
    "aws_",
    "vertex_",
    "workers_ai_",
    "fireworks_",
    "huggingface_",
    "stability_",
    "comfyui_",
];
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

/// Where it is, not what it says: secrets may be among the provider's settings.
impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("path", &self.path).finish_non_exhaustive()
    }
}

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
        let weight = object.number("weight");
        if weight.is_some_and(|weight| !(0.0..=1e9).contains(&weight)) {
            object.problem("weight", "a weight cannot be negative, and is at most 1000000000");
        }
        // The reference reads it at a strategy only.
        object.statuses("on_status_codes");
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
            name: object.text("name").map(str::to_owned),
            weight,
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
            cache: object.object("cache").and_then(CachePolicy::read),
            breaker: Breaker::read_in(&mut object),
            request_timeout: object.millis("request_timeout"),
            first_byte_timeout: object.millis("first_byte_timeout_ms"),
            total_timeout: object.millis("total_timeout_ms"),
            custom_host: object.text("custom_host").map(str::to_owned),
            forward_headers,
            strict_open_ai_compliance: object.flag("strict_open_ai_compliance"),
            params_policy: object.choice(
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

/// Settings that are part of the address a provider is called at, or say what runs on the operator's own machine.
const PLACE_OPTIONS: &[&str] = &[
    "resource_name",
    "azure_resource_name",
    "azure_foundry_url",
    "vertex_project_id",
    "huggingface_base_url",
    "aws_bedrock_domain",
    "workers_ai_account_id",
    // Nodes can read files there, and some run code.
    "comfyui_workflow",
];

/// What the names of settings contain that say who calls.
const CREDENTIAL_WORDS: &[&str] =
    &["auth", "token", "secret", "access_key", "service_account", "entra", "managed", "role", "external_id"];

/// Whether a provider's setting says where the provider is, who calls it, or what runs there.
pub fn is_operators_option(name: &str) -> bool {
    PLACE_OPTIONS.contains(&name) || CREDENTIAL_WORDS.iter().any(|word| name.contains(word))
}

/// Whether a provider's setting is a secret, to judge by its name.
pub fn is_secret_option(name: &str) -> bool {
    ["token", "secret", "access_key", "service_account"].iter().any(|word| name.contains(word))
}

/// Whether a field is a setting of the provider's own.
pub fn is_provider_option(name: &str) -> bool {
    OPTION_NAMES.contains(&name) || OPTION_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
