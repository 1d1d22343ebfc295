//! The edges of what a model declares, as requests: whatever the router may send must be served.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{check::Check, samples};
use crate::{
    params,
    pb::{self, ImageFormat, ImageRequest, ModelCapability, Operation, Size, size_rule::Rule},
    route::size,
};

/// A request at an edge.
#[derive(Debug)]
pub struct Case {
    /// What it is about.
    pub check: Check,
    /// In a few words: `size 64x64`.
    pub label: String,
    /// What to ask for.
    pub request: ImageRequest,
}

/// The largest side that is tried where the record has no limit.
const UNLIMITED: u32 = 2048;

/// More than any limit of a record.
const BEYOND: u32 = 16_384;

/// Parameters that only edits have.
const OF_EDITS: [&str; 2] = ["strength", "input_fidelity"];

/// Parameters that are about something else's edge.
const ELSEWHERE: [&str; 4] = ["output_format", "partial_images", "n", "size"];

/// A request with nothing special, in the smallest size. None for a model that does nothing that the kit
/// can ask for.
pub fn usual(model: &ModelCapability) -> Option<ImageRequest> {
    let known = [Operation::Generate, Operation::Edit, Operation::Variation, Operation::Inpaint];
    let operation = known.into_iter().find(|operation| can(model, *operation))?;
    Some(request(model, operation))
}

/// Every edge, each in a request of its own so that a finding can name it.
pub fn cases(model: &ModelCapability) -> Vec<Case> {
    let Some(usual) = usual(model) else { return Vec::new() };
    let mut cases = Vec::new();
    let mut add = |check, label: String, request| cases.push(Case { check, label, request });
    for size in sizes(model.size.as_ref()) {
        let mut request = ImageRequest { size: Some(size), ..usual.clone() };
        if !request.inputs.is_empty() {
            request.inputs = samples::inputs(&request, 1);
        }
        add(Check::Size, format!("size {}", size.text()), request);
    }
    if model.max_n > 1 {
        let request = ImageRequest { n: Some(model.max_n), ..usual.clone() };
        add(Check::Count, format!("n {}", model.max_n), request);
    }
    for format in model.formats.iter().filter_map(|number| ImageFormat::try_from(*number).ok()) {
        let mut request = usual.clone();
        request.output_mut().format = format.into();
        add(Check::Format, format!("format {}", format.name()), request);
    }
    if model.max_prompt_chars > 0 {
        let prompt = samples::prompt(model.max_prompt_chars as usize);
        let label = format!("prompt of {} characters", model.max_prompt_chars);
        add(Check::Prompt, label, ImageRequest { prompt, ..usual.clone() });
    }
    // One parameter may have two spellings, of which the router takes the first.
    let mut known = BTreeSet::new();
    for rule in model.parameters.iter().filter(|rule| known.insert(params::canonical(&rule.name))) {
        for value in values(rule, model.max_seed) {
            let Some(request) = with(model, &usual, &rule.name, &value) else { continue };
            add(Check::Parameters, format!("{} {value}", rule.name), request);
        }
    }
    for operation in [Operation::Edit, Operation::Inpaint, Operation::Variation] {
        if can(model, operation) {
            let request = request(model, operation);
            let label = format!("{} with {} inputs", operation.name(), request.inputs.len());
            add(Check::Inputs, label, request);
        }
    }
    if model.max_partial_images > 0 {
        let request = ImageRequest { partial_images: Some(model.max_partial_images), ..usual };
        add(Check::Progress, format!("partial_images {}", model.max_partial_images), request);
    }
    cases
}

/// Different sizes that a model makes, from the smallest on; as many as there are up to `count`.
pub fn different_sizes(rule: Option<&pb::SizeRule>, count: u32) -> Vec<Size> {
    let Some(pb::SizeRule { rule: Some(Rule::Free(free)), .. }) = rule else { return sizes(rule) };
    let least = least(rule).and_then(|size| size.dimensions());
    let Some(least) = least else { return Vec::new() };
    let step = free.multiple_of.max(1).max(8);
    let wider = (0..count).map(|i| Size::pixels(least.width + i * step, least.height));
    wider.filter(|size| size.dimensions().is_some_and(|size| size::allows(free, size))).collect()
}

fn can(model: &ModelCapability, operation: Operation) -> bool {
    model.operations.contains(&operation.into())
}

fn request(model: &ModelCapability, operation: Operation) -> ImageRequest {
    let mut request = ImageRequest {
        operation: operation.into(),
        model: model.model.clone(),
        prompt: samples::PROMPT.to_owned(),
        n: Some(1),
        size: least(model.size.as_ref()),
        ..Default::default()
    };
    match operation {
        Operation::Edit => request.inputs = samples::inputs(&request, model.max_inputs.max(1)),
        Operation::Inpaint => {
            request.inputs = samples::inputs(&request, 1);
            request.mask = Some(samples::mask(&request));
        }
        Operation::Variation => {
            request.inputs = samples::inputs(&request, 1);
            request.prompt.clear();
        }
        _ => {}
    }
    request
}

fn least(rule: Option<&pb::SizeRule>) -> Option<Size> {
    sizes(rule).into_iter().next()
}

/// The ends of a rule and something in between, each once, the smallest first.
fn sizes(rule: Option<&pb::SizeRule>) -> Vec<Size> {
    let Some(pb::SizeRule { rule: Some(limits), auto }) = rule else {
        return rule.filter(|rule| rule.auto).map(|_| auto_size()).into_iter().collect();
    };
    let mut sizes: Vec<Size> = match limits {
        Rule::List(list) => {
            let mut all = list.sizes.clone();
            all.sort_by_key(|size| u64::from(size.width) * u64::from(size.height));
            ends(&all).into_iter().map(|size| Size::pixels(size.width, size.height)).collect()
        }
        Rule::Ratios(list) => {
            let mut all = list.ratios.clone();
            all.sort_by(|a, b| (a.width / a.height).total_cmp(&(b.width / b.height)));
            let size = |ratio| Size { size: Some(pb::size::Size::AspectRatio(ratio)) };
            ends(&all).into_iter().map(size).collect()
        }
        Rule::Free(free) => {
            let largest = if free.max_side == 0 && free.max_pixels == 0 { UNLIMITED } else { BEYOND };
            let fitted = |width, height| size::fit(Some(Size::pixels(width, height)), rule).size;
            let side =
                |size: Option<Size>| size.and_then(|size| size.dimensions()).map_or(1, |size| size.width);
            let (smallest, biggest) = (fitted(1, 1), fitted(largest, largest));
            let middle = (f64::from(side(smallest)) * f64::from(side(biggest))).sqrt() as u32;
            let mut found = vec![smallest, fitted((middle * 7 / 6) | 1, middle | 1), biggest];
            if free.max_ratio > 0.0 {
                found.push(fitted(BEYOND, 1));
            }
            found.into_iter().flatten().collect()
        }
    };
    if *auto {
        sizes.push(auto_size());
    }
    let mut seen = Vec::new();
    sizes.retain(|size| {
        let is_first = !seen.contains(&size.text());
        seen.push(size.text());
        is_first
    });
    sizes
}

fn auto_size() -> Size {
    Size { size: Some(pb::size::Size::Auto(true)) }
}

/// First, middle, last.
fn ends<T: Copy>(all: &[T]) -> Vec<T> {
    [all.first(), all.get(all.len() / 2), all.last()].into_iter().flatten().copied().collect()
}

fn values(rule: &pb::ParameterRule, max_seed: u64) -> Vec<Value> {
    let name = params::canonical(&rule.name);
    if ELSEWHERE.contains(&name) {
        return Vec::new();
    }
    if name == "seed" {
        return vec![0.into(), if max_seed == 0 { u32::MAX.into() } else { max_seed.into() }];
    }
    let limits = [rule.min, rule.max].into_iter().flatten().map(samples::number);
    rule.values.iter().map(|value| Value::from(value.as_str())).chain(limits).collect()
}

/// A request with a parameter, of a kind that the parameter means something for.
fn with(model: &ModelCapability, usual: &ImageRequest, name: &str, value: &Value) -> Option<ImageRequest> {
    let mut request = if OF_EDITS.contains(&params::canonical(name)) && can(model, Operation::Edit) {
        request(model, Operation::Edit)
    } else {
        usual.clone()
    };
    if name == "output_compression" {
        let lossy = [ImageFormat::Webp, ImageFormat::Jpeg];
        let format = lossy.into_iter().find(|format| model.formats.contains(&(*format).into()))?;
        request.output_mut().format = format.into();
    }
    // What no request can carry is a finding about the record.
    params::set(&mut request, name, value).ok()?;
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::yaml, provider::catalog};

    fn labels(yaml: &str) -> Vec<String> {
        let models = catalog::entry(&yaml::parse(yaml).unwrap().value).unwrap();
        cases(&models[0]).into_iter().map(|case| case.label).collect()
    }

    #[test]
    fn every_edge_is_tried_once() {
        let labels = labels(
            "{ids: [m], operations: [generate, edit], max_n: 4, max_prompt_chars: 10, max_inputs: 3, \
              formats: [png, jpeg], sizes: {free: {multiple_of: 8, min_side: 64, max_side: 512}}, \
              parameters: {seed: {}, quality: {values: [low, high]}, guidance: {min: 1, max: 7.5}, style: {}}}",
        );
        let expected = [
            "size 64x64",
            "size 208x184",
            "size 512x512",
            "n 4",
            "format png",
            "format jpeg",
            "prompt of 10 characters",
            "guidance 1",
            "guidance 7.5",
            "quality \"low\"",
            "quality \"high\"",
            "seed 0",
            "seed 4294967295",
            "edit with 3 inputs",
        ];
        assert_eq!(labels, expected);
    }

    #[test]
    fn lists_have_ends_and_a_middle() {
        let sizes = labels(
            "{ids: [m], operations: [generate], formats: [png], sizes: {auto: true, list: [9x9, 1x1, 5x5, 4x4]}}",
        );
        assert_eq!(sizes, ["size 1x1", "size 5x5", "size 9x9", "size auto", "format png"]);
        let ratios = labels(
            "{ids: [m], operations: [generate], formats: [png], sizes: {ratios: ['1:1', '9:21', '21:9']}}",
        );
        assert_eq!(ratios, ["size 9:21", "size 1:1", "size 21:9", "format png"]);
    }

    #[test]
    fn different_sizes_are_all_allowed() {
        let free = pb::FreeSize { multiple_of: 16, min_side: 64, max_side: 160, ..Default::default() };
        let rule = pb::SizeRule { rule: Some(Rule::Free(free)), auto: false };
        let found: Vec<_> = different_sizes(Some(&rule), 16).iter().map(Size::text).collect();
        assert_eq!(found, ["64x64", "80x64", "96x64", "112x64", "128x64", "144x64", "160x64"]);
    }
}
