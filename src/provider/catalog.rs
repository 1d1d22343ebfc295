//! Reads a provider's data file (`src/provider/<name>.yaml`) into the capability record it describes, and the
//! entries by which an operator says otherwise for an endpoint of its own.
//!
//! The files are embedded in the binary and written by us, so a mistake in one is a defect: it is found by the
//! tests of this module, which read every file.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    config::read::Problems,
    pb,
    prices::{self, Book},
};

/// Reads an embedded data file, which is JSON by now.
///
/// # Errors
/// What is wrong with the file.
pub fn read(text: &str) -> Result<pb::Provider, String> {
    let data: Data = serde_json::from_str(text).map_err(|error| error.to_string())?;
    data.into_record()
}

/// Reads one entry of `models`: what one or several models can do.
///
/// # Errors
/// What is wrong with it, with what is allowed.
pub fn entry(value: &serde_json::Value) -> Result<Vec<pb::ModelCapability>, String> {
    Model::deserialize(value).map_err(|error| error.to_string())?.capabilities()
}

/// Reads an embedded data file that the tests have read before, and fills in the prices of the embedded book.
pub fn embedded(text: &str) -> pb::Provider {
    let mut record = read(text).expect("tests read every embedded data file");
    for model in &mut record.models {
        let prices = Book::embedded().prices(&record.name, &model.model);
        model.prices = prices.map(|prices| prices.to_vec()).unwrap_or_default();
    }
    record
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    name: String,
    #[serde(default)]
    keyless: bool,
    /// Settings that together stand for an API key.
    #[serde(default)]
    credentials: Vec<Vec<String>>,
    /// The settings that it knows, as virtual keys spell them.
    #[serde(default)]
    settings: Vec<String>,
    models: Vec<Model>,
}

/// One entry for one or several models that behave alike.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    /// Exact ids, or prefixes that end in `*`.
    ids: Vec<String>,
    operations: Vec<String>,
    #[serde(default)]
    max_n: u32,
    #[serde(default)]
    sizes: Option<Sizes>,
    #[serde(default)]
    max_prompt_chars: u32,
    #[serde(default)]
    max_inputs: u32,
    #[serde(default)]
    formats: Vec<String>,
    #[serde(default)]
    parameters: BTreeMap<String, Parameter>,
    #[serde(default)]
    max_partial_images: u32,
    #[serde(default)]
    retired_on: String,
    #[serde(default)]
    successor: String,
    #[serde(default)]
    max_seed: u64,
    #[serde(default)]
    accepts_input_urls: bool,
    /// Of an operator's own endpoint: the embedded files have none, see `crate::prices`.
    #[serde(default)]
    prices: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    #[serde(default)]
    auto: bool,
    /// `1024x1024`
    #[serde(default)]
    list: Vec<String>,
    /// `16:9`
    #[serde(default)]
    ratios: Vec<String>,
    #[serde(default)]
    free: Option<Free>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Free {
    multiple_of: u32,
    min_side: u32,
    max_side: u32,
    min_pixels: u64,
    max_pixels: u64,
    max_ratio: f64,
}

/// `{}` lets anything through.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Parameter {
    values: Vec<String>,
    min: Option<f64>,
    max: Option<f64>,
}

impl Data {
    fn into_record(self) -> Result<pb::Provider, String> {
        let mut models = Vec::new();
        for model in &self.models {
            models.extend(model.capabilities()?);
        }
        let credentials = self.credentials.into_iter().map(|options| pb::CredentialOptions { options });
        Ok(pb::Provider {
            name: self.name,
            models,
            keyless: self.keyless,
            credentials: credentials.collect(),
            settings: self.settings,
        })
    }
}

impl Model {
    fn capabilities(&self) -> Result<Vec<pb::ModelCapability>, String> {
        if self.ids.is_empty() || self.operations.is_empty() {
            return Err("ids and operations need at least one entry each".into());
        }
        let is_day = |text: &str| text.len() == 10 && text.split('-').all(|part| part.parse::<u16>().is_ok());
        if !self.retired_on.is_empty() && !is_day(&self.retired_on) {
            return Err(format!("retired_on: \"{}\" is not allowed; allowed: YYYY-MM-DD", self.retired_on));
        }
        self.ids.iter().map(|id| self.capability(id)).collect()
    }

    fn capability(&self, id: &str) -> Result<pb::ModelCapability, String> {
        let format = |name: &String| match pb::ImageFormat::from_name(name) {
            Some(format) => Ok(format.into()),
            None => {
                Err(format!("formats: \"{name}\" is not a format; allowed: png, jpeg, webp, gif, svg, avif"))
            }
        };
        Ok(pb::ModelCapability {
            model: id.to_owned(),
            operations: self.operations.iter().map(|name| operation(name)).collect::<Result<_, _>>()?,
            max_n: self.max_n,
            size: self.sizes.as_ref().map(Sizes::rule).transpose()?,
            max_prompt_chars: self.max_prompt_chars,
            max_inputs: self.max_inputs,
            formats: self.formats.iter().map(format).collect::<Result<_, _>>()?,
            parameters: self
                .parameters
                .iter()
                .map(|(name, rule)| pb::ParameterRule {
                    name: name.clone(),
                    values: rule.values.clone(),
                    min: rule.min,
                    max: rule.max,
                })
                .collect(),
            max_partial_images: self.max_partial_images,
            lifecycle: Some(pb::Lifecycle {
                retired_on: self.retired_on.clone(),
                successor: self.successor.clone(),
            }),
            prices: self.prices()?,
            max_seed: self.max_seed,
            accepts_input_urls: self.accepts_input_urls,
        })
    }
}

impl Model {
    fn prices(&self) -> Result<Vec<pb::Price>, String> {
        let problems = Problems::default();
        let prices = prices::read::prices(&self.prices, "prices", &problems);
        match problems.into_vec() {
            found if found.is_empty() => Ok(prices),
            found => Err(found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        }
    }
}

fn operation(name: &str) -> Result<i32, String> {
    let known = pb::Operation::from_name(name).ok_or_else(|| format!("\"{name}\" is not an operation"));
    known.map(Into::into)
}

impl Sizes {
    fn rule(&self) -> Result<pb::SizeRule, String> {
        use pb::size_rule::Rule;
        let rule = if let Some(free) = &self.free {
            Some(Rule::Free(pb::FreeSize {
                multiple_of: free.multiple_of,
                min_side: free.min_side,
                max_side: free.max_side,
                min_pixels: free.min_pixels,
                max_pixels: free.max_pixels,
                max_ratio: free.max_ratio,
            }))
        } else if !self.list.is_empty() {
            let sizes = self.list.iter().map(|text| {
                let (width, height) = pair(text, 'x')?;
                Ok(pb::Dimensions { width, height })
            });
            Some(Rule::List(pb::SizeList { sizes: sizes.collect::<Result<_, String>>()? }))
        } else if !self.ratios.is_empty() {
            let ratios = self.ratios.iter().map(|text| {
                let (width, height) = pair(text, ':')?;
                Ok(pb::AspectRatio { width, height })
            });
            Some(Rule::Ratios(pb::RatioList { ratios: ratios.collect::<Result<_, String>>()? }))
        } else {
            None
        };
        Ok(pb::SizeRule { auto: self.auto, rule })
    }
}

fn pair<T: std::str::FromStr>(text: &str, separator: char) -> Result<(T, T), String> {
    text.split_once(separator).and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))).ok_or_else(|| {
        format!("sizes: \"{text}\" is not allowed; allowed: two numbers with a {separator:?} between")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_data_file_is_read() {
        for provider in crate::provider::all() {
            let record = provider.record();
            assert!(!record.models.is_empty(), "{}", record.name);
        }
    }

    #[test]
    fn prices_are_in_the_book_and_nowhere_else() {
        for provider in crate::provider::all() {
            let record = provider.record();
            for model in &record.models {
                let prices = Book::embedded().prices(&record.name, &model.model);
                assert_eq!(model.prices, prices.map(|prices| prices.to_vec()).unwrap_or_default());
            }
        }
        let text = r#"{"name":"x","models":[{"ids":["a"],"operations":["generate"],"prices":[{"item":"image","usd":1}]}]}"#;
        assert!(embedded(text).models[0].prices.is_empty());
    }

    #[test]
    fn every_model_is_described_once_and_has_an_operation() {
        for provider in crate::provider::all() {
            let record = provider.record();
            let mut seen: Vec<&str> = Vec::new();
            for model in &record.models {
                let id = model.model.as_str();
                assert!(!model.operations.is_empty(), "{}: {id} has no operation", record.name);
                for earlier in &seen {
                    let hidden =
                        earlier.strip_suffix('*').map_or(id == *earlier, |start| id.starts_with(start));
                    assert!(!hidden, "{}: {id} is never found behind {earlier}", record.name);
                }
                seen.push(id);
            }
        }
    }

    #[test]
    fn every_successor_is_a_live_model() {
        for provider in crate::provider::all() {
            let record = provider.record();
            for model in &record.models {
                let lifecycle = model.lifecycle.as_ref().unwrap();
                if lifecycle.successor.is_empty() {
                    continue;
                }
                let successor = record.models.iter().find(|other| other.model == lifecycle.successor);
                let live = successor.is_some_and(|m| m.lifecycle.as_ref().unwrap().retired_on.is_empty());
                assert!(live, "{}: {} is no live successor", record.name, lifecycle.successor);
            }
        }
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        let text = r#"{"name":"x","models":[{"ids":["a"],"operations":["generate"],"max_m":1}]}"#;
        let problem = read(text).unwrap_err();
        assert!(problem.contains("max_m"), "{problem}");
    }
}
