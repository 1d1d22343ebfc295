//! YAML to a JSON value, with the line and column of every node.
//!
//! The rest of `config/` reads JSON values only: a config in a file and a config in a request header go
//! through the same checks, and a path into the value leads back to its line.

use std::collections::HashMap;

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Number, Value};

use super::Problem;

/// A parsed file.
#[derive(Debug)]
pub struct Document {
    /// The content.
    pub value: Value,
    /// Line and column, both from 1, by dotted path.
    pub places: HashMap<String, (usize, usize)>,
}

impl Document {
    /// Puts line and column to a problem, as exactly as its path is known.
    pub fn locate(&self, mut problem: Problem) -> Problem {
        let mut path = problem.path.as_str();
        while problem.place.is_none() {
            problem.place = self.places.get(path).copied();
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None if path.is_empty() => break,
                None => path = "",
            }
        }
        problem
    }
}

/// Reads one YAML document. An empty one is an empty mapping.
pub fn parse(text: &str) -> Result<Document, Problem> {
    let documents = MarkedYaml::load_from_str(text).map_err(|error| {
        let marker = error.marker();
        let mut problem = Problem::new("", error.info());
        problem.place = Some((marker.line(), marker.col() + 1));
        problem
    })?;
    let mut places = HashMap::new();
    let value = match documents.as_slice() {
        [] => Value::Object(Map::new()),
        [document] => convert(document, String::new(), &mut places)?,
        _ => return Err(Problem::new("", "one YAML document is expected, the file has several")),
    };
    let value = if value.is_null() { Value::Object(Map::new()) } else { value };
    Ok(Document { value, places })
}

fn convert(
    node: &MarkedYaml<'_>,
    path: String,
    places: &mut HashMap<String, (usize, usize)>,
) -> Result<Value, Problem> {
    places.insert(path.clone(), (node.span.start.line(), node.span.start.col() + 1));
    Ok(match &node.data {
        YamlData::Value(scalar) => match scalar {
            Scalar::Null => Value::Null,
            Scalar::Boolean(value) => Value::Bool(*value),
            Scalar::Integer(value) => Value::Number((*value).into()),
            Scalar::FloatingPoint(value) => {
                Number::from_f64(value.into_inner()).map_or(Value::Null, Value::Number)
            }
            Scalar::String(value) => Value::String(value.to_string()),
        },
        YamlData::Representation(text, ..) => Value::String(text.to_string()),
        YamlData::Sequence(items) => {
            let convert = |(i, item)| convert(item, join(&path, &format!("{i}")), places);
            Value::Array(items.iter().enumerate().map(convert).collect::<Result<_, _>>()?)
        }
        YamlData::Mapping(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let name = match &key.data {
                    YamlData::Value(Scalar::String(name)) => name.to_string(),
                    YamlData::Value(Scalar::Integer(name)) => name.to_string(),
                    YamlData::Value(Scalar::Boolean(name)) => name.to_string(),
                    _ => return Err(at(key, &path, "a key must be a text")),
                };
                let child = join(&path, &name);
                let converted = convert(value, child.clone(), places)?;
                // The key's own place is where a person looks for a misspelt or missing field.
                places.insert(child, (key.span.start.line(), key.span.start.col() + 1));
                map.insert(name, converted);
            }
            Value::Object(map)
        }
        YamlData::Tagged(..) => return Err(at(node, &path, "YAML tags are not used here")),
        YamlData::Alias(_) | YamlData::BadValue => {
            return Err(at(node, &path, "not a value that can be read"));
        }
    })
}

fn at(node: &MarkedYaml<'_>, path: &str, message: &str) -> Problem {
    let mut problem = Problem::new(path, message);
    problem.place = Some((node.span.start.line(), node.span.start.col() + 1));
    problem
}

/// A path one level deeper.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_back_to_its_line() {
        let document = parse("a: 1\nb:\n  - c: x\n    d: true\n").unwrap();
        assert_eq!(document.value, serde_json::json!({"a": 1, "b": [{"c": "x", "d": true}]}));
        assert_eq!(document.places["b.0.d"], (4, 5));
        let located = document.locate(Problem::new("b.0.missing", "required"));
        assert_eq!(located.place, Some((3, 5)));
    }

    #[test]
    fn broken_yaml_is_refused_with_its_line() {
        let problem = parse("a: 1\nb: [1, 2\n").unwrap_err();
        assert!(problem.place.is_some_and(|(line, _)| line >= 2), "{problem}");
    }

    #[test]
    fn json_is_yaml() {
        assert_eq!(
            parse(r#"{"a": [1, null, "x"]}"#).unwrap().value,
            serde_json::json!({"a": [1, null, "x"]})
        );
    }
}
