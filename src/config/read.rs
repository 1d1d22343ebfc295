//! Reads JSON objects field by field and collects everything that is wrong, instead of stopping at the first.
//!
//! Type errors use the reference's words (`Required`, `Expected number, received string`), because its users
//! know them.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use serde_json::{Map, Value};

use super::{Problem, yaml::join};

/// Where problems are collected.
#[derive(Debug, Default)]
pub struct Problems(RefCell<Vec<Problem>>);

/// One object whose fields are taken by name.
#[derive(Debug)]
pub struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
    known: BTreeSet<String>,
    problems: &'a Problems,
}

impl Problems {
    /// Adds one.
    pub fn add(&self, path: impl Into<String>, message: impl Into<String>) {
        self.0.borrow_mut().push(Problem::new(path, message));
    }

    /// All of them, in the order they were found.
    pub fn into_vec(self) -> Vec<Problem> {
        self.0.into_inner()
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

impl<'a> Object<'a> {
    /// Opens a value that must be an object.
    pub fn open(value: &'a Value, path: impl Into<String>, problems: &'a Problems) -> Option<Self> {
        let path = path.into();
        let Value::Object(fields) = value else {
            problems.add(path, format!("Expected object, received {}", type_name(value)));
            return None;
        };
        Some(Self { path, fields, known: BTreeSet::new(), problems })
    }

    /// Where this object is.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where a field of it is.
    pub fn at(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// Reports something wrong with a field.
    pub fn problem(&self, name: &str, message: impl Into<String>) {
        self.problems.add(self.at(name), message);
    }

    /// Where problems go.
    pub fn problems(&self) -> &'a Problems {
        self.problems
    }

    /// A field of any type; `null` counts as absent. The camelCase spelling is the same field.
    pub fn value(&mut self, name: &str) -> Option<&'a Value> {
        let camel = camel_case(name);
        let found = self.fields.get(name).or_else(|| self.fields.get(&camel));
        self.known.insert(name.to_owned());
        self.known.insert(camel);
        found.filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub fn required(&mut self, name: &str) -> Option<&'a Value> {
        let value = self.value(name);
        if value.is_none() {
            self.problem(name, "Required");
        }
        value
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Option<&'a str> {
        let value = self.value(name)?;
        self.expect(name, value, "string", Value::as_str)
    }

    /// A number.
    pub fn number(&mut self, name: &str) -> Option<f64> {
        let value = self.value(name)?;
        self.expect(name, value, "number", Value::as_f64)
    }

    /// True or false.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        let value = self.value(name)?;
        self.expect(name, value, "boolean", Value::as_bool)
    }

    /// A whole number within limits.
    pub fn whole(&mut self, name: &str, min: u64, max: u64) -> Option<u64> {
        let number = self.number(name)?;
        if number.fract() != 0.0 || number < min as f64 || number > max as f64 {
            self.problem(
                name,
                format!("{number} is not allowed; allowed: a whole number from {min} to {max}"),
            );
            return None;
        }
        Some(number as u64)
    }

    /// A number within limits.
    pub fn between(&mut self, name: &str, min: f64, max: f64) -> Option<f64> {
        let number = self.number(name)?;
        if !(min..=max).contains(&number) {
            self.problem(name, format!("{number} is not allowed; allowed: {min} to {max}"));
            return None;
        }
        Some(number)
    }

    /// One of some words.
    pub fn choice<T: Copy>(&mut self, name: &str, allowed: &[(&str, T)]) -> Option<T> {
        let said = self.text(name)?;
        let found = allowed.iter().find(|(word, _)| *word == said);
        if found.is_none() {
            let words: Vec<_> = allowed.iter().map(|(word, _)| *word).collect();
            self.problem(name, format!("'{said}' is not allowed; allowed: {}", words.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    /// A duration in milliseconds. 0 means none, as the reference has it.
    pub fn millis(&mut self, name: &str) -> Option<Duration> {
        let number = self.number(name)?;
        if !(0.0..=86_400_000.0).contains(&number) {
            self.problem(name, format!("{number} is not allowed; allowed: 0 to 86400000 milliseconds"));
            return None;
        }
        (number > 0.0).then(|| Duration::from_secs_f64(number / 1000.0))
    }

    /// A list.
    pub fn list(&mut self, name: &str) -> Option<&'a [Value]> {
        let value = self.value(name)?;
        self.expect(name, value, "array", |value| value.as_array().map(Vec::as_slice))
    }

    /// A list of texts.
    pub fn texts(&mut self, name: &str) -> Option<Vec<&'a str>> {
        let list = self.list(name)?;
        let text = |(i, value): (usize, &'a Value)| {
            self.expect(&format!("{name}.{i}"), value, "string", Value::as_str)
        };
        Some(list.iter().enumerate().filter_map(text).collect())
    }

    /// A list of HTTP status codes.
    pub fn statuses(&mut self, name: &str) -> Option<Vec<u16>> {
        let list = self.list(name)?;
        let mut statuses = Vec::new();
        for (i, value) in list.iter().enumerate() {
            let field = format!("{name}.{i}");
            let Some(number) = self.expect(&field, value, "number", Value::as_f64) else { continue };
            if number.fract() != 0.0 || !(100.0..=599.0).contains(&number) {
                self.problem(&field, format!("{number} is not an HTTP status; allowed: 100 to 599"));
                continue;
            }
            statuses.push(number as u16);
        }
        Some(statuses)
    }

    /// An object whose content belongs to somebody else.
    pub fn map(&mut self, name: &str) -> Option<&'a Map<String, Value>> {
        let value = self.value(name)?;
        self.expect(name, value, "object", Value::as_object)
    }

    /// An object with fields of its own.
    pub fn object(&mut self, name: &str) -> Option<Object<'a>> {
        let value = self.value(name)?;
        Object::open(value, self.at(name), self.problems)
    }

    /// Whether a field is there, without taking it.
    pub fn has(&self, name: &str) -> bool {
        [name, &camel_case(name)]
            .iter()
            .any(|name| self.fields.get(*name).is_some_and(|value| !value.is_null()))
    }

    /// Every field whose name passes, as texts; numbers and flags are written out.
    pub fn texts_where(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (name, value) in self.fields {
            if self.known.contains(name) || !wanted(name) {
                continue;
            }
            self.known.insert(name.clone());
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            found.push((snake_case(name), text));
        }
        found
    }

    /// Reports every field that nobody asked for.
    pub fn finish(self) {
        self.report_unknown();
    }

    /// As [`Object::finish`], for a reader that still has something to say about known fields.
    pub fn report_unknown(&self) {
        let known = self.known.iter().filter(|name| !name.chars().any(char::is_uppercase));
        let known: Vec<&str> = known.map(String::as_str).collect();
        for name in self.fields.keys().filter(|name| !self.known.contains(*name)) {
            self.problem(name, format!("unknown field{}", suggestion(&snake_case(name), &known)));
        }
    }

    fn expect<T>(
        &self,
        name: &str,
        value: &'a Value,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let found = read(value);
        if found.is_none() {
            self.problem(name, format!("Expected {expected}, received {}", type_name(value)));
        }
        found
    }
}

/// `; did you mean "x"?`, or else the list of what is allowed.
pub fn suggestion(name: &str, allowed: &[&str]) -> String {
    let near = allowed
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min();
    match near {
        Some((_, candidate)) => format!("; did you mean \"{candidate}\"?"),
        None if allowed.is_empty() => String::new(),
        None => format!("; allowed: {}", allowed.join(", ")),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn camel_case(name: &str) -> String {
    let mut camel = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                camel.extend(c.to_uppercase());
                upper = false;
            }
            c => camel.push(c),
        }
    }
    camel
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_uppercase() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_problems_are_found_at_once() {
        let value = json!({"a": "1", "when": [99], "atempts": 3});
        let problems = Problems::default();
        let mut object = Object::open(&value, "retry", &problems).unwrap();
        object.number("a");
        object.statuses("when");
        object.required("attempts");
        object.finish();
        let found: Vec<_> = problems.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "retry.a: Expected number, received string",
                "retry.when.0: 99 is not an HTTP status; allowed: 100 to 599",
                "retry.attempts: Required",
                "retry.atempts: unknown field; did you mean \"attempts\"?",
            ]
        );
    }

    #[test]
    fn the_camel_case_spelling_is_the_same_field() {
        let value = json!({"requestTimeout": 500});
        let problems = Problems::default();
        let mut object = Object::open(&value, "", &problems).unwrap();
        assert_eq!(object.millis("request_timeout"), Some(Duration::from_millis(500)));
        object.finish();
        assert!(problems.is_empty());
    }
}
