//! What a model can do, as people and programs are shown it.

use serde_json::{Value, json};

use crate::{
    params,
    pb::{self, ImageFormat, ModelCapability, Operation, Price, size_rule::Rule},
};

/// As JSON.
pub fn to_json(model: &ModelCapability) -> Value {
    let parameter = |rule: &pb::ParameterRule| json!({"name": rule.name, "values": rule.values, "min": rule.min, "max": rule.max});
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

/// What it can do.
pub fn operations(model: &ModelCapability) -> Vec<&'static str> {
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

/// Its sizes, in words.
pub fn sizes(model: &ModelCapability) -> String {
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

/// Its list prices, in words.
pub fn prices(model: &ModelCapability) -> Vec<String> {
    let text = |price: &Price| {
        let per = if price.per > 1.0 { format!(" per {}", price.per) } else { String::new() };
        let quality = params::quality_name(price.quality()).unwrap_or_default();
        let operation = match price.operation() {
            Operation::Unspecified => "",
            operation => operation.name(),
        };
        let number = |word: &str, number: f64| match number {
            0.0 => String::new(),
            number => format!("{word} {number}"),
        };
        let day = |word: &str, day: &str| match day {
            "" => String::new(),
            day => format!("{word} {day}"),
        };
        let conditions = [
            price.size.clone(),
            quality.to_owned(),
            operation.to_owned(),
            number("beyond", price.beyond),
            number("in units of", price.round_up_to),
            number("usually", price.usual),
            day("from", &price.from),
            day("until", &price.until),
        ];
        let conditions: Vec<String> = conditions.into_iter().filter(|text| !text.is_empty()).collect();
        let conditions =
            if conditions.is_empty() { String::new() } else { format!(" ({})", conditions.join(", ")) };
        format!("${} {}{per}{conditions}", price.usd, price.item)
    };
    model.prices.iter().map(text).collect()
}

/// When it goes, and what to use instead; nothing if it stays.
pub fn lifecycle_text(model: &ModelCapability) -> String {
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
