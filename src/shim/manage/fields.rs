//! Fields of bodies and parameters in addresses, as the reference's clients write them. What is wrong with them is one
//! error with all of it.

use serde_json::{Map, Value};

use super::Refused;
use crate::{
    config::read::{Object, Problems},
    error::{Error, Result},
    moment, pb,
};

/// The parameters as texts. A name that comes twice is a list; an empty value says nothing.
pub fn read_query(query: &str) -> Map<String, Value> {
    let mut found: Map<String, Value> = Map::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if value.is_empty() {
            continue;
        }
        let value = Value::from(value.into_owned());
        match found.get_mut(name.as_ref()) {
            None => _ = found.insert(name.into_owned(), value),
            Some(Value::Array(several)) => several.push(value),
            Some(one) => *one = Value::Array(vec![one.take(), value]),
        }
    }
    found
}

/// Takes the fields that `read` wants. Everything wrong with them is one error; so is a field that nobody asked for.
pub fn read_fields<T>(
    fields: &Map<String, Value>,
    refused: &[Refused],
    read: impl FnOnce(&mut Object<'_>) -> T,
) -> Result<T> {
    let problems = Problems::default();
    let mut fields = fields.clone();
    for (name, why) in refused {
        if fields.remove(*name).is_some_and(|value| !says_nothing(&value)) {
            problems.add(*name, *why);
        }
    }
    let value = Value::Object(fields);
    let read = Object::open(&value, "", &problems).map(|mut object| {
        let read = read(&mut object);
        object.finish();
        read
    });
    match (read, problems.is_empty()) {
        (Some(read), true) => Ok(read),
        _ => Err(refusal(problems)),
    }
}

fn refusal(problems: Problems) -> Error {
    let problems = problems.into_vec();
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let mut error = Error::invalid("body", lines.join("; "));
    error.param = problems.first().map(|problem| problem.path.clone());
    error.violations = problems
        .into_iter()
        .map(|problem| pb::Violation { path: problem.path, message: problem.message })
        .collect();
    error
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A text that has to be there.
pub fn required(object: &mut Object<'_>, name: &str) -> String {
    if object.required(name).is_none() {
        return String::new();
    }
    text(object, name)
}

/// A text, or an empty one.
pub fn text(object: &mut Object<'_>, name: &str) -> String {
    object.text(name).unwrap_or_default().to_owned()
}

/// True or false. The reference's SDKs write 1 and 0.
pub fn flag(object: &mut Object<'_>, name: &str) -> Option<bool> {
    match object.value(name)?.as_u64() {
        Some(number @ 0..=1) => Some(number == 1),
        _ => object.flag(name),
    }
}

/// A whole number, which in an address is a text.
pub fn whole(object: &mut Object<'_>, name: &str, min: u64, max: u64) -> Option<u64> {
    if !object.value(name)?.is_string() {
        return object.whole(name, min, max);
    }
    let said = object.text(name)?;
    let number = said.parse().ok().filter(|number| (min..=max).contains(number));
    if number.is_none() {
        object.problem(name, format!("'{said}' is not allowed; allowed: a whole number from {min} to {max}"));
    }
    number
}

/// A name that the path has already said. Clients repeat it in the body.
pub fn same_as_path(object: &mut Object<'_>, name: &str, path: &str) {
    if let Some(said) = object.text(name)
        && said != path
    {
        object.problem(name, format!("'{said}' is not '{path}', which the path names"));
    }
}

/// Whether something is switched off.
pub fn disabled(object: &mut Object<'_>) -> Option<bool> {
    object.choice("status", &[("active", false), ("disabled", true)])
}

/// A time to come, in milliseconds.
pub fn expiry(object: &mut Object<'_>) -> Option<i64> {
    moment_of(object, "expires_at")
}

/// A time to come, in milliseconds, or 0 for `never`.
pub fn changed_expiry(object: &mut Object<'_>) -> Option<i64> {
    if object.value("expires_at")?.as_str() == Some("never") { Some(0) } else { expiry(object) }
}

/// A time as ISO 8601 has it, in milliseconds.
pub fn moment_of(object: &mut Object<'_>, name: &str) -> Option<i64> {
    let said = object.text(name)?;
    let millis = moment::parse(said);
    if millis.is_none() {
        object.problem(name, format!("'{said}' is not a time such as 2026-12-31T23:59:59Z"));
    }
    millis
}
