//! `imagegate keys api`: the callers' own keys. A key is printed once, when it is made.

use std::io::{Write as _, stderr, stdout};

use anyhow::Result;
use clap::Subcommand;

use super::{
    connect::Memory,
    filter::pair,
    json,
    table::Table,
    times::{When, date, date_or_never, length},
};
use crate::{
    admin::remote::Remote,
    pb::{self, ApiKey, KeptImages, Names, admin_service_server::AdminService as _},
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

    /// What it may do: generate, configs, keys, logs, admin
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

    /// Images that the request log keeps of its requests: none, thumbnails, full; as the router's file says without it
    #[arg(long, value_name = "WHAT", value_parser = kept_images)]
    log_images: Option<KeptImages>,

    /// When it stops working: 90d, 2026-11-27, 2026-11-27T10:30:00Z
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
}

impl ApiKeys {
    /// Does what the subcommand says and prints what came of it.
    pub async fn run(self, memory: &Memory<'_>, as_json: bool) -> Result<()> {
        match self.command {
            Command::List => list(memory, as_json).await,
            Command::Create(create) => {
                let ask = async |admin: &Remote, request| admin.create_api_key(request).await;
                let made = memory.ask(create.request(), ask).await?;
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
    fn request(self) -> pb::CreateApiKeyRequest {
        pb::CreateApiKeyRequest {
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
        }
    }
}

async fn list(memory: &Memory<'_>, as_json: bool) -> Result<()> {
    let ask = async |admin: &Remote, request| admin.list_api_keys(request).await;
    let keys = memory.ask(pb::ListApiKeysRequest {}, ask).await?.api_keys;
    if as_json {
        return json::print_all(&keys, json::api_key);
    }
    let mut table =
        Table::of_texts(&["ID", "NAME", "TENANT", "KEY", "SCOPES", "DEFAULT CONFIG", "STATUS", "EXPIRES"]);
    for key in &keys {
        table.row([
            key.id.clone(),
            key.name.clone(),
            key.tenant.clone(),
            format!("{}...", key.hint),
            key.scopes.join(","),
            key.default_config.clone(),
            json::status(key.status()).to_owned(),
            date_or_never(key.expires_unix_ms),
        ]);
    }
    table.print(&mut stdout())?;
    Ok(())
}

async fn set_disabled(memory: &Memory<'_>, id: String, disabled: bool, as_json: bool) -> Result<()> {
    let request = pb::UpdateApiKeyRequest { id, disabled: Some(disabled), ..Default::default() };
    let ask = async |admin: &Remote, request| admin.update_api_key(request).await;
    let key = memory.ask(request, ask).await?.api_key.unwrap_or_default();
    if as_json {
        return json::print(&json::api_key(&key));
    }
    writeln!(stdout(), "{} ({}): {}", key.id, key.name, if disabled { "disabled" } else { "enabled" })?;
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

fn kept_images(text: &str) -> Result<KeptImages, String> {
    let found = KeptImages::NAMES.iter().find(|(name, _)| *name == text);
    found.map(|(_, images)| *images).ok_or_else(|| "write none, thumbnails or full".to_owned())
}

fn names(names: Vec<String>) -> Option<Names> {
    (!names.is_empty()).then_some(Names { names })
}
