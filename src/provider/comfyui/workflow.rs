//! A graph of ComfyUI's nodes with slots where a request's fields go.
//!
//! A slot is `{{name}}` or `{{name:default}}` in a text of the graph. A text that is one slot takes the type of what
//! goes there. Filling works on the parsed graph, so that no prompt can become anything but a text.

use std::time::UNIX_EPOCH;

use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    params,
    pb::{self, Operation, warning::Action},
    provider::Job,
};

/// The setting that holds the operator's own workflow.
const OPTION: &str = "comfyui_workflow";

/// The model that stands for whatever the workflow itself names.
const OWN_MODEL: &str = "workflow";

/// Slots by the names of the request's parameters.
const TEXTS: &[&str] = &["prompt", "negative_prompt", "model", "sampler", "scheduler"];
const NUMBERS: &[&str] = &["seed", "steps", "guidance", "strength", "width", "height", "n"];

/// A workflow, and what goes into it.
pub(super) struct Workflow<'a> {
    graph: Value,
    job: &'a Job,
}

/// A part of a text.
enum Part<'a> {
    Text(&'a str),
    Slot { name: &'a str, default: Option<&'a str> },
}

impl<'a> Workflow<'a> {
    /// The operator's own workflow, or else the one for the operation.
    pub(super) fn of(job: &'a Job) -> Result<Self> {
        let own = job.options.get(OPTION);
        let text = match (own, job.request.effective_operation()) {
            (Some(own), Operation::Generate | Operation::Edit | Operation::Inpaint) => own,
            (None, Operation::Generate) => include_str!("generate.json"),
            (None, Operation::Edit) => include_str!("edit.json"),
            (None, Operation::Inpaint) => include_str!("inpaint.json"),
            (_, other) => {
                let message = format!("comfyui has no operation {:?}", other.name());
                return Err(Error::unsupported("operation", message));
            }
        };
        let invalid = |problem: &str| Error::invalid(OPTION, format!("{OPTION} {problem}"));
        let graph: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| invalid(&format!("is no JSON object: {error}")))?;
        if graph.get("nodes").is_some_and(Value::is_array) {
            return Err(invalid(
                "is in the editor's format; ComfyUI's API takes what \"Export (API)\" saves",
            ));
        }
        if let Some((id, _)) = graph.iter().find(|(_, node)| !node["class_type"].is_string()) {
            return Err(invalid(&format!("has a node {id:?} without a class_type")));
        }
        if own.is_none() && job.request.model == OWN_MODEL {
            let message = format!("without a {OPTION}, a model is needed: the file name of a checkpoint");
            return Err(Error::invalid("model", message));
        }
        Ok(Self { graph: graph.into(), job })
    }

    /// The graph with the request in it, whose files lie at these places: the mask's first.
    pub(super) fn fill(&self, files: &[String]) -> Result<Value> {
        let request = &self.job.request;
        if request.mask.is_some() && !self.has("mask") {
            return Err(Error::unsupported("mask", "the workflow has no slot {{mask}}"));
        }
        if let Some(name) = (0..request.inputs.len()).map(image_slot).find(|name| !self.has(name)) {
            return Err(Error::unsupported("image", format!("the workflow has no slot {{{{{name}}}}}")));
        }
        self.filled(&self.graph, files)
    }

    /// The seed that the graph was filled with, if it has a slot for one.
    pub(super) fn seed(&self) -> Option<u64> {
        let default = self.slots().find(|(name, _)| *name == "seed")?.1;
        self.value("seed", default, &[]).ok()?.as_u64()
    }

    /// What of the request the workflow has no place for.
    pub(super) fn dropped(&self) -> Vec<pb::Warning> {
        let mut dropped: Vec<_> = [TEXTS, NUMBERS]
            .concat()
            .into_iter()
            .filter(|&name| name != "n" && self.given(name, &[]).is_some() && !self.has(name))
            .map(|name| {
                let field = if matches!(name, "width" | "height") { "size" } else { name };
                warning(field, Action::Dropped, format!("the workflow has no slot {{{{{name}}}}}"))
            })
            .collect();
        dropped.dedup_by(|later, earlier| later.field == earlier.field);
        dropped
    }

    fn has(&self, name: &str) -> bool {
        self.slots().any(|(slot, _)| slot == name)
    }

    /// Names and defaults of all slots.
    fn slots(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let slot = |part| match part {
            Part::Slot { name, default } => Some((name, default)),
            Part::Text(_) => None,
        };
        texts(&self.graph).into_iter().flat_map(parts).filter_map(slot)
    }

    fn filled(&self, value: &Value, files: &[String]) -> Result<Value> {
        Ok(match value {
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(name, field)| Ok((name.clone(), self.filled(field, files)?)))
                    .collect::<Result<_>>()?,
            ),
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.filled(item, files)).collect::<Result<_>>()?)
            }
            Value::String(text) => self.filled_text(text, files)?,
            other => other.clone(),
        })
    }

    fn filled_text(&self, text: &str, files: &[String]) -> Result<Value> {
        let parts = parts(text);
        if let [Part::Slot { name, default }] = parts.as_slice() {
            return self.value(name, *default, files);
        }
        let mut filled = String::with_capacity(text.len());
        for part in parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Slot { name, default } => match self.value(name, default, files)? {
                    Value::String(text) => filled.push_str(&text),
                    other => filled.push_str(&other.to_string()),
                },
            }
        }
        Ok(filled.into())
    }

    /// What goes into a slot.
    fn value(&self, name: &str, default: Option<&str>, files: &[String]) -> Result<Value> {
        let invalid = |problem: String| Error::invalid(OPTION, format!("{OPTION} {problem}"));
        let is_number = NUMBERS.contains(&name);
        if !is_number && !TEXTS.contains(&name) && name != "mask" && image_number(name).is_none() {
            let known = [TEXTS, NUMBERS].concat().join(", ");
            return Err(invalid(format!(
                "has an unknown slot {{{{{name}}}}}; allowed: {known}, image, image_2 and so on, mask"
            )));
        }
        let default = match default {
            Some(default) if is_number => Some(default.parse().map(Value::Number).map_err(|_| {
                invalid(format!("has a slot {{{{{name}:{default}}}}} whose default is no number"))
            })?),
            other => other.map(Value::from),
        };
        match (self.given(name, files).or(default), name) {
            (Some(value), _) => Ok(value),
            (None, "prompt" | "negative_prompt") => Ok("".into()),
            (None, "seed") => Ok(self.drawn_seed().into()),
            (None, "width" | "height") => Err(Error::invalid("size", "the workflow needs a size in pixels")),
            (None, _) => {
                Err(Error::invalid(name, format!("the workflow needs {name}, which has no default")))
            }
        }
    }

    /// What the request has for a slot.
    fn given(&self, name: &str, files: &[String]) -> Option<Value> {
        let request = &self.job.request;
        let masks = usize::from(request.mask.is_some());
        match name {
            "n" => Some(request.wanted().into()),
            "width" => request.dimensions().map(|size| size.width.into()),
            "height" => request.dimensions().map(|size| size.height.into()),
            "model" if request.model == OWN_MODEL => None,
            "mask" => files.first().filter(|_| masks > 0).map(|file| file.as_str().into()),
            _ => match image_number(name) {
                Some(number) => files.get(masks + number).map(|file| file.as_str().into()),
                None => params::get(request, name),
            },
        }
    }

    /// A seed for whoever names none, as ComfyUI wants one. A provider draws nothing by chance, but jobs begin at
    /// different nanoseconds. It fits 32 bits, as some nodes want.
    fn drawn_seed(&self) -> u32 {
        self.job.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u32
    }
}

/// A change of the request that only the provider knows of.
pub(super) fn warning(field: &str, action: Action, detail: String) -> pb::Warning {
    pb::Warning { field: field.to_owned(), action: action.into(), detail, target: String::new() }
}

/// All texts of a graph.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(fields) => fields.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// A text's slots and what stands between them. Braces around anything but a name are text.
fn parts(text: &str) -> Vec<Part<'_>> {
    let (mut parts, mut plain, mut at) = (Vec::new(), 0, 0);
    while let Some(start) = text[at..].find("{{").map(|found| at + found) {
        let Some((inner, rest)) = text[start + 2..].split_once("}}") else { break };
        let (name, default) = inner.split_once(':').map_or((inner, None), |(name, text)| (name, Some(text)));
        let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || !name.chars().all(in_name) {
            at = start + 1;
            continue;
        }
        if start > plain {
            parts.push(Part::Text(&text[plain..start]));
        }
        parts.push(Part::Slot { name, default });
        at = text.len() - rest.len();
        plain = at;
    }
    if plain < text.len() {
        parts.push(Part::Text(&text[plain..]));
    }
    parts
}

/// The slot of an input, counted from 0: `image`, `image_2`, ...
fn image_slot(number: usize) -> String {
    if number == 0 { "image".to_owned() } else { format!("image_{}", number + 1) }
}

/// The input that a slot is for.
fn image_number(slot: &str) -> Option<usize> {
    let number = match slot.strip_prefix("image")? {
        "" => 0,
        rest => rest.strip_prefix('_')?.parse::<usize>().ok()?.checked_sub(1)?,
    };
    (image_slot(number) == slot).then_some(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(text: &str, prompt: &str) -> Result<Value> {
        let request = pb::ImageRequest {
            prompt: prompt.to_owned(),
            model: "x.safetensors".to_owned(),
            steps: Some(30),
            ..Default::default()
        };
        let mut job = Job::new(request, "http://comfy");
        let graph = json!({"1": {"class_type": "Node", "inputs": {"it": text}}});
        job.options.insert(OPTION.to_owned(), graph.to_string());
        let graph = Workflow::of(&job)?.fill(&[])?;
        Ok(graph["1"]["inputs"]["it"].clone())
    }

    #[test]
    fn a_text_that_is_one_slot_takes_its_type_and_others_stay_texts() {
        for (text, expected) in [
            ("{{steps}}", json!(30)),
            ("{{steps:20}}", json!(30)),
            ("{{guidance:3.5}}", json!(3.5)),
            ("{{n}}", json!(1)),
            ("{{model}}", json!("x.safetensors")),
            ("{{sampler:euler}}", json!("euler")),
            ("{{negative_prompt}}", json!("")),
            ("{{negative_prompt:ugly: very}}", json!("ugly: very")),
            ("{{steps}} steps of {{prompt}}!", json!("30 steps of a fox!")),
            ("{{{prompt}}}", json!("{a fox}")),
            ("{{ prompt }}, {red|blue}, {{", json!("{{ prompt }}, {red|blue}, {{")),
        ] {
            assert_eq!(filled(text, "a fox").unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_prompt_is_a_text_whatever_is_in_it() {
        for prompt in ["{{steps}}", "\"}}, \"2\": {", "{{prompt}}", "}}"] {
            assert_eq!(filled("{{prompt}}", prompt).unwrap(), json!(prompt));
            assert_eq!(filled("<{{prompt}}>", prompt).unwrap(), json!(format!("<{prompt}>")));
        }
    }

    #[test]
    fn a_slot_that_cannot_be_filled_is_named() {
        for (text, expected) in [
            ("{{step}}", "unknown slot {{step}}; allowed: prompt, negative_prompt, model"),
            ("{{image_1}}", "unknown slot {{image_1}}"),
            ("{{steps:many}}", "{{steps:many}} whose default is no number"),
            ("{{guidance}}", "the workflow needs guidance, which has no default"),
            ("{{width}}", "the workflow needs a size in pixels"),
            ("{{image}}", "the workflow needs image, which has no default"),
        ] {
            let error = filled(text, "a fox").unwrap_err();
            assert!(error.message.contains(expected), "{text}: {}", error.message);
        }
    }

    #[test]
    fn inputs_are_counted_from_one() {
        for (slot, number) in [("image", Some(0)), ("image_2", Some(1)), ("image_16", Some(15))] {
            assert_eq!(image_number(slot), number);
        }
        for slot in ["image_0", "image_1", "image_02", "image2", "images", "image_x"] {
            assert_eq!(image_number(slot), None, "{slot}");
        }
    }
}
