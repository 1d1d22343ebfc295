//! `imagegate keys api`: the callers' own keys. A key is printed once, when it is made.

use std::{
    collections::BTreeMap,
    io::{Write as _, stderr, stdout},
};

use anyhow::Result;
use clap::Subcommand;

use super::{
    connect::Memory,
    filter::pair,
    json,
    quota::{QuotaArgs, all_words},
    table::Table,
    times::{When, date, date_or_never, length},
};
use crate::{
    admin::remote::Remote,
    pb::{self, ApiKey, Grant, KeptImages, Metadata, Names, admin_service_server::AdminService as _},
};

/// Manage API keys, by which callers are known
#[derive(Debug, clap::Args)]
pub struct ApiKeys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List API keys
    #[command(after_help = "Example:\n  imagegate keys api list")]
    List,
    /// Make a key and print it: it cannot be shown again
    #[command(
        after_help = "Example:\n  imagegate keys api create team-a --scope generate --default-config pc-hero-1a2b3c > key.txt"
    )]
    Create(Create),
    /// Change what a key may do; what is not given stays as it is
    #[command(
        after_help = "Example:\n  imagegate keys api update 0197d8e2-6f0c-7b36-9d51-2f7f6a1c4e55 --metadata team=blue --all-configs"
    )]
    Update(Box<Update>),
    /// Make another key for the same caller and print it
    #[command(
        after_help = "Example:\n  imagegate keys api rotate 0197d8e2-6f0c-7b36-9d51-2f7f6a1c4e55 --overlap 24h"
    )]
    Rotate {
        /// As `imagegate keys api list` tells it
        id: String,
        /// How long the old key works on: 90s, 30m, 12h, 7d; one hour without it
        #[arg(long, value_name = "LENGTH", value_parser = length)]
        overlap: Option<std::time::Duration>,
    },
    /// Limit what it may use, instead of what limited it before
    #[command(
        after_help = "Example:\n  imagegate keys api limit 0197d8e2-6f0c-7b36-9d51-2f7f6a1c4e55 --rate rpm=60 --budget daily=20"
    )]
    Limit {
        /// As `imagegate keys api list` tells it
        id: String,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Refuse all requests with this key
    #[command(after_help = "Example:\n  imagegate keys api disable 0197d8e2-6f0c-7b36-9d51-2f7f6a1c4e55")]
    Disable {
        /// As `imagegate keys api list` tells it
        id: String,
    },
    /// Let it be used again
    #[command(after_help = "Example:\n  imagegate keys api enable 0197d8e2-6f0c-7b36-9d51-2f7f6a1c4e55")]
    Enable {
        /// As `imagegate keys api list` tells it
        id: String,
    },
    /// Delete a key: it is refused at once
    #[command(after_help = "Example:\n  imagegate keys api rm 0197d8e2-6f0c-7b36-9d51-2f7f6a1c4e55")]
    Rm {
        /// As `imagegate keys api list` tells it
        id: String,
    },
}

/// An API key to be
#[derive(Debug, clap::Args)]
struct Create {
    /// What people call it
    name: String,

    /// What it may do: generate, configs, keys, logs, read, admin
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', required = true)]
    scopes: Vec<String>,

    /// Whose configs, keys and logs it sees; without it the same as yours
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,

    /// Config for requests that name no route
    #[arg(long, value_name = "SLUG")]
    default_config: Option<String>,

    /// Its requests may name no other route than the default config
    #[arg(long)]
    only_default_config: bool,

    /// Config that it may use; without any, all of its tenant
    #[arg(long = "config", value_name = "SLUG")]
    configs: Vec<String>,

    /// Virtual key that it may use; without any, all of its tenant
    #[arg(long = "virtual-key", value_name = "SLUG")]
    virtual_keys: Vec<String>,

    /// Under the metadata of its requests
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,

    /// Whether the request log keeps its prompts; as the router's file says without it
    #[arg(long, value_name = "true|false")]
    log_prompts: Option<bool>,

    /// Images that the request log keeps of its requests: none, digests, thumbnails, full; as the router's file says without it
    #[arg(long, value_name = "WHAT", value_parser = KeptImages::from_name)]
    log_images: Option<KeptImages>,

    /// When it stops working: 90d, 2026-11-27, 2026-11-27T10:30:00Z
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
    #[command(flatten)]
    quota: QuotaArgs,
}

/// What becomes of an API key
#[derive(Debug, clap::Args)]
struct Update {
    /// As `imagegate keys api list` tells it
    id: String,

    /// What people call it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// What it may do: generate, configs, keys, logs, read, admin
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<String>,

    /// Config for requests that name no route; '' for none
    #[arg(long, value_name = "SLUG")]
    default_config: Option<String>,

    /// Its requests may name no other route than the default config, or with `=false` may
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    only_default_config: Option<bool>,

    /// Config that it may use, in place of those of before
    #[arg(long = "config", value_name = "SLUG")]
    configs: Vec<String>,

    /// It may use all configs of its tenant
    #[arg(long, conflicts_with = "configs")]
    all_configs: bool,

    /// Virtual key that it may use, in place of those of before
    #[arg(long = "virtual-key", value_name = "SLUG")]
    virtual_keys: Vec<String>,

    /// It may use all virtual keys of its tenant
    #[arg(long, conflicts_with = "virtual_keys")]
    all_virtual_keys: bool,

    /// Under the metadata of its requests, in place of that of before
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,

    /// Nothing under the metadata of its requests
    #[arg(long, conflicts_with = "metadata")]
    no_metadata: bool,

    /// When it stops working: 90d, 2026-11-27, 2026-11-27T10:30:00Z
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,

    /// It works for good
    #[arg(long, conflicts_with = "expires")]
    never_expires: bool,
}

impl ApiKeys {
    /// Does what the subcommand says and prints what came of it.
    pub async fn run(self, memory: &Memory<'_>, as_json: bool) -> Result<()> {
        match self.command {
            Command::List => list(memory, as_json).await,
            Command::Create(create) => {
                let ask = async |admin: &Remote, request| admin.create_api_key(request).await;
                let made = memory.ask(create.request()?, ask).await?;
                let api_key = made.api_key.unwrap_or_default();
                print_key(&api_key, &made.key, None, as_json)
            }
            Command::Rotate { id, overlap } => {
                let request =
                    pb::RotateApiKeyRequest { id, overlap_s: overlap.map(|overlap| overlap.as_secs()) };
                let ask = async |admin: &Remote, request| admin.rotate_api_key(request).await;
                let made = memory.ask(request, ask).await?;
                let api_key = made.api_key.unwrap_or_default();
                print_key(&api_key, &made.key, Some(made.old_key_expires_unix_ms), as_json)
            }
            Command::Limit { id, quota } => {
                let quota = Some(quota.message()?.unwrap_or_default());
                let done = if quota == Some(pb::Quota::default()) { "has no limits" } else { "is limited" };
                update(memory, pb::UpdateApiKeyRequest { id, quota, ..Default::default() }, done, as_json)
                    .await
            }
            Command::Update(update) => self::update(memory, update.request(), "changed", as_json).await,
            Command::Disable { id } => set_disabled(memory, id, true, as_json).await,
            Command::Enable { id } => set_disabled(memory, id, false, as_json).await,
            Command::Rm { id } => {
                let ask = async |admin: &Remote, request| admin.delete_api_key(request).await;
                memory.ask(pb::DeleteApiKeyRequest { id: id.clone() }, ask).await?;
                super::deleted(&id, as_json)
            }
        }
    }
}

impl Create {
    fn request(self) -> Result<pb::CreateApiKeyRequest> {
        Ok(pb::CreateApiKeyRequest {
            quota: self.quota.message()?,
            name: self.name,
            tenant: self.tenant.unwrap_or_default(),
            scopes: self.scopes,
            default_config: self.default_config.unwrap_or_default(),
            allow_config_override: self.only_default_config.then_some(false),
            metadata: self.metadata.into_iter().collect(),
            configs: names(self.configs),
            virtual_keys: names(self.virtual_keys),
            expires_unix_ms: self.expires.map(|when| when.ahead(pb::unix_now_ms())),
            log: (self.log_prompts.is_some() || self.log_images.is_some()).then(|| pb::LogPolicy {
                prompts: self.log_prompts,
                images: self.log_images.unwrap_or_default().into(),
            }),
        })
    }
}

impl Update {
    fn request(self) -> pb::UpdateApiKeyRequest {
        let grant =
            |all: bool, names: Vec<String>| (all || !names.is_empty()).then_some(Grant { all, names });
        let values: BTreeMap<_, _> = self.metadata.into_iter().collect();
        let expires = self.expires.map(|when| when.ahead(pb::unix_now_ms()));
        pb::UpdateApiKeyRequest {
            id: self.id,
            name: self.name,
            scopes: (!self.scopes.is_empty()).then_some(Names { names: self.scopes }),
            default_config: self.default_config,
            allow_config_override: self.only_default_config.map(|only| !only),
            expires_unix_ms: if self.never_expires { Some(0) } else { expires },
            metadata: (self.no_metadata || !values.is_empty()).then_some(Metadata { values }),
            configs: grant(self.all_configs, self.configs),
            virtual_keys: grant(self.all_virtual_keys, self.virtual_keys),
            ..Default::default()
        }
    }
}

async fn list(memory: &Memory<'_>, as_json: bool) -> Result<()> {
    let ask = async |admin: &Remote, request| admin.list_api_keys(request).await;
    let keys = memory.ask(pb::ListApiKeysRequest {}, ask).await?.api_keys;
    if as_json {
        return json::print_all(&keys, json::api_key);
    }
    let mut table = Table::of_texts(&[
        "ID",
        "NAME",
        "TENANT",
        "KEY",
        "SCOPES",
        "DEFAULT CONFIG",
        "LIMITS",
        "STATUS",
        "EXPIRES",
    ]);
    for key in &keys {
        table.row([
            key.id.clone(),
            key.name.clone(),
            key.tenant.clone(),
            format!("{}...", key.hint),
            key.scopes.join(","),
            key.default_config.clone(),
            all_words(key.quota.as_ref()),
            json::status(key.status()).to_owned(),
            date_or_never(key.expires_unix_ms),
        ]);
    }
    table.print(&mut stdout())?;
    Ok(())
}

async fn set_disabled(memory: &Memory<'_>, id: String, disabled: bool, as_json: bool) -> Result<()> {
    let request = pb::UpdateApiKeyRequest { id, disabled: Some(disabled), ..Default::default() };
    update(memory, request, if disabled { "disabled" } else { "enabled" }, as_json).await
}

async fn update(
    memory: &Memory<'_>,
    request: pb::UpdateApiKeyRequest,
    done: &str,
    as_json: bool,
) -> Result<()> {
    let ask = async |admin: &Remote, request| admin.update_api_key(request).await;
    let key = memory.ask(request, ask).await?.api_key.unwrap_or_default();
    if as_json {
        return json::print(&json::api_key(&key));
    }
    writeln!(stdout(), "{} ({}): {done}", key.id, key.name)?;
    Ok(())
}

/// The key alone is on standard output, so that it can be put where it belongs.
fn print_key(api_key: &ApiKey, key: &str, old_key_expires: Option<i64>, as_json: bool) -> Result<()> {
    if as_json {
        let mut value = json::api_key(api_key);
        value["key"] = key.into();
        if let Some(expires) = old_key_expires {
            value["old_key_expires_unix_ms"] = expires.into();
        }
        return json::print(&value);
    }
    writeln!(stdout(), "{key}")?;
    writeln!(stderr(), "{} ({}): keep the key, it is not shown again", api_key.id, api_key.name)?;
    if let Some(expires) = old_key_expires {
        writeln!(stderr(), "the old key works until {}", date(expires))?;
    }
    Ok(())
}

fn names(names: Vec<String>) -> Option<Names> {
    (!names.is_empty()).then_some(Names { names })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    fn request(args: &[&str]) -> pb::UpdateApiKeyRequest {
        Line::try_parse_from([&["update", "id-1"], args].concat()).unwrap().update.request()
    }

    #[test]
    fn what_is_not_given_is_not_changed() {
        assert_eq!(request(&[]), pb::UpdateApiKeyRequest { id: "id-1".into(), ..Default::default() });
    }

    #[test]
    fn grants_and_metadata_are_given_anew_or_taken_away() {
        let given =
            request(&["--config", "a", "--config", "b", "--all-virtual-keys", "--metadata", "team=blue"]);
        assert_eq!(given.configs, Some(Grant { all: false, names: vec!["a".into(), "b".into()] }));
        assert_eq!(given.virtual_keys, Some(Grant { all: true, names: Vec::new() }));
        assert_eq!(given.metadata.unwrap().values["team"], "blue");
        let taken = request(&["--no-metadata", "--never-expires", "--only-default-config=false"]);
        assert_eq!(taken.metadata, Some(Metadata::default()));
        assert_eq!((taken.expires_unix_ms, taken.allow_config_override), (Some(0), Some(true)));
        assert!(Line::try_parse_from(["update", "id-1", "--all-configs", "--config", "a"]).is_err());
    }
}
