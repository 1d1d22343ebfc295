//! `imagegate providers`: which providers and models this binary (or a configuration's workers) knows.

use std::io::{Write, stdout};

use anyhow::Result;
use serde_json::{Value, json};

use super::ConfigArg;
use crate::{
    error::{Error, ErrorKind},
    gateway::Gateway,
    pb::Provider,
    prices::Book,
    provider::shown,
};

/// Show providers and models with what they can do
#[derive(Debug, clap::Args)]
pub struct Providers {
    /// Only this provider
    #[arg(value_name = "NAME")]
    name: Option<String>,

    /// For programs
    #[arg(long)]
    json: bool,

    /// For the workers it names
    #[command(flatten)]
    config: ConfigArg,
}

impl Providers {
    /// Asks every worker and prints what it says.
    pub async fn run(self) -> Result<()> {
        let (gateway, settings) = Gateway::try_new(self.config.origin())?;
        let workers = gateway.workers(&settings)?;
        let wanted = self.name.as_deref().map(crate::provider::canonical_name);
        let mut records = Vec::new();
        let mut unreachable = Vec::new();
        for name in workers.providers().into_iter().filter(|name| wanted.is_none_or(|wanted| wanted == name))
        {
            match workers.find(&name).await {
                Ok((_, record)) => records.push(record),
                Err(error) => unreachable.push(format!("{name}: {}", error.message)),
            }
        }
        if let (Some(wanted), true) = (wanted, records.is_empty() && unreachable.is_empty()) {
            let known: Vec<String> = workers.providers().into_iter().collect();
            let message = format!("there is no provider \"{wanted}\"; known: {}", known.join(", "));
            return Err(Error::new(ErrorKind::NotFound, message).into());
        }
        let mut out = stdout();
        if self.json {
            let list: Vec<Value> = records.iter().map(|record| provider_json(record)).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        } else {
            for record in &records {
                print(&mut out, record)?;
            }
            writeln!(out, "Prices of built-in providers are as of {}.", Book::embedded().as_of())?;
        }
        if !unreachable.is_empty() {
            let message = format!("not every worker answers: {}", unreachable.join("; "));
            return Err(Error::new(ErrorKind::Unavailable, message).into());
        }
        Ok(())
    }
}

fn print(out: &mut impl Write, provider: &Provider) -> Result<()> {
    let key = if provider.keyless { " (no key needed)" } else { "" };
    writeln!(out, "{}{key}", provider.name)?;
    for model in &provider.models {
        writeln!(out, "  {}{}", model.model, shown::lifecycle_text(model))?;
        writeln!(
            out,
            "    {}; {} per call; {}",
            shown::operations(model).join(", "),
            model.max_n.max(1),
            shown::sizes(model)
        )?;
        let prices = shown::prices(model);
        if !prices.is_empty() {
            writeln!(out, "    {}", prices.join(", "))?;
        }
    }
    Ok(())
}

fn provider_json(provider: &Provider) -> Value {
    json!({
        "name": provider.name,
        "keyless": provider.keyless,
        "models": provider.models.iter().map(shown::to_json).collect::<Vec<_>>(),
    })
}
