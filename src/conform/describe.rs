//! Whether Describe answers as it should, and whether what it says makes sense.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use tokio::time::timeout;
use tonic::{Request, Status};

use super::{asking::told, check::Check, report::Report, samples};
use crate::{
    params,
    pb::{self, ImageFormat, ImageRequest, ModelCapability, Operation, size_rule::Rule},
    pool::Pool,
    prices::{COUNTED, MADE, read::is_day},
    route::size,
};

/// How long the router waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks once.
pub async fn ask(pool: &Pool) -> Result<pb::DescribeResponse, Status> {
    let answer = pool.clone().worker().describe(Request::new(pb::DescribeRequest {})).await?;
    Ok(answer.into_inner())
}

/// Asks again, and looks at everything it says. The first time may have been the worker's first call ever, over
/// a connection that had to be made: only the second is timed.
pub async fn check(pool: &Pool, record: &pb::DescribeResponse, report: &mut Report) {
    let again = match timeout(PATIENCE, ask(pool)).await {
        Ok(Ok(again)) if again == *record => Ok(()),
        Ok(Ok(_)) => Err("asked again, it says something else".to_owned()),
        Ok(Err(status)) => Err(format!("asked again, it answers {}", told(&status))),
        Err(_) => Err("asked again, it does not answer within 2 s".to_owned()),
    };
    report.hold(Check::Describe, again);
    let findings = findings(record);
    if findings.is_empty() {
        report.pass(Check::Record);
    }
    findings.into_iter().for_each(|finding| report.fail(Check::Record, finding));
}

/// Everything about a record that makes no sense.
fn findings(record: &pb::DescribeResponse) -> Vec<String> {
    let mut findings = Vec::new();
    if record.providers.is_empty() {
        findings.push("there is no provider".to_owned());
    }
    let mut names = BTreeSet::new();
    for provider in &record.providers {
        let name = &provider.name;
        if !is_id(name) {
            findings.push(format!(
                "provider name \"{name}\": only letters, digits, `-`, `_` and `.` are allowed"
            ));
        }
        if !names.insert(name) {
            findings.push(format!("provider \"{name}\" is there twice"));
        }
        if provider.models.is_empty() {
            findings.push(format!("{name} has no models"));
        }
        if provider.credentials.iter().any(|credential| credential.options.is_empty()) {
            findings.push(format!("{name} has a credential without options"));
        }
        let mut earlier: Vec<&str> = Vec::new();
        for model in &provider.models {
            if let Some(hiding) = earlier.iter().find(|entry| hides(entry, &model.model)) {
                findings.push(format!("{name} {}: never found behind {hiding}", model.model));
            }
            earlier.push(&model.model);
            findings
                .extend(of_model(model).into_iter().map(|what| format!("{name} {}: {what}", model.model)));
        }
    }
    findings
}

fn is_id(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
}

fn hides(earlier: &str, model: &str) -> bool {
    earlier.strip_suffix('*').map_or(earlier == model, |start| model.starts_with(start))
}

fn of_model(model: &ModelCapability) -> Vec<String> {
    let mut findings = Vec::new();
    let id = model.model.strip_suffix('*').unwrap_or(&model.model);
    if model.model.is_empty() || id.contains('*') {
        findings.push("an id is not empty and has `*` only at its end".to_owned());
    }
    let operations: Vec<_> = model.operations.iter().map(|number| Operation::try_from(*number)).collect();
    if operations.is_empty()
        || operations.iter().any(|known| matches!(known, Err(_) | Ok(Operation::Unspecified)))
    {
        findings.push("operations are empty, unspecified or unknown".to_owned());
    }
    let formats: Vec<_> = model.formats.iter().map(|number| ImageFormat::try_from(*number)).collect();
    // What hides behind a prefix may send anything.
    let must_have_some = !model.model.ends_with('*');
    if (must_have_some && formats.is_empty())
        || formats.iter().any(|known| matches!(known, Err(_) | Ok(ImageFormat::Unspecified)))
    {
        findings.push("formats are empty, unspecified or unknown".to_owned());
    }
    if model.max_n > params::MAX_IMAGES {
        findings.push(format!(
            "max_n {} is more than any request asks for ({})",
            model.max_n,
            params::MAX_IMAGES
        ));
    }
    findings.extend(of_size(model.size.as_ref()));
    let mut names = BTreeSet::new();
    for rule in &model.parameters {
        if !names.insert(&rule.name) {
            findings.push(format!("parameter {} is there twice", rule.name));
        }
        findings.extend(of_parameter(rule).map(|what| format!("parameter {}: {what}", rule.name)));
    }
    for price in &model.prices {
        let items = [COUNTED, MADE].concat();
        if !items.contains(&price.item.as_str()) {
            findings.push(format!("price of \"{}\": known items are {}", price.item, items.join(", ")));
        }
        if ![price.usd, price.per, price.usual, price.beyond, price.round_up_to].into_iter().all(is_amount) {
            findings.push(format!("price of {}: {} per {}", price.item, price.usd, price.per));
        }
        for day in [&price.from, &price.until].into_iter().filter(|day| !day.is_empty() && !is_day(day)) {
            findings.push(format!("price of {}: \"{day}\" is no date like 2026-01-31", price.item));
        }
    }
    let retired_on = model.lifecycle.as_ref().map_or("", |lifecycle| &lifecycle.retired_on);
    if !retired_on.is_empty() && !is_day(retired_on) {
        findings.push(format!("retired_on \"{retired_on}\" is no date like 2026-01-31"));
    }
    findings
}

fn of_size(rule: Option<&pb::SizeRule>) -> Option<String> {
    let is_ratio = |ratio: &pb::AspectRatio| {
        ratio.width > 0.0 && ratio.height > 0.0 && (ratio.width / ratio.height).is_finite()
    };
    match rule?.rule.as_ref()? {
        Rule::List(list) if list.sizes.is_empty() => Some("the list of sizes is empty".to_owned()),
        Rule::List(list) => {
            let bad = list.sizes.iter().find(|size| size.width == 0 || size.height == 0)?;
            Some(format!("{bad} is no size"))
        }
        Rule::Ratios(list) if list.ratios.is_empty() => Some("the list of ratios is empty".to_owned()),
        Rule::Ratios(list) => {
            let bad = list.ratios.iter().find(|ratio| !is_ratio(ratio))?;
            Some(format!("{}:{} is no ratio", bad.width, bad.height))
        }
        Rule::Free(free) => {
            let fitted = size::fit(Some(pb::Size::pixels(1024, 1024)), rule).size;
            let possible =
                fitted.and_then(|size| size.dimensions()).is_some_and(|size| size::allows(free, size));
            (!possible).then(|| "no size satisfies the limits".to_owned())
        }
    }
}

fn of_parameter(rule: &pb::ParameterRule) -> Option<String> {
    if rule.name.is_empty() {
        return Some("it has no name".to_owned());
    }
    if let (Some(min), Some(max)) = (rule.min, rule.max)
        && min > max
    {
        return Some(format!("min {min} is more than max {max}"));
    }
    let limits = [rule.min, rule.max].into_iter().flatten().map(samples::number);
    let values = rule.values.iter().map(|value| Value::from(value.as_str()));
    let refused = limits.chain(values).find_map(|value| {
        params::set(&mut ImageRequest::default(), &rule.name, &value).err().map(|error| error.message.clone())
    });
    refused.map(|why| format!("no request can carry a declared value: {why}"))
}

fn is_amount(amount: f64) -> bool {
    amount.is_finite() && amount >= 0.0
}

/// A full date of RFC 3339.
#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> ModelCapability {
        ModelCapability {
            model: "m-1".into(),
            operations: vec![Operation::Generate.into()],
            formats: vec![ImageFormat::Png.into()],
            ..Default::default()
        }
    }

    fn sized(rule: Rule) -> ModelCapability {
        ModelCapability { size: Some(pb::SizeRule { rule: Some(rule), auto: false }), ..good() }
    }

    fn with_parameter(name: &str, values: &[&str], limits: (f64, f64)) -> ModelCapability {
        let values: Vec<_> = values.iter().map(ToString::to_string).collect();
        let (min, max) = if values.is_empty() { (Some(limits.0), Some(limits.1)) } else { (None, None) };
        ModelCapability {
            parameters: vec![pb::ParameterRule { name: name.into(), values, min, max }],
            ..good()
        }
    }

    #[test]
    fn every_built_in_record_makes_sense() {
        for provider in crate::provider::all() {
            let record = pb::DescribeResponse { providers: vec![provider.record().clone()] };
            assert_eq!(findings(&record), Vec::<String>::new());
        }
    }

    #[test]
    fn nonsense_in_a_model_is_named() {
        let retired = |on: &str| {
            let lifecycle = pb::Lifecycle { retired_on: on.into(), ..Default::default() };
            ModelCapability { lifecycle: Some(lifecycle), ..good() }
        };
        let price = |item: &str, usd: f64| {
            let price = pb::Price { item: item.into(), usd, ..Default::default() };
            ModelCapability { prices: vec![price], ..good() }
        };
        let impossible = pb::FreeSize { min_side: 512, max_side: 256, ..Default::default() };
        let cases = [
            (ModelCapability { model: String::new(), ..good() }, "not empty"),
            (ModelCapability { model: "a*b".into(), ..good() }, "only at its end"),
            (ModelCapability { operations: vec![99], ..good() }, "operations"),
            (ModelCapability { formats: vec![0], ..good() }, "formats"),
            (ModelCapability { max_n: 1000, ..good() }, "max_n 1000"),
            (sized(Rule::List(pb::SizeList::default())), "sizes is empty"),
            (
                sized(Rule::Ratios(pb::RatioList {
                    ratios: vec![pb::AspectRatio { width: 1.0, height: 0.0 }],
                })),
                "1:0",
            ),
            (sized(Rule::Free(impossible)), "no size satisfies"),
            (with_parameter("guidance", &[], (7.0, 3.0)), "min 7 is more than max 3"),
            (with_parameter("quality", &["glorious"], (0.0, 0.0)), "glorious"),
            (with_parameter("strength", &[], (0.0, 2.0)), "no request can carry"),
            (retired("2026-02-30"), "2026-02-30"),
            (retired("soon"), "soon"),
            (price("picture", 1.0), "picture"),
            (price("image", -1.0), "-1"),
            (price("image", f64::NAN), "NaN"),
        ];
        for (model, part) in cases {
            let found = of_model(&model);
            assert!(found.len() == 1 && found[0].contains(part), "{part}: {found:?}");
        }
        assert_eq!(of_model(&good()), Vec::<String>::new());
        assert_eq!(of_model(&retired("2028-02-29")), Vec::<String>::new());
    }

    #[test]
    fn nonsense_between_entries_is_named() {
        let provider = |name: &str, models: &[&str]| {
            let models = models.iter().map(|id| ModelCapability { model: (*id).into(), ..good() }).collect();
            pb::Provider { name: name.into(), models, ..Default::default() }
        };
        let cases = [
            (vec![], "no provider"),
            (vec![provider("a b", &["m"])], "\"a b\""),
            (vec![provider("p", &["m"]), provider("p", &["m"])], "twice"),
            (vec![provider("p", &[])], "no models"),
            (vec![provider("p", &["m-*", "m-1"])], "never found behind m-*"),
        ];
        for (providers, part) in cases {
            let found = findings(&pb::DescribeResponse { providers });
            assert!(found.len() == 1 && found[0].contains(part), "{part}: {found:?}");
        }
    }
}
