//! `imagegate keys`: stored credentials of providers. `keys api` is in `api_keys`.

use std::io::{Write, stdout};

use anyhow::Result;
use clap::Subcommand;

use super::{
    api_keys::ApiKeys,
    connect::{Memory, RouterArgs},
    filter::pair,
    json,
    quota::{QuotaArgs, all_words},
    secret::SecretArgs,
    table::{Table, plain},
    times::{When, date, date_or_never},
};
use crate::{
    admin::remote::Remote,
    pb::{self, UpdateVirtualKeyRequest, VirtualKey, admin_service_server::AdminService as _},
};

/// Manage virtual keys, which stand for providers' credentials, and API keys
#[derive(Debug, clap::Args)]
pub struct Keys {
    #[command(subcommand)]
    command: Command,

    /// For programs
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    router: RouterArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List virtual keys
    #[command(after_help = "Example:\n  imagegate keys list")]
    List,
    /// Store a provider's key under a name for requests and configs
    #[command(
        after_help = "Example:\n  imagegate keys add openai-prod --provider openai --key-file key.txt\n  printenv OPENAI_API_KEY | imagegate keys add openai-prod --provider openai --expires 90d"
    )]
    Add(Add),
    /// Show a virtual key, without its credential
    #[command(after_help = "Example:\n  imagegate keys show openai-prod")]
    Show {
        /// As requests name it
        slug: String,
    },
    /// Replace the credential at once
    #[command(after_help = "Example:\n  imagegate keys rotate openai-prod --key-file new-key.txt")]
    Rotate {
        /// As requests name it
        slug: String,
        #[command(flatten)]
        secret: SecretArgs,
    },
    /// Limit what may be asked with it, instead of what limited it before
    #[command(
        after_help = "Example:\n  imagegate keys limit openai-prod --rate rpm=60 --budget monthly=500:400\n  imagegate keys limit openai-prod"
    )]
    Limit {
        /// As requests name it
        slug: String,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Refuse all requests that use it
    #[command(after_help = "Example:\n  imagegate keys disable openai-prod")]
    Disable {
        /// As requests name it
        slug: String,
    },
    /// Let it be used again
    #[command(after_help = "Example:\n  imagegate keys enable openai-prod")]
    Enable {
        /// As requests name it
        slug: String,
    },
    /// Delete a virtual key
    #[command(after_help = "Example:\n  imagegate keys rm openai-prod")]
    Rm {
        /// As requests name it
        slug: String,
    },
    /// Manage API keys, by which callers are known
    #[command(after_help = "Example:\n  imagegate keys api create team-a --scope generate")]
    Api(ApiKeys),
}

/// A virtual key to be
#[derive(Debug, clap::Args)]
struct Add {
    /// What people call it; the slug is made from it
    name: String,

    /// Whose key it is: imagegate providers
    #[arg(long, value_name = "NAME")]
    provider: String,

    #[command(flatten)]
    secret: SecretArgs,

    /// Replaces the provider's own address
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,

    /// A setting of the provider's own, as virtual keys in the file have them
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = pair)]
    options: Vec<(String, String)>,

    /// For whoever finds it later
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,

    /// When it stops working: 90d, 2026-11-27, 2026-11-27T10:30:00Z
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,

    /// As requests name it, instead of one made from the name
    #[arg(long, value_name = "SLUG")]
    slug: Option<String>,
    #[command(flatten)]
    quota: QuotaArgs,
}

impl Keys {
    /// Does what the subcommand says and prints what came of it.
    pub async fn run(self) -> Result<()> {
        let memory = self.router.memory()?;
        match self.command {
            Command::List => {
                let ask = async |admin: &Remote, request| admin.list_virtual_keys(request).await;
                let keys = memory.ask(pb::ListVirtualKeysRequest {}, ask).await?.virtual_keys;
                if self.json {
                    return json::print_all(&keys, json::virtual_key);
                }
                table(&keys).print(&mut stdout())?;
                Ok(())
            }
            Command::Show { slug } => {
                let ask = async |admin: &Remote, request| admin.get_virtual_key(request).await;
                let key = memory.ask(pb::GetVirtualKeyRequest { slug }, ask).await?.virtual_key;
                if self.json { print_json(key) } else { details(&mut stdout(), &key.unwrap_or_default()) }
            }
            Command::Add(add) => {
                let ask = async |admin: &Remote, request| admin.create_virtual_key(request).await;
                let key = memory.ask(add.request()?, ask).await?.virtual_key;
                tell(key, "stored", self.json)
            }
            Command::Rotate { slug, secret } => {
                let request =
                    UpdateVirtualKeyRequest { slug, key: Some(secret.read()?), ..Default::default() };
                update(&memory, request, "has another credential", self.json).await
            }
            Command::Limit { slug, quota } => {
                let quota = Some(quota.message()?.unwrap_or_default());
                let done = if quota == Some(pb::Quota::default()) { "has no limits" } else { "is limited" };
                update(
                    &memory,
                    UpdateVirtualKeyRequest { slug, quota, ..Default::default() },
                    done,
                    self.json,
                )
                .await
            }
            Command::Disable { slug } => {
                let request = UpdateVirtualKeyRequest { slug, disabled: Some(true), ..Default::default() };
                update(&memory, request, "disabled", self.json).await
            }
            Command::Enable { slug } => {
                let request = UpdateVirtualKeyRequest { slug, disabled: Some(false), ..Default::default() };
                update(&memory, request, "enabled", self.json).await
            }
            Command::Rm { slug } => {
                let ask = async |admin: &Remote, request| admin.delete_virtual_key(request).await;
                memory.ask(pb::DeleteVirtualKeyRequest { slug: slug.clone() }, ask).await?;
                super::deleted(&slug, self.json)
            }
            Command::Api(command) => command.run(&memory, self.json).await,
        }
    }
}

impl Add {
    fn request(self) -> Result<pb::CreateVirtualKeyRequest> {
        Ok(pb::CreateVirtualKeyRequest {
            key: self.secret.read()?,
            name: self.name,
            provider: self.provider,
            note: self.note.unwrap_or_default(),
            base_url: self.base_url.unwrap_or_default(),
            options: self.options.into_iter().collect(),
            expires_unix_ms: self.expires.map(|when| when.ahead(pb::unix_now_ms())),
            slug: self.slug.unwrap_or_default(),
            quota: self.quota.message()?,
        })
    }
}

async fn update(memory: &Memory<'_>, request: UpdateVirtualKeyRequest, done: &str, json: bool) -> Result<()> {
    let ask = async |admin: &Remote, request| admin.update_virtual_key(request).await;
    tell(memory.ask(request, ask).await?.virtual_key, done, json)
}

fn tell(key: Option<VirtualKey>, done: &str, json: bool) -> Result<()> {
    if json {
        return print_json(key);
    }
    writeln!(stdout(), "{}: {done}", key.unwrap_or_default().slug)?;
    Ok(())
}

fn print_json(key: Option<VirtualKey>) -> Result<()> {
    json::print(&json::virtual_key(&key.unwrap_or_default()))
}

fn table(keys: &[VirtualKey]) -> Table {
    let mut table = Table::of_texts(&["SLUG", "NAME", "PROVIDER", "STATUS", "EXPIRES", "CREATED", "NOTE"]);
    for key in keys {
        table.row([
            key.slug.clone(),
            key.name.clone(),
            key.provider.clone(),
            json::status(key.status()).to_owned(),
            date_or_never(key.expires_unix_ms),
            date(key.created_unix_ms),
            key.note.clone(),
        ]);
    }
    table
}

fn details(out: &mut impl Write, key: &VirtualKey) -> Result<()> {
    let lines = [
        ("slug", key.slug.clone()),
        ("name", key.name.clone()),
        ("id", key.id.clone()),
        ("provider", key.provider.clone()),
        ("status", json::status(key.status()).to_owned()),
        ("base url", key.base_url.clone()),
        ("options", key.options.join(", ")),
        ("note", key.note.clone()),
        ("limits", all_words(key.quota.as_ref())),
        ("expires", date_or_never(key.expires_unix_ms)),
        ("created", date(key.created_unix_ms)),
        ("changed", date(key.updated_unix_ms)),
        ("created by", key.created_by.clone()),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{name:<11} {}", plain(value))?;
    }
    Ok(())
}
