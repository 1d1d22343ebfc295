//! `imagegate providers`: which providers and models this binary (or a configuration's workers) knows.

use std::io::{Write, stdout};

use anyhow::Result;
use serde_json::{Value, json};

use super::ConfigArg;
use crate::{
    gateway::Gateway,
    pb::{ImageFormat, ModelCapability, Operation, Price, Provider, size_rule::Rule},
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
            anyhow::bail!("there is no provider \"{wanted}\"; known: {}", known.join(", "));
        }
        let mut out = stdout();
        if self.json {
            let list: Vec<Value> = records.iter().map(|record| provider_json(record)).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        } else {
            for record in &records {
                print(&mut out, record)?;
            }
        }
        if !unreachable.is_empty() {
            anyhow::bail!("not every worker answers: {}", unreachable.join("; "));
        }
        Ok(())
    }
}

fn print(out: &mut impl Write, provider: &Provider) -> Result<()> {
    let key = if provider.keyless { " (no key needed)" } else { "" };
    writeln!(out, "{}{key}", provider.name)?;
    for model in &provider.models {
        writeln!(out, "  {}{}", model.model, lifecycle_text(model))?;
        writeln!(
            out,
            "    {}; {} per call; {}",
            operations(model).join(", "),
            model.max_n.max(1),
            sizes(model)
        )?;
        let prices = prices(model);
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
        "models": provider.models.iter().map(model_json).collect::<Vec<_>>(),
    })
}

fn model_json(model: &ModelCapability) -> Value {
    let parameter = |rule: &crate::pb::ParameterRule| json!({"name": rule.name, "values": rule.values, "min": rule.min, "max": rule.max});
    let lifecycle = model.lifecycle.clone().unwrap_or_default();
    json!({
        "model": model.model,
        "operations": operations(model),
        "max_n": model.max_n.max(1),
        "sizes": sizes(model),
        "formats": formats(model),
        "max_prompt_chars": (model.max_prompt_chars > 0).then_some(model.max_prompt_chars),
        "max_inputs": model.max_inputs.max(1),
        "max_partial_images": model.max_partial_images,
        "parameters": model.parameters.iter().map(parameter).collect::<Vec<_>>(),
        "prices": prices(model),
        "retired_on": (!lifecycle.retired_on.is_empty()).then_some(lifecycle.retired_on),
        "successor": (!lifecycle.successor.is_empty()).then_some(lifecycle.successor),
    })
}

fn operations(model: &ModelCapability) -> Vec<&'static str> {
    model
        .operations
        .iter()
        .filter_map(|number| Operation::try_from(*number).ok())
        .map(Operation::name)
        .collect()
}

fn formats(model: &ModelCapability) -> Vec<&'static str> {
    model
        .formats
        .iter()
        .filter_map(|number| ImageFormat::try_from(*number).ok())
        .map(ImageFormat::name)
        .collect()
}

fn sizes(model: &ModelCapability) -> String {
    let Some(rule) = &model.size else { return "its own size".to_owned() };
    let mut words: Vec<String> = match &rule.rule {
        Some(Rule::List(list)) => list.sizes.iter().map(ToString::to_string).collect(),
        Some(Rule::Ratios(list)) => {
            list.ratios.iter().map(|ratio| format!("{}:{}", ratio.width, ratio.height)).collect()
        }
        Some(Rule::Free(free)) => {
            let limit = |name: &str, value: u64| (value > 0).then(|| format!("{name} {value}"));
            let limits = [
                limit("sides from", free.min_side.into()),
                limit("sides to", free.max_side.into()),
                limit("multiples of", free.multiple_of.into()),
                limit("pixels to", free.max_pixels),
            ];
            let limits: Vec<String> = limits.into_iter().flatten().collect();
            vec![if limits.is_empty() {
                "any size".to_owned()
            } else {
                format!("any size with {}", limits.join(", "))
            }]
        }
        None => Vec::new(),
    };
    words.extend(rule.auto.then(|| "auto".to_owned()));
    words.join(" ")
}

fn prices(model: &ModelCapability) -> Vec<String> {
    let text = |price: &Price| {
        let per = if price.per > 1.0 { format!(" per {}", price.per) } else { String::new() };
        let quality = crate::params::quality_name(price.quality()).unwrap_or_default();
        let operation = match price.operation() {
            Operation::Unspecified => "",
            operation => operation.name(),
        };
        let conditions = [price.size.as_str(), quality, operation];
        let conditions: Vec<&str> = conditions.into_iter().filter(|text| !text.is_empty()).collect();
        let conditions =
            if conditions.is_empty() { String::new() } else { format!(" ({})", conditions.join(", ")) };
        format!("${} {}{per}{conditions}", price.usd, price.item)
    };
    model.prices.iter().map(text).collect()
}

fn lifecycle_text(model: &ModelCapability) -> String {
    let Some(lifecycle) = model.lifecycle.as_ref().filter(|lifecycle| !lifecycle.retired_on.is_empty())
    else {
        return String::new();
    };
    let successor = if lifecycle.successor.is_empty() {
        String::new()
    } else {
        format!(", successor {}", lifecycle.successor)
    };
    format!(" (retirement {}{successor})", lifecycle.retired_on)
}
