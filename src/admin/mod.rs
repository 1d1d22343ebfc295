//! What the gateway remembers, managed: saved configs, virtual keys, API keys, the request log.
//!
//! Checks who asks and what is asked; the store keeps it, and the gateway puts it into force before the answer goes out.
//! Callers hold it as [`SharedAdmin`], whether it is here or behind a connection.

mod change;
mod check;
mod dry_run;
mod images;
mod quotas;
pub mod remote;
mod targets;
mod tree;

/// Hands every call of `AdminService` to a macro that implements it.
macro_rules! for_each_call {
    ($implement:ident) => {
        $implement! {
            list_configs: ListConfigsRequest => ListConfigsResponse,
            get_config: GetConfigRequest => GetConfigResponse,
            create_config: CreateConfigRequest => CreateConfigResponse,
            update_config: UpdateConfigRequest => UpdateConfigResponse,
            delete_config: DeleteConfigRequest => DeleteConfigResponse,
            list_config_versions: ListConfigVersionsRequest => ListConfigVersionsResponse,
            check_config: CheckConfigRequest => CheckConfigResponse,
            dry_run_config: DryRunConfigRequest => DryRunConfigResponse,
            list_virtual_keys: ListVirtualKeysRequest => ListVirtualKeysResponse,
            get_virtual_key: GetVirtualKeyRequest => GetVirtualKeyResponse,
            create_virtual_key: CreateVirtualKeyRequest => CreateVirtualKeyResponse,
            update_virtual_key: UpdateVirtualKeyRequest => UpdateVirtualKeyResponse,
            delete_virtual_key: DeleteVirtualKeyRequest => DeleteVirtualKeyResponse,
            get_caller: GetCallerRequest => GetCallerResponse,
            list_api_keys: ListApiKeysRequest => ListApiKeysResponse,
            get_api_key: GetApiKeyRequest => GetApiKeyResponse,
            create_api_key: CreateApiKeyRequest => CreateApiKeyResponse,
            update_api_key: UpdateApiKeyRequest => UpdateApiKeyResponse,
            delete_api_key: DeleteApiKeyRequest => DeleteApiKeyResponse,
            rotate_api_key: RotateApiKeyRequest => RotateApiKeyResponse,
            list_requests: ListRequestsRequest => ListRequestsResponse,
            get_request: GetRequestRequest => GetRequestResponse,
            get_request_image: GetRequestImageRequest => GetRequestImageResponse,
            get_usage: GetUsageRequest => GetUsageResponse,
            list_quotas: ListQuotasRequest => ListQuotasResponse,
            list_targets: ListTargetsRequest => ListTargetsResponse,
            get_feedback_usage: GetFeedbackUsageRequest => GetFeedbackUsageResponse,
            create_feedback: CreateFeedbackRequest => CreateFeedbackResponse,
            update_feedback: UpdateFeedbackRequest => UpdateFeedbackResponse,
        }
    };
}
pub(crate) use for_each_call;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::{
    config::{
        callers::{Caller, Scope},
        plan::Plan,
        saved::{DEFAULT_TENANT, KeySecrets, check_key},
        spec::Secret,
    },
    error::{Error, ErrorKind, Result},
    gateway::Gateway,
    objects::gallery::Gallery,
    pb::{self, ApiKey, admin_service_server::AdminService},
    provider::canonical_name,
    router::Router,
    store::{ConfigChange, KeyChange, NewVirtualKey, Store},
};

/// The memory of this process, or the adapter of one elsewhere: the same to its callers.
pub type SharedAdmin = Arc<dyn AdminService>;

/// How long the answer to a change waits for the change to be in force.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(2);

/// How long an old API key works beside a new one, in seconds: by default, and at most.
const OVERLAP_S: u64 = 3600;
const LONGEST_OVERLAP_S: u64 = 90 * 86_400;

/// The memory of this process.
#[derive(Clone, Debug)]
pub struct Admin {
    gateway: Arc<Gateway>,
    router: Router,
    gallery: Arc<Gallery>,
}

impl Admin {
    /// Manages what `gateway` remembers and `router` acts by, and shows what is in the gallery.
    pub fn new(gateway: Arc<Gateway>, router: Router, gallery: Arc<Gallery>) -> Self {
        Self { gateway, router, gallery }
    }

    fn store(&self) -> Result<&Store> {
        let away = || {
            Error::new(
                ErrorKind::Unavailable,
                "this gateway has no store: `store: off` is written, or its log says why",
            )
        };
        self.gateway.store().map(|store| &**store).ok_or_else(away)
    }

    /// Who changes something.
    fn authorize<T>(&self, request: &Request<T>, scope: Scope) -> Result<Caller> {
        self.router.manager(request.metadata().as_ref(), &[scope])
    }

    /// Who wants to see something.
    fn reader<T>(&self, request: &Request<T>, scope: Scope) -> Result<Caller> {
        self.router.manager(request.metadata().as_ref(), &[scope, Scope::Read])
    }

    /// Puts into force what was just saved. If it cannot be loaded in time, the next look will: it is saved, and whoever
    /// saved it shall hear so.
    async fn put_in_force(&self) {
        _ = timeout(IN_FORCE_WITHIN, self.gateway.refresh(&self.router)).await;
    }

    /// What could be saved.
    fn checked(&self, tenant: &str, text: &str) -> Result<Plan> {
        let value = serde_json::from_str(text)
            .map_err(|error| Error::invalid("config", format!("config: not JSON: {error}")))?;
        check::no_credentials(&value)?;
        self.router.check_config(tenant, &value).map_err(|problems| check::refused("config", problems))
    }

    async fn list_configs(
        &self,
        request: Request<pb::ListConfigsRequest>,
    ) -> Result<pb::ListConfigsResponse> {
        let caller = self.reader(&request, Scope::Configs)?;
        let mut configs = self.store()?.list_configs(&caller.tenant).await?;
        configs
            .iter_mut()
            .for_each(|config| config.problem = self.router.problem(&caller.tenant, &config.slug));
        Ok(pb::ListConfigsResponse { configs })
    }

    async fn get_config(&self, request: Request<pb::GetConfigRequest>) -> Result<pb::GetConfigResponse> {
        let caller = self.reader(&request, Scope::Configs)?;
        let pb::GetConfigRequest { slug, version } = request.into_inner();
        let mut config = self.store()?.get_config(&caller.tenant, &slug, version).await?;
        config.problem = self.router.problem(&caller.tenant, &config.slug);
        Ok(pb::GetConfigResponse { config: Some(config) })
    }

    async fn create_config(
        &self,
        request: Request<pb::CreateConfigRequest>,
    ) -> Result<pb::CreateConfigResponse> {
        let caller = self.authorize(&request, Scope::Configs)?;
        let new = request.into_inner();
        check::name(&new.name)?;
        check::slug(&new.slug)?;
        self.checked(&caller.tenant, &new.config_json)?;
        let config = self.store()?.create_config(&caller.tenant, &caller.id, &new).await?;
        self.put_in_force().await;
        Ok(pb::CreateConfigResponse { config: Some(config) })
    }

    async fn update_config(
        &self,
        request: Request<pb::UpdateConfigRequest>,
    ) -> Result<pb::UpdateConfigResponse> {
        let caller = self.authorize(&request, Scope::Configs)?;
        let pb::UpdateConfigRequest { slug, name, config_json, is_default, rollback_to } =
            request.into_inner();
        name.as_deref().map_or(Ok(()), check::name)?;
        let content = match (config_json, rollback_to) {
            (Some(_), Some(_)) => {
                let message = "rollback_to: not together with config; allowed: one of them";
                return Err(Error::invalid("rollback_to", message));
            }
            (None, Some(0)) => {
                return Err(Error::invalid("rollback_to", "rollback_to: 0 is not allowed; allowed: from 1"));
            }
            (None, Some(version)) => {
                Some(self.store()?.get_config(&caller.tenant, &slug, version).await?.config_json)
            }
            (content, None) => content,
        };
        // A version that was valid once may not be now.
        content.as_deref().map(|text| self.checked(&caller.tenant, text)).transpose()?;
        let change = ConfigChange { name, content, is_default };
        let config = self.store()?.update_config(&caller.tenant, &caller.id, &slug, change).await?;
        self.put_in_force().await;
        Ok(pb::UpdateConfigResponse { config: Some(config) })
    }

    async fn delete_config(
        &self,
        request: Request<pb::DeleteConfigRequest>,
    ) -> Result<pb::DeleteConfigResponse> {
        let caller = self.authorize(&request, Scope::Configs)?;
        self.store()?.delete_config(&caller.tenant, &request.get_ref().slug).await?;
        self.put_in_force().await;
        Ok(pb::DeleteConfigResponse {})
    }

    async fn list_config_versions(
        &self,
        request: Request<pb::ListConfigVersionsRequest>,
    ) -> Result<pb::ListConfigVersionsResponse> {
        let caller = self.reader(&request, Scope::Configs)?;
        let versions = self.store()?.config_versions(&caller.tenant, &request.get_ref().slug).await?;
        Ok(pb::ListConfigVersionsResponse { versions })
    }

    async fn list_virtual_keys(
        &self,
        request: Request<pb::ListVirtualKeysRequest>,
    ) -> Result<pb::ListVirtualKeysResponse> {
        let caller = self.reader(&request, Scope::Keys)?;
        let keys = self.store()?.list_virtual_keys(&caller.tenant).await?;
        let virtual_keys = keys.into_iter().map(|key| self.standing_of_key(&caller.tenant, key)).collect();
        Ok(pb::ListVirtualKeysResponse { virtual_keys })
    }

    async fn get_virtual_key(
        &self,
        request: Request<pb::GetVirtualKeyRequest>,
    ) -> Result<pb::GetVirtualKeyResponse> {
        let caller = self.reader(&request, Scope::Keys)?;
        let key = self.store()?.get_virtual_key(&caller.tenant, &request.get_ref().slug).await?;
        let key = self.standing_of_key(&caller.tenant, key);
        Ok(pb::GetVirtualKeyResponse { virtual_key: Some(key) })
    }

    async fn create_virtual_key(
        &self,
        request: Request<pb::CreateVirtualKeyRequest>,
    ) -> Result<pb::CreateVirtualKeyResponse> {
        let caller = self.authorize(&request, Scope::Keys)?;
        let new = request.into_inner();
        check::name(&new.name)?;
        check::slug(&new.slug)?;
        check::line("key", &new.key)?;
        check::lines("note", &new.note)?;
        check::line("base_url", &new.base_url)?;
        let secret = |(name, value): (String, String)| (name, Secret::new(&value));
        let secrets = KeySecrets {
            key: (!new.key.is_empty()).then(|| Secret::new(&new.key)),
            options: new.options.into_iter().map(secret).collect(),
        };
        let provider = canonical_name(&new.provider).to_owned();
        self.check_key(&new.slug, &provider, &new.base_url, &secrets)?;
        let new = NewVirtualKey {
            name: new.name,
            slug: new.slug,
            provider,
            note: new.note,
            base_url: new.base_url,
            secrets,
            expires_ms: check::expiry(new.expires_unix_ms)?,
            quota: check::quota(new.quota)?,
        };
        let key = self.store()?.create_virtual_key(&caller.tenant, &caller.id, new).await?;
        self.put_in_force().await;
        Ok(pb::CreateVirtualKeyResponse { virtual_key: Some(key) })
    }

    async fn update_virtual_key(
        &self,
        request: Request<pb::UpdateVirtualKeyRequest>,
    ) -> Result<pb::UpdateVirtualKeyResponse> {
        let caller = self.authorize(&request, Scope::Keys)?;
        let change = request.into_inner();
        change.name.as_deref().map_or(Ok(()), check::name)?;
        check::line("key", change.key.as_deref().unwrap_or_default())?;
        check::lines("note", change.note.as_deref().unwrap_or_default())?;
        let secrets = match &change.key {
            None => None,
            Some(key) => {
                let (known, held) = self.store()?.virtual_key_secrets(&caller.tenant, &change.slug).await?;
                let options = held.map(|held| held.options).unwrap_or_default();
                let secrets = KeySecrets { key: (!key.is_empty()).then(|| Secret::new(key)), options };
                self.check_key(&known.slug, &known.provider, &known.base_url, &secrets)?;
                Some(secrets)
            }
        };
        let expires_ms = match change.expires_unix_ms {
            Some(0) => Some(0),
            other => check::expiry(other)?,
        };
        let what = KeyChange {
            name: change.name,
            note: change.note,
            secrets,
            disabled: change.disabled,
            expires_ms,
            quota: change
                .quota
                .map(|quota| check::quota(Some(quota)))
                .transpose()?
                .map(Option::unwrap_or_default),
        };
        let key = self.store()?.update_virtual_key(&caller.tenant, &change.slug, what).await?;
        self.put_in_force().await;
        Ok(pb::UpdateVirtualKeyResponse { virtual_key: Some(key) })
    }

    async fn delete_virtual_key(
        &self,
        request: Request<pb::DeleteVirtualKeyRequest>,
    ) -> Result<pb::DeleteVirtualKeyResponse> {
        let caller = self.authorize(&request, Scope::Keys)?;
        let key = self.store()?.get_virtual_key(&caller.tenant, &request.get_ref().slug).await?;
        let users = self.router.configs_with(&caller.tenant, &key.slug);
        if !users.is_empty() {
            let message = format!(
                "virtual key \"{}\" is used by the configs {}: change them first, or disable the key",
                key.slug,
                users.join(", ")
            );
            return Err(Error::invalid("slug", message).with_status(409).with_code("virtual_key_in_use"));
        }
        self.store()?.delete_virtual_key(&caller.tenant, &key.id).await?;
        self.put_in_force().await;
        Ok(pb::DeleteVirtualKeyResponse {})
    }

    fn check_key(&self, slug: &str, provider: &str, base_url: &str, secrets: &KeySecrets) -> Result<()> {
        let (settings, providers) = self.router.known();
        check_key(slug, provider, base_url, secrets, &settings, &providers)
            .map(drop)
            .map_err(|problems| check::refused("virtual key", problems))
    }

    async fn get_caller(&self, request: Request<pb::GetCallerRequest>) -> Result<pb::GetCallerResponse> {
        let caller = self.router.manager(request.metadata().as_ref(), &Scope::all())?;
        Ok(pb::GetCallerResponse {
            everybody: self.router.is_open(),
            scopes: caller.scopes.iter().map(Scope::to_string).collect(),
            id: caller.id,
            name: caller.name,
            tenant: caller.tenant,
        })
    }

    async fn list_api_keys(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Result<pb::ListApiKeysResponse> {
        let caller = self.reader(&request, Scope::Admin)?;
        let keys = self.store()?.list_api_keys(&caller.tenant).await?;
        let api_keys = keys.into_iter().map(|key| self.standing_of_caller(key)).collect();
        Ok(pb::ListApiKeysResponse { api_keys })
    }

    async fn get_api_key(&self, request: Request<pb::GetApiKeyRequest>) -> Result<pb::GetApiKeyResponse> {
        let caller = self.reader(&request, Scope::Admin)?;
        let key = self.store()?.get_api_key(&caller.tenant, &request.get_ref().id).await?;
        Ok(pb::GetApiKeyResponse { api_key: Some(self.standing_of_caller(key)) })
    }

    async fn create_api_key(
        &self,
        request: Request<pb::CreateApiKeyRequest>,
    ) -> Result<pb::CreateApiKeyResponse> {
        let caller = self.authorize(&request, Scope::Admin)?;
        let new = request.into_inner();
        check::name(&new.name)?;
        check::slug(&new.tenant)?;
        let tenant = if new.tenant.is_empty() { caller.tenant.clone() } else { new.tenant };
        if tenant != caller.tenant && caller.tenant != DEFAULT_TENANT {
            let message = "tenant: only administrators of the tenant \"default\" make keys for another one";
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        check::scopes(&new.scopes)?;
        check::metadata(&new.metadata)?;
        if caller.id.is_empty() && !new.scopes.iter().any(|scope| scope == "admin") {
            let message = "scopes: the first API key needs the scope \"admin\": with it the gateway is no longer open, \
                           and without it nobody could manage it";
            return Err(Error::invalid("scopes", message));
        }
        let record = ApiKey {
            name: new.name,
            tenant,
            scopes: new.scopes,
            default_config: new.default_config,
            allow_config_override: new.allow_config_override.unwrap_or(true),
            metadata: new.metadata,
            configs: new.configs,
            virtual_keys: new.virtual_keys,
            expires_unix_ms: check::expiry(new.expires_unix_ms)?,
            quota: check::quota(new.quota)?,
            log: check::log(new.log)?,
            ..Default::default()
        };
        self.check_names(&record)?;
        let made = self.store()?.create_api_key(&caller.id, record).await?;
        self.put_in_force().await;
        Ok(pb::CreateApiKeyResponse { key: check::shown_once(&made.key), api_key: Some(made.record) })
    }

    async fn update_api_key(
        &self,
        request: Request<pb::UpdateApiKeyRequest>,
    ) -> Result<pb::UpdateApiKeyResponse> {
        let caller = self.authorize(&request, Scope::Admin)?;
        let change = request.into_inner();
        let record = self.store()?.get_api_key(&caller.tenant, &change.id).await?;
        let record = change::of_api_key(record, change)?;
        self.check_names(&record)?;
        let record = self.store()?.update_api_key(&record).await?;
        self.put_in_force().await;
        Ok(pb::UpdateApiKeyResponse { api_key: Some(record) })
    }

    async fn delete_api_key(
        &self,
        request: Request<pb::DeleteApiKeyRequest>,
    ) -> Result<pb::DeleteApiKeyResponse> {
        let caller = self.authorize(&request, Scope::Admin)?;
        self.store()?.delete_api_key(&caller.tenant, &request.get_ref().id).await?;
        self.put_in_force().await;
        Ok(pb::DeleteApiKeyResponse {})
    }

    async fn rotate_api_key(
        &self,
        request: Request<pb::RotateApiKeyRequest>,
    ) -> Result<pb::RotateApiKeyResponse> {
        let caller = self.authorize(&request, Scope::Admin)?;
        let pb::RotateApiKeyRequest { id, overlap_s } = request.into_inner();
        let overlap = overlap_s.unwrap_or(OVERLAP_S);
        if overlap > LONGEST_OVERLAP_S {
            let message = format!("overlap_s: {overlap} is not allowed; allowed: 0 to {LONGEST_OVERLAP_S}");
            return Err(Error::invalid("overlap_s", message));
        }
        let until = pb::unix_now_ms() + i64::try_from(overlap * 1000).unwrap_or_default();
        let made = self.store()?.rotate_api_key(&caller.tenant, &id, until).await?;
        self.put_in_force().await;
        Ok(pb::RotateApiKeyResponse {
            key: check::shown_once(&made.key),
            api_key: Some(made.record),
            old_key_expires_unix_ms: until,
        })
    }

    /// Configs and virtual keys that a caller names have to exist, or it could do nothing with its key.
    fn check_names(&self, record: &ApiKey) -> Result<()> {
        let (settings, _) = self.router.known();
        let mut configs: Vec<(&str, &str)> = Vec::new();
        if !record.default_config.is_empty() {
            configs.push(("default_config", &record.default_config));
        }
        configs
            .extend(record.configs.iter().flat_map(|names| &names.names).map(|id| ("configs", id.as_str())));
        for (field, id) in configs {
            if settings.config_of(&record.tenant, id).is_none() {
                return Err(Error::invalid(field, format!("{field}: config \"{id}\" does not exist")));
            }
        }
        let known = settings.virtual_keys_of(&record.tenant);
        for id in record.virtual_keys.iter().flat_map(|names| &names.names) {
            if !known.contains_key(id) {
                let message = format!("virtual_keys: virtual key \"{id}\" does not exist");
                return Err(Error::invalid("virtual_keys", message));
            }
        }
        Ok(())
    }

    async fn list_requests(
        &self,
        request: Request<pb::ListRequestsRequest>,
    ) -> Result<pb::ListRequestsResponse> {
        let caller = self.reader(&request, Scope::Logs)?;
        let pb::ListRequestsRequest { filter, page_size, page_token } = request.into_inner();
        let filter = filter.unwrap_or_default();
        check::filter(&filter)?;
        self.store()?.list_requests(&caller.tenant, &filter, page_size, &page_token).await
    }

    async fn get_request(&self, request: Request<pb::GetRequestRequest>) -> Result<pb::GetRequestResponse> {
        let caller = self.reader(&request, Scope::Logs)?;
        let record = self.store()?.get_request(&caller.tenant, &request.get_ref().id).await?;
        Ok(pb::GetRequestResponse { request: Some(record) })
    }

    async fn get_usage(&self, request: Request<pb::GetUsageRequest>) -> Result<pb::GetUsageResponse> {
        let caller = self.reader(&request, Scope::Logs)?;
        check::filter(request.get_ref().filter.as_ref().unwrap_or(&pb::RequestFilter::default()))?;
        let groups = self.store()?.usage(&caller.tenant, request.get_ref()).await?;
        Ok(pb::GetUsageResponse { groups })
    }

    async fn get_feedback_usage(
        &self,
        request: Request<pb::GetFeedbackUsageRequest>,
    ) -> Result<pb::GetFeedbackUsageResponse> {
        let caller = self.reader(&request, Scope::Logs)?;
        let groups = self.store()?.feedback_usage(&caller.tenant, request.get_ref()).await?;
        Ok(pb::GetFeedbackUsageResponse { groups })
    }

    async fn create_feedback(
        &self,
        request: Request<pb::CreateFeedbackRequest>,
    ) -> Result<pb::CreateFeedbackResponse> {
        let caller = self.authorize(&request, Scope::Generate)?;
        let new = request.get_ref();
        if new.trace_id.is_empty() {
            return Err(Error::invalid("trace_id", "trace_id: Required"));
        }
        check::line("trace_id", &new.trace_id)?;
        check::feedback(Some(new.value), new.weight, Some(&new.metadata_json))?;
        let feedback = self.store()?.create_feedback(&caller.tenant, new).await?;
        Ok(pb::CreateFeedbackResponse { feedback: Some(feedback) })
    }

    async fn update_feedback(
        &self,
        request: Request<pb::UpdateFeedbackRequest>,
    ) -> Result<pb::UpdateFeedbackResponse> {
        let caller = self.authorize(&request, Scope::Generate)?;
        let change = request.get_ref();
        check::feedback(change.value, change.weight, change.metadata_json.as_deref())?;
        let feedback = self.store()?.update_feedback(&caller.tenant, change).await?;
        Ok(pb::UpdateFeedbackResponse { feedback: Some(feedback) })
    }
}

/// Every call as its method of the same name, whose errors become statuses.
macro_rules! serve {
    ($($call:ident: $request:ident => $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl AdminService for Admin {
            $(async fn $call(
                &self,
                request: Request<pb::$request>,
            ) -> Result<Response<pb::$response>, Status> {
                self.router.prepare(request.metadata().as_ref()).await;
                Ok(Response::new(Self::$call(self, request).await?))
            })*
        }
    };
}

for_each_call!(serve);
