//! Fills in what a file only refers to: `${VAR}` inside a text, `{env: VAR}` and `{file: PATH}` as a value.

use std::fs;

use serde_json::Value;

use super::{read::Problems, yaml::join};

/// Replaces every reference below `value`. What cannot be resolved is a problem and becomes an empty text.
pub fn fill_in(
    value: &mut Value,
    path: &str,
    environment: &dyn Fn(&str) -> Option<String>,
    problems: &Problems,
) {
    let variable = |name: &str| match environment(name) {
        Some(text) if !text.is_empty() => text,
        found => {
            let what = if found.is_some() { "is empty" } else { "is not set" };
            problems.add(path, format!("environment variable {name} {what}"));
            String::new()
        }
    };
    match value {
        Value::String(text) if text.contains("${") => *text = expand(text, &variable),
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                fill_in(item, &join(path, &format!("{i}")), environment, problems);
            }
        }
        Value::Object(fields) => {
            let reference = match fields.iter().next() {
                Some((kind, Value::String(name))) if fields.len() == 1 => match kind.as_str() {
                    "env" => Some(variable(name)),
                    "file" => Some(read_file(name, path, problems)),
                    _ => None,
                },
                _ => None,
            };
            if let Some(text) = reference {
                // An empty text stands for what has been reported; the field's reader need not complain again.
                *value = if text.is_empty() { Value::String(" ".into()) } else { Value::String(text) };
                return;
            }
            for (name, field) in fields {
                // What goes to a provider is the provider's business: its fields may be named like ours.
                if matches!(name.as_str(), "override_params" | "default_params") {
                    continue;
                }
                fill_in(field, &join(path, name), environment, problems);
            }
        }
        _ => {}
    }
}

fn read_file(name: &str, path: &str, problems: &Problems) -> String {
    match fs::read_to_string(name) {
        Ok(text) if text.trim().is_empty() => problems.add(path, format!("file {name} is empty")),
        // Editors and `kubectl create secret` leave a line break at the end.
        Ok(text) => return text.trim_end().to_owned(),
        Err(error) => problems.add(path, format!("file {name} cannot be read: {error}")),
    }
    String::new()
}

fn expand(text: &str, variable: &dyn Fn(&str) -> String) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else { break };
        expanded.push_str(before);
        expanded.push_str(&variable(name));
        rest = after;
    }
    expanded.push_str(rest);
    expanded
}
