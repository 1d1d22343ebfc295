//! The file `imagegate.yaml`, checked as a whole (docs/configuration.md).

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    callers::{Callers, check_config_id, read_callers},
    dashboard::DashboardSettings,
    images::ImagesSettings,
    memory::MemorySettings,
    otlp::OtlpSettings,
    plan::{self, Credential, Known, Plan, Upstream},
    providers::Providers,
    quota::{Quota, Rule},
    read::{Object, Problems, suggestion},
    redis::RedisSettings,
    saved::Realm,
    spec::{self, Secret},
    tls::TlsChoice,
};
use crate::{
    admission::default_budget,
    egress::Egress,
    pb,
    pool::Address,
    prices::{self, Book},
    provider::{canonical_name, catalog},
    quota::Metered,
};

/// Everything the file says, checked, and what was saved beside it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses to listen on; a role fills in what it needs.
    pub listen: Listen,
    /// Embedded stores: what is remembered, jobs, images.
    pub data_dir: PathBuf,
    /// Stored credentials by id.
    pub virtual_keys: BTreeMap<String, Arc<Upstream>>,
    /// Saved routing configs by id.
    pub configs: BTreeMap<String, Arc<Plan>>,
    /// For requests that name no route.
    pub default_config: Option<String>,
    /// Who may call.
    pub callers: Callers,
    /// Workers elsewhere, by provider: all addresses of each.
    pub workers: BTreeMap<String, Vec<Address>>,
    /// How the connections between the roles are protected.
    pub tls: TlsChoice,
    /// What hosts that come with a request may reach.
    pub egress: Arc<Egress>,
    /// Bounds of a request.
    pub limits: Limits,
    /// What tenants and requests with some metadata may use.
    pub quotas: Arc<[Rule]>,
    /// What the gateway remembers.
    pub memory: MemorySettings,
    /// What was saved, by tenant.
    pub tenants: BTreeMap<String, Realm>,
    /// What several routers share.
    pub redis: Option<RedisSettings>,
    /// Where spans and metrics of requests go.
    pub otlp: Option<OtlpSettings>,
    /// Who compares prompts for `cache.mode: semantic`.
    pub embeddings: Option<Embeddings>,
    /// What a model that its provider has retired does.
    pub retired_models: RetiredModels,
    /// What webhooks are signed with; without it there are none.
    pub webhook_key: Option<SigningKey>,
    /// How clients reach the shim, for links to images; else the request's own host.
    pub public_url: Option<String>,
    /// The pages for a browser.
    pub dashboard: DashboardSettings,
    /// Where images are kept.
    pub images: ImagesSettings,
    /// How long an image asked for as `url` can be fetched.
    pub image_lifetime: Duration,
    /// What happens after SIGTERM.
    pub shutdown: Shutdown,
    /// The operator's own prices.
    pub prices: Arc<Book>,
    /// Where they are, if they have a file of their own.
    pub prices_file: Option<PathBuf>,
}

/// Addresses to listen on. Port 0 takes any free one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// OpenAI's format.
    pub http: Option<SocketAddr>,
    /// gRPC.
    pub grpc: Option<SocketAddr>,
    /// Probes and metrics.
    pub admin: Option<SocketAddr>,
}

/// What happens after SIGTERM.
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// How long new requests are still answered, while load balancers notice that they should go elsewhere.
    pub delay: Duration,
    /// How long requests in flight may then take to finish.
    pub grace: Duration,
}

/// Bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Larger request bodies are refused with 413.
    pub max_body_bytes: usize,
    /// What this process holds of requests and answers at once.
    pub bytes_in_flight: usize,
    /// The whole request, all attempts together.
    pub total_timeout: Duration,
    /// One attempt of a target without `request_timeout`.
    pub attempt_timeout: Duration,
    /// Answers that are kept for requests with an idempotency key.
    pub idempotency_bytes: usize,
    /// Memory for answers that are kept; 0: none are.
    pub cache_bytes: usize,
    /// Jobs that run at once.
    pub jobs: usize,
}

/// A key for signatures, which is not shown.
#[derive(Clone)]
pub struct SigningKey(pub Arc<[u8]>);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// An embeddings endpoint in OpenAI's format.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// The whole address.
    pub url: plan::BaseUrl,
    /// Which model.
    pub model: String,
    /// Sent as bearer token.
    pub api_key: Option<Secret>,
    /// An answer that takes longer is done without.
    pub timeout: Duration,
}

/// What a model that its provider has retired does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetiredModels {
    /// It is called all the same, with a warning: other servers still speak its dialect.
    #[default]
    Warn,
    /// Its successor is called, with a warning.
    Substitute,
    /// The target is skipped.
    Fail,
}

const RETIRED_MODELS: &[(&str, RetiredModels)] = &[
    ("warn", RetiredModels::Warn),
    ("substitute", RetiredModels::Substitute),
    ("fail", RetiredModels::Fail),
];

impl Settings {
    /// Checks the content of a file whose secrets have been filled in. `built_in` are the providers of this
    /// binary, with whether they need no credential.
    pub fn read(value: &Value, built_in: &Providers, problems: &Problems) -> Option<Self> {
        let mut file = Object::open(value, "", problems)?;
        let listen = file.object("listen").map(read_listen).unwrap_or_default();
        let workers = read_workers(&mut file);
        let tls = TlsChoice::read(&mut file);
        let egress = Arc::new(file.object("egress").map(read_egress).unwrap_or_default());
        let providers = built_in.clone().with_all_own(workers.keys());
        let virtual_keys = read_virtual_keys(&mut file, &providers, &workers);
        let known =
            Known { providers: &providers, virtual_keys: &virtual_keys, egress: &egress, from_caller: false };
        let configs = read_configs(&mut file, known);
        // Also those that could not be read: they have been reported, and are not missing.
        let names: Vec<&str> = file.map("configs").into_iter().flatten().map(|(id, _)| id.as_str()).collect();
        let callers = read_callers(&mut file, &names);
        let default_config = file.text("default_config").map(str::to_owned);
        check_config_id(&file, "default_config", default_config.as_deref(), &names);
        let data_dir = PathBuf::from(file.text("data_dir").unwrap_or("./data"));
        let images = ImagesSettings::read(file.object("images"), &data_dir);
        let quotas = Rule::read_all(&mut file, &callers).into();
        let limits = read_limits(file.object("limits"));
        let redis = file.object("redis").and_then(RedisSettings::read);
        let otlp = OtlpSettings::read(&mut file);
        let memory = MemorySettings::read(&mut file);
        let embeddings = file.object("embeddings").and_then(read_embeddings);
        let public_url = file.text("public_url").map(|url| url.trim_end_matches('/').to_owned());
        if let Some(Err(message)) = public_url.as_deref().map(plan::operator_host) {
            file.problem("public_url", message);
        }
        let dashboard = DashboardSettings::read(file.object("dashboard"), &callers.issuers);
        let retired_models = file.choice("retired_models", RETIRED_MODELS).unwrap_or_default();
        let webhook_key = file.object("webhooks").and_then(read_webhooks);
        let prices = file.object("prices").map(|book| prices::read::read(book, Some(&providers.names())));
        let seconds = |value: Option<u64>, default| Duration::from_secs(value.unwrap_or(default));
        let settings = Self {
            listen,
            data_dir,
            configs,
            default_config,
            callers,
            workers,
            tls,
            egress,
            limits,
            quotas,
            memory,
            tenants: BTreeMap::new(),
            redis,
            otlp,
            embeddings,
            retired_models,
            webhook_key,
            public_url,
            dashboard,
            images,
            // OpenAI's own links live as long.
            image_lifetime: seconds(file.whole("image_lifetime_s", 1, 31_536_000), 3600),
            shutdown: Shutdown {
                delay: seconds(file.whole("shutdown_delay_s", 0, 3600), 0),
                grace: seconds(file.whole("shutdown_grace_s", 0, 86_400), 330),
            },
            prices: Arc::new(prices.unwrap_or_default()),
            prices_file: None,
            virtual_keys,
        };
        file.finish();
        Some(settings)
    }
}

impl Settings {
    /// Refuses to be open to others: whoever reaches an open gateway spends the operator's money.
    ///
    /// # Errors
    /// The address that is reachable, and what to write.
    pub fn check_exposure(&self, listen: Listen) -> Result<(), String> {
        if let Some(address) = listen.grpc {
            self.tls.check_exposure("listen.grpc", address)?;
        }
        if self.callers.open || !self.callers.is_empty() {
            return Ok(());
        }
        for (field, address) in [("listen.http", listen.http), ("listen.grpc", listen.grpc)] {
            if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
                return Err(format!(
                    "{field}: {address} is reachable from outside and there are no api_keys: add some, or \
                     jwt_issuers, or write `auth: open`"
                ));
            }
        }
        Ok(())
    }
}

fn read_listen(mut object: Object<'_>) -> Listen {
    let mut address = |name: &str| {
        let text = object.text(name)?;
        match text.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                object.problem(
                    name,
                    format!("\"{text}\" is not allowed; allowed: ADDRESS:PORT such as 127.0.0.1:8787"),
                );
                None
            }
        }
    };
    let listen = Listen { http: address("http"), grpc: address("grpc"), admin: address("admin") };
    object.finish();
    listen
}

fn read_workers(file: &mut Object<'_>) -> BTreeMap<String, Vec<Address>> {
    let mut workers = BTreeMap::new();
    for (name, value) in file.map("workers").into_iter().flatten() {
        let uris: Option<Vec<&str>> = match value {
            Value::String(uri) => Some(vec![uri]),
            Value::Array(uris) => uris.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let addresses = match uris {
            Some(uris) => Address::parse_all(&uris),
            None => Err("not allowed; allowed: an address, or a list of them".into()),
        };
        match addresses {
            Ok(addresses) => _ = workers.insert(canonical_name(name).to_owned(), addresses),
            Err(message) => file.problems().add(file.at(&format!("workers.{name}")), message),
        }
    }
    workers
}

fn read_egress(mut object: Object<'_>) -> Egress {
    let mut egress = Egress::default();
    for (i, text) in object.texts("allow").unwrap_or_default().into_iter().enumerate() {
        match text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into)) {
            Ok(range) => egress.allow.push(range),
            Err(_) => object.problem(
                &format!("allow.{i}"),
                format!("\"{text}\" is not allowed; allowed: an address range such as 127.0.0.0/8"),
            ),
        }
    }
    object.finish();
    egress
}

fn read_limits(object: Option<Object<'_>>) -> Limits {
    let mut limits = Limits {
        max_body_bytes: 64 << 20,
        bytes_in_flight: default_budget(),
        total_timeout: Duration::from_secs(600),
        // The slowest models take about 280 s at the 95th percentile (openai.md, a third-party benchmark).
        attempt_timeout: Duration::from_secs(300),
        idempotency_bytes: 256 << 20,
        cache_bytes: 256 << 20,
        jobs: 1000,
    };
    if let Some(mut object) = object {
        if let Some(bytes) = object.whole("max_body_bytes", 1024, 1 << 32) {
            limits.max_body_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        let least = limits.max_body_bytes as u64;
        if let Some(bytes) = object.whole("bytes_in_flight", least, 1 << 40) {
            limits.bytes_in_flight = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        limits.bytes_in_flight = limits.bytes_in_flight.max(limits.max_body_bytes);
        if let Some(bytes) = object.whole("idempotency_bytes", 0, 1 << 40) {
            limits.idempotency_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        if let Some(bytes) = object.whole("cache_bytes", 0, 1 << 40) {
            limits.cache_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        if let Some(jobs) = object.whole("jobs", 0, 1_000_000) {
            limits.jobs = usize::try_from(jobs).unwrap_or(usize::MAX);
        }
        limits.total_timeout = object.millis("total_timeout_ms").unwrap_or(limits.total_timeout);
        limits.attempt_timeout = object.millis("attempt_timeout_ms").unwrap_or(limits.attempt_timeout);
        object.finish();
    }
    limits
}

fn read_embeddings(mut object: Object<'_>) -> Option<Embeddings> {
    object.required("url");
    object.required("model");
    let url = object.text("url").map(plan::operator_host);
    if let Some(Err(message)) = &url {
        object.problem("url", message);
    }
    let model = object.text("model").map(str::to_owned);
    let api_key = object.text("api_key").filter(|key| !key.is_empty()).map(Secret::new);
    // A prompt takes a fraction of this; without an answer every image would wait as long.
    let timeout = object.millis("timeout_ms").unwrap_or(Duration::from_secs(2));
    object.finish();
    Some(Embeddings { url: url?.ok()?, model: model?, api_key, timeout })
}

/// Standard Webhooks' form of a secret: the specification asks for 24 to 64 random bytes.
fn read_webhooks(mut object: Object<'_>) -> Option<SigningKey> {
    object.required("secret");
    let secret = object.text("secret").filter(|secret| !secret.is_empty());
    let decoded = secret
        .and_then(|secret| secret.strip_prefix("whsec_"))
        .and_then(|base64| base64_simd::STANDARD.decode_to_vec(base64).ok())
        .filter(|bytes| (24..=64).contains(&bytes.len()));
    if secret.is_some() && decoded.is_none() {
        object.problem("secret", "not a webhook secret; allowed: whsec_ and 24 to 64 random bytes in base64");
    }
    object.finish();
    decoded.map(|bytes| SigningKey(bytes.into()))
}

fn read_virtual_keys(
    file: &mut Object<'_>,
    providers: &Providers,
    workers: &BTreeMap<String, Vec<Address>>,
) -> BTreeMap<String, Arc<Upstream>> {
    let mut keys = BTreeMap::new();
    let Some(entries) = file.map("virtual_keys") else { return keys };
    for (id, value) in entries {
        let path = file.at(&format!("virtual_keys.{id}"));
        if plan::MODEL_NAMESPACES.contains(&id.as_str()) {
            let message = format!("models called \"@{id}/...\" are Cloudflare's own: choose another id");
            file.problems().add(&path, message);
        }
        let Some(object) = Object::open(value, path, file.problems()) else { continue };
        if let Some(upstream) = read_virtual_key(id, object, providers, workers) {
            keys.insert(id.clone(), Arc::new(upstream));
        }
    }
    keys
}

/// Reads one entry of `virtual_keys`.
pub fn read_virtual_key(
    id: &str,
    mut object: Object<'_>,
    providers: &Providers,
    workers: &BTreeMap<String, Vec<Address>>,
) -> Option<Upstream> {
    object.required("provider");
    let provider = object.text("provider").map(canonical_name);
    if let Some(provider) = provider.filter(|provider| !providers.contains(provider)) {
        let hint = suggestion(provider, &providers.names());
        object.problem("provider", format!("unknown provider \"{provider}\"{hint}"));
    }
    let key = object.text("api_key").filter(|key| !key.is_empty()).map(Secret::new);
    let held_by_worker = match object.text("held_by") {
        None => false,
        Some("worker") => true,
        Some(other) => {
            object.problem("held_by", format!("'{other}' is not allowed; allowed: worker"));
            false
        }
    };
    let base_url = object
        .text("base_url")
        .and_then(|url| plan::operator_host(url).map_err(|message| object.problem("base_url", message)).ok());
    let options: BTreeMap<_, _> = object.texts_where(spec::is_provider_option).into_iter().collect();
    if let Some((provider, known)) = provider.and_then(|name| Some((name, providers.settings(name)?))) {
        for name in options.keys().filter(|name| !known.contains(&name.as_str())) {
            object.problem(name, format!("{provider} has no such setting{}", suggestion(name, &known)));
        }
    }
    let models = read_models(&mut object);
    let quota = Quota::read(&mut object);
    let key_is_missing = object.value("api_key").is_none_or(|key| key.as_str() == Some(""));
    object.report_unknown();
    let credential = match (key, held_by_worker) {
        (Some(_), true) => {
            object.problem("api_key", "a credential is either written here or held by the worker, not both");
            return None;
        }
        (Some(key), false) => Credential::ApiKey(key),
        (None, true) if provider.is_some_and(|provider| !workers.contains_key(provider)) => {
            object.problem(
                "held_by",
                "only a worker of its own process holds credentials: name it under `workers`",
            );
            return None;
        }
        (None, true) => Credential::HeldByWorker(id.to_owned()),
        (None, false)
            if provider.is_some_and(|name| {
                providers.does_without_key(name, |option| options.contains_key(option))
            }) =>
        {
            Credential::None
        }
        (None, false) => {
            // A key that could not be filled in, or is no text, has been reported already.
            if key_is_missing {
                let instead = provider.map(|name| providers.instead_of_key(name)).unwrap_or_default();
                let instead = if instead.is_empty() { instead } else { format!(", or {instead}") };
                let message =
                    format!("Required: write the key as {{ env: NAME }}, or `held_by: worker`{instead}");
                object.problem("api_key", message);
            }
            return None;
        }
    };
    Some(Upstream {
        provider: provider?.to_owned(),
        virtual_key: Some(id.to_owned()),
        credential,
        base_url,
        options,
        from_caller: false,
        models,
        metered: Metered::of_key("", id, quota),
    })
}

fn read_models(key: &mut Object<'_>) -> Arc<[pb::ModelCapability]> {
    let mut models = Vec::new();
    for (i, entry) in key.list("models").into_iter().flatten().enumerate() {
        match catalog::entry(entry) {
            Ok(capabilities) => models.extend(capabilities),
            Err(message) => key.problem(&format!("models.{i}"), message),
        }
    }
    models.into()
}

fn read_configs(file: &mut Object<'_>, known: Known<'_>) -> BTreeMap<String, Arc<Plan>> {
    let mut configs = BTreeMap::new();
    for (id, value) in file.map("configs").into_iter().flatten() {
        if !is_config_id(id) {
            let allowed = "a letter, then letters, digits, `-`, `_` and `.`";
            file.problem(&format!("configs.{id}"), format!("\"{id}\" cannot be an id; allowed: {allowed}"));
        }
        match Plan::try_new(value, &file.at(&format!("configs.{id}")), known) {
            Ok(plan) => _ = configs.insert(id.clone(), Arc::new(plan)),
            Err(problems) => {
                for problem in problems {
                    file.problems().add(problem.path, problem.message);
                }
            }
        }
    }
    configs
}

/// Whether a text can be the id of a config. Anything else in the config header is JSON.
pub fn is_config_id(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !matches!(text, "null" | "true" | "false" | "undefined")
}
