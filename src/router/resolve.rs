//! From a request's headers to who calls and which plan runs (docs/headers.md).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::HeaderMap;
use serde_json::Value;

use crate::{
    call::{Call, Overrides},
    config::{
        Settings,
        callers::{Caller, Scope},
        file::is_config_id,
        memory::Keeps,
        plan::{self, Credential, Known, Plan, Source, Upstream, split_model},
        providers::Providers,
        saved::{DEFAULT_TENANT, Version},
        spec::Secret,
    },
    error::{Error, ErrorKind, Result},
    issuers::Issuers,
    pb,
    provider::canonical_name,
    route::standing,
};

/// What a request's headers mean.
#[derive(Debug)]
pub struct Resolved {
    /// What to run.
    pub route: Route,
    /// Who calls; none where everybody may.
    pub caller: Option<Arc<Caller>>,
    /// Provider and credential that came with the request.
    pub upstream: Option<Arc<Upstream>>,
    /// Settings over the config.
    pub overrides: Overrides,
}

impl Resolved {
    /// What the request log keeps of the request's content.
    pub fn keeps(&self, settings: &Settings) -> Keeps {
        match &self.caller {
            _ if self.overrides.keep_nothing => Keeps::default(),
            Some(caller) => settings.memory.keeps.under(&caller.log),
            None => settings.memory.keeps,
        }
    }

    /// The request's metadata with the caller's own, which win.
    pub fn metadata(&self, said: Value) -> Value {
        with_own_metadata(self.caller.as_ref(), said)
    }
}

/// What a caller says about a request with its own metadata, which win.
pub fn with_own_metadata(caller: Option<&Arc<Caller>>, said: Value) -> Value {
    let Some(caller) = caller.filter(|caller| !caller.metadata.is_empty()) else { return said };
    let mut metadata = match said {
        Value::Object(said) => said,
        _ => serde_json::Map::new(),
    };
    metadata.extend(caller.metadata.clone());
    Value::Object(metadata)
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Route {
    /// The checked config.
    pub plan: Arc<Plan>,
    /// Its id, `inline`, or `request`; for logs.
    pub name: String,
    /// Of a config that was saved; else 0.
    pub version: u32,
}

impl Route {
    /// The provider and credential of the target at this place.
    pub fn upstream<'a>(&'a self, path: &str, call: &'a Call) -> Option<&'a Upstream> {
        let mut found = None;
        self.plan.visit(&mut |target| {
            if target.path == path {
                found = standing::upstream(target, call);
            }
        });
        found
    }
}
/// The header that leaves one target of a config.
pub const TARGET: &str = "x-imagegate-target";

/// What the Python SDK of the reference sends as bearer when it has no provider key.
const PLACEHOLDER: &str = "OPENAI_API_KEY";

/// Headers whose rest is a provider's own setting: `x-portkey-openai-organization` is `openai_organization`.
const OPTION_PREFIXES: &[&str] =
    &["openai-", "azure-", "aws-", "vertex-", "workers-ai-", "fireworks-", "huggingface-"];

/// The headers that say who calls.
const CREDENTIALS: [&str; 3] = ["x-portkey-api-key", "authorization", "api-key"];

/// What a request says that its caller is known by: API keys and tokens.
pub fn credentials(headers: &HeaderMap) -> [Option<&str>; 3] {
    CREDENTIALS.map(|name| credential(headers, name))
}

fn credential<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    if name == "authorization" { bearer(headers) } else { text(headers, name) }
}

/// Takes away what only this gateway may see, before anything of the headers can go to a provider.
pub fn without_credentials(headers: &HeaderMap, settings: &Settings, issuers: &Issuers) -> HeaderMap {
    let mut headers = headers.clone();
    for name in CREDENTIALS {
        if credential(&headers, name).is_some_and(|text| is_ours(text, settings, issuers)) {
            headers.remove(name);
        }
    }
    headers
}

fn is_ours(text: &str, settings: &Settings, issuers: &Issuers) -> bool {
    settings.callers.find(text).is_some() || issuers.vouch_for(text)
}

/// The caller whose key or token came with a request, whatever it may do.
pub fn known_caller(headers: &HeaderMap, settings: &Settings, issuers: &Issuers) -> Option<Arc<Caller>> {
    let known = |text: &&str| settings.callers.find(text).cloned().or_else(|| issuers.caller(text)?.ok());
    credentials(headers).iter().flatten().find_map(known)
}

/// Whether a request wants nothing of it to be kept.
pub fn keeps_nothing(headers: &HeaderMap) -> bool {
    text(headers, "x-portkey-debug") == Some("false")
}

/// Finds the caller of a request.
///
/// # Errors
/// 401 without a valid key or token, 403 without any of these scopes, 503 if a token cannot be checked now.
pub fn authenticate(
    headers: &HeaderMap,
    settings: &Settings,
    issuers: &Issuers,
    scopes: &[Scope],
) -> Result<Option<Arc<Caller>>> {
    if settings.callers.is_empty() {
        return Ok(None);
    }
    let given = credentials(headers);
    let mut refused = None;
    let found = given.iter().flatten().find_map(|text| match settings.callers.find(text) {
        Some(caller) => Some(Arc::clone(caller)),
        None => issuers.caller(text)?.map_err(|error| _ = refused.get_or_insert(error)).ok(),
    });
    let Some(caller) = found else {
        if settings.callers.open {
            return Ok(None);
        }
        return Err(refused.unwrap_or_else(|| {
            let message = if given.iter().flatten().next().is_some() {
                "the API key is not valid"
            } else {
                "an API key is required: send it as x-portkey-api-key or as bearer token"
            };
            Error::new(ErrorKind::Unauthenticated, message)
        }));
    };
    let may = |scope| caller.scopes.contains(scope);
    if !may(&Scope::Admin) && !scopes.iter().any(may) {
        let scopes: Vec<String> = scopes.iter().map(|scope| format!("\"{scope}\"")).collect();
        let message = format!("{} has no scope {}", caller.credential(), scopes.join(" or "));
        return Err(Error::new(ErrorKind::PermissionDenied, message));
    }
    Ok(Some(caller))
}

/// Finds the caller and the plan of an image request.
///
/// # Errors
/// What is wrong with the headers, with the reference's words where it has any.
pub fn resolve(
    headers: &HeaderMap,
    model: &str,
    settings: &Settings,
    providers: &Providers,
    issuers: &Issuers,
) -> Result<Resolved> {
    let caller = authenticate(headers, settings, issuers, &[Scope::Generate])?;
    let tenant = caller.as_ref().map_or(DEFAULT_TENANT, |caller| &caller.tenant);
    let overrides = overrides(headers, settings)?;
    let virtual_keys = settings.virtual_keys_of(tenant);
    let custom_host = overrides.custom_host.is_some();
    let upstream = Upstreams { headers, settings, issuers, virtual_keys, providers, custom_host }.find(model);
    let known = Known { providers, virtual_keys, egress: &settings.egress, from_caller: true };
    let named = text(headers, "x-portkey-config");
    if let Some(caller) = caller.as_ref().filter(|caller| !caller.allow_config_override)
        && (named.is_some_and(|id| caller.default_config.as_deref() != Some(id.trim()))
            || text(headers, TARGET).is_some()
            || !matches!(upstream, Ok(None)))
    {
        let message = format!("{} may use no other route than its default config", caller.credential());
        return Err(Error::new(ErrorKind::PermissionDenied, message));
    }
    let route = if let Some(config) = named {
        named_config(config, tenant, settings, known, !matches!(upstream, Ok(None)))?
    } else if !matches!(upstream, Ok(None)) {
        Route { plan: Arc::new(Plan::from_request()), name: "request".to_owned(), version: 0 }
    } else {
        let own = caller.as_ref().and_then(|caller| caller.default_config.as_ref());
        let Some(id) = own.or_else(|| settings.default_config_of(tenant)) else {
            let message = "Either x-portkey-config or x-portkey-provider header is required";
            return Err(Error::invalid("x-portkey-config", message));
        };
        saved_config(id, tenant, settings)?
    };
    let plan = &route.plan;
    let upstream = if plan.takes_from_request() {
        upstream?.map(Arc::new)
    } else {
        // What is wrong with a header that nobody needs is nobody's concern.
        None
    };
    if let (Plan::Target(target), None) = (&**plan, &upstream)
        && matches!(target.source, Source::Request)
    {
        return Err(no_provider());
    }
    if let Some(caller) = &caller {
        check_grants(caller, &route, upstream.as_deref())?;
    }
    let route = match text(headers, TARGET) {
        Some(path) => one_target(route, path)?,
        None => route,
    };
    Ok(Resolved { route, caller, upstream, overrides })
}

/// A route with one of its targets only.
fn one_target(route: Route, path: &str) -> Result<Route> {
    let plan = route.plan.alone(path).ok_or_else(|| {
        let known: Vec<&str> = route.plan.targets().iter().map(|target| target.path.as_str()).collect();
        let message = format!("{TARGET}: \"{path}\" is not allowed; allowed: {}", known.join(", "));
        Error::invalid(TARGET, message)
    })?;
    Ok(Route { plan: Arc::new(plan), ..route })
}

/// Whether a caller may use this route and every virtual key on it.
pub(super) fn check_grants(caller: &Caller, route: &Route, upstream: Option<&Upstream>) -> Result<()> {
    let refuse = |what: &str, id: &str| {
        let message = format!("{} may not use {what} \"{id}\"", caller.credential());
        Err(Error::new(ErrorKind::PermissionDenied, message))
    };
    if let Some(configs) = &caller.configs
        && is_config_id(&route.name)
        && !matches!(route.name.as_str(), "inline" | "request")
        && !configs.contains(&route.name)
    {
        return refuse("config", &route.name);
    }
    let Some(granted) = &caller.virtual_keys else { return Ok(()) };
    let mut used: Vec<&str> =
        upstream.and_then(|upstream| upstream.virtual_key.as_deref()).into_iter().collect();
    route.plan.visit(&mut |target| {
        if let Source::Fixed(upstream) = &target.source {
            used.extend(upstream.virtual_key.as_deref());
        }
    });
    match used.into_iter().find(|id| !granted.contains(*id)) {
        Some(id) => refuse("virtual key", id),
        None => Ok(()),
    }
}

fn no_provider() -> Error {
    Error::config(
        "Either x-portkey-provider needs to be passed. Or the x-portkey-config header should have a valid config \
         with provider details in it.",
        Vec::new(),
    )
}

fn named_config(
    header: &str,
    tenant: &str,
    settings: &Settings,
    known: Known<'_>,
    has_upstream: bool,
) -> Result<Route> {
    let header = header.trim();
    if is_config_id(header) {
        return saved_config(header, tenant, settings);
    }
    let config: Value = serde_json::from_str(header)
        .ok()
        .filter(|value: &Value| !value.is_null())
        .ok_or_else(|| Error::config("Invalid config passed. You need to pass a valid json", Vec::new()))?;
    let names_provider =
        ["provider", "targets", "virtual_key", "virtualKey", "strategy", "options", "override_params"];
    if !has_upstream && !names_provider.iter().any(|name| config.get(name).is_some()) {
        return Err(no_provider());
    }
    let plan = Plan::try_new(&config, "", known).map_err(|problems| {
        let violations = problems
            .into_iter()
            .map(|problem| pb::Violation { path: problem.path, message: problem.message });
        Error::config("Invalid config passed", violations.collect())
    })?;
    Ok(Route { plan: Arc::new(plan), name: "inline".to_owned(), version: 0 })
}

fn saved_config(id: &str, tenant: &str, settings: &Settings) -> Result<Route> {
    let at_header = |mut error: Error| {
        error.param = Some("x-portkey-config".into());
        error
    };
    let Some(Version { number, plan }) = settings.config_of(tenant, id) else {
        return Err(at_header(Error::missing("config", id)));
    };
    let plan = plan.map_err(|problem| {
        let message = format!("config \"{id}\" was valid when it was saved and is not now: {problem}");
        at_header(Error::invalid("x-portkey-config", message))
    })?;
    Ok(Route { plan, name: id.to_owned(), version: number })
}

fn overrides(headers: &HeaderMap, settings: &Settings) -> Result<Overrides> {
    let custom_host = match text(headers, "x-portkey-custom-host") {
        None => None,
        Some(url) => Some(
            plan::caller_host(url, &settings.egress)
                .map_err(|message| Error::invalid("x-portkey-custom-host", message))?,
        ),
    };
    let forward_headers = text(headers, "x-portkey-forward-headers").map(|list| {
        let names = list.split(',').map(|name| name.trim().to_ascii_lowercase());
        names.filter(|name| !name.is_empty()).collect::<Vec<_>>()
    });
    if forward_headers.iter().flatten().any(|name| name == "x-portkey-forward-headers") {
        let message = "forward_headers must not contain the 'x-portkey-forward-headers' header";
        return Err(Error::invalid("x-portkey-forward-headers", message));
    }
    // The reference ignores a value that is no number.
    let millis = text(headers, "x-portkey-request-timeout").and_then(|value| value.parse().ok());
    let request_timeout = millis.filter(|millis| *millis > 0).map(Duration::from_millis);
    let not_strict = text(headers, "x-portkey-strict-open-ai-compliance") == Some("false");
    // The reference tests that the header is there; `false` then means true.
    let cache_refresh = text(headers, "x-portkey-cache-force-refresh")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    Ok(Overrides {
        request_timeout,
        custom_host,
        forward_headers,
        not_strict,
        cache_namespace: text(headers, "x-portkey-cache-namespace").map(str::to_owned),
        cache_refresh,
        keep_nothing: keeps_nothing(headers),
    })
}

/// Where a request's own provider and credential come from.
struct Upstreams<'a> {
    headers: &'a HeaderMap,
    settings: &'a Settings,
    issuers: &'a Issuers,
    virtual_keys: &'a BTreeMap<String, Arc<Upstream>>,
    providers: &'a Providers,
    custom_host: bool,
}

impl Upstreams<'_> {
    fn find(&self, model: &str) -> Result<Option<Upstream>> {
        if let Some(id) = text(self.headers, "x-portkey-virtual-key") {
            return self.virtual_key(id, "x-portkey-virtual-key").map(Some);
        }
        if let Some(provider) = text(self.headers, "x-portkey-provider") {
            return self.provider(provider).map(Some);
        }
        match split_model(model) {
            Some((id, _)) => self.virtual_key(id, "model").map(Some),
            None => Ok(None),
        }
    }

    fn virtual_key(&self, id: &str, param: &str) -> Result<Upstream> {
        let found = self.virtual_keys.get(id).ok_or_else(|| {
            let mut error = Error::missing("virtual key", id);
            error.param = Some(param.to_owned());
            error
        })?;
        Ok(Upstream::clone(found))
    }

    fn provider(&self, said: &str) -> Result<Upstream> {
        const PARAM: &str = "x-portkey-provider";
        if let Some(id) = said.strip_prefix('@') {
            return self.virtual_key(id, PARAM);
        }
        let provider = canonical_name(said);
        if !self.providers.contains(provider) {
            if self.virtual_keys.contains_key(said) {
                return self.virtual_key(said, PARAM);
            }
            let known = self.providers.names().join(", ");
            let message = format!("Invalid provider passed: \"{said}\"; allowed: {known}");
            return Err(Error::invalid(PARAM, message));
        }
        let credential = match self.provider_key() {
            Some(key) => Credential::ApiKey(Secret::new(key)),
            // A slug of the reference's model catalogue may be named like a provider.
            None if self.virtual_keys.contains_key(said) => return self.virtual_key(said, PARAM),
            None => match self.only_virtual_key(provider)? {
                Some(upstream) => return Ok(upstream),
                None if self.custom_host || self.does_without_key(provider) => Credential::None,
                None => {
                    let message = format!(
                        "no credential for provider {provider}: send it as bearer token, or name a virtual key"
                    );
                    return Err(Error::invalid("authorization", message));
                }
            },
        };
        Ok(Upstream {
            provider: provider.to_owned(),
            virtual_key: None,
            credential,
            base_url: None,
            options: self.options().collect(),
            from_caller: true,
            models: Arc::default(),
            metered: None,
        })
    }

    /// The bearer token, if it can be the provider's key: not one of ours, nor what SDKs send for want of one.
    fn provider_key(&self) -> Option<&str> {
        let key = bearer(self.headers)?;
        let ours =
            is_ours(key, self.settings, self.issuers) || text(self.headers, "x-portkey-api-key") == Some(key);
        (!ours && key != PLACEHOLDER).then_some(key)
    }

    fn only_virtual_key(&self, provider: &str) -> Result<Option<Upstream>> {
        let mut found = self.virtual_keys.values().filter(|upstream| upstream.provider == provider);
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(upstream), None) => Ok(Some(Upstream::clone(upstream))),
            (Some(_), Some(_)) => {
                let message = format!(
                    "several virtual keys are for provider {provider}: name one with x-portkey-virtual-key"
                );
                Err(Error::invalid("x-portkey-provider", message))
            }
        }
    }

    fn does_without_key(&self, provider: &str) -> bool {
        self.providers.does_without_key(provider, |wanted| self.options().any(|(name, _)| name == wanted))
    }

    fn options(&self) -> impl Iterator<Item = (String, String)> {
        self.headers.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-portkey-")?;
            OPTION_PREFIXES.iter().any(|prefix| name.starts_with(prefix)).then_some(())?;
            Some((name.replace('-', "_"), value.to_str().ok()?.to_owned()))
        })
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = text(headers, "authorization")?;
    let (scheme, token) = value.split_once(' ').unwrap_or(("bearer", value));
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|token| !token.is_empty())
}
