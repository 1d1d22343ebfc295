//! A config as somebody has typed it: what it says, and where what is wrong with it stands.

use std::collections::HashMap;

use maud::{Markup, html};
use serde_json::Value;

use crate::{
    config::{Problem, yaml},
    dashboard::layout,
    error::Error,
    pb::Violation,
};

/// A text that has been read, as JSON or as YAML.
pub struct Typed {
    /// JSON, as it was typed if it was JSON; without it, what is wrong.
    pub json: Result<String, Error>,
    /// Line and column of each path.
    places: HashMap<String, (usize, usize)>,
}

impl Typed {
    /// Reads a text.
    pub fn read(text: &str) -> Self {
        if text.trim().is_empty() {
            return Self { json: Err(Error::invalid("config", "config: Required")), places: HashMap::new() };
        }
        let json = serde_json::from_str::<Value>(text);
        // YAML knows no tabs; to JSON they are blanks, and each is one column.
        let document = yaml::parse(&text.replace('\t', " "));
        match (json, document) {
            (Ok(_), document) => Self {
                json: Ok(text.to_owned()),
                places: document.map(|document| document.places).unwrap_or_default(),
            },
            (Err(_), Ok(document)) => Self { json: Ok(document.value.to_string()), places: document.places },
            (Err(error), Err(problem)) => {
                // Whoever has begun with a brace has meant JSON.
                let (place, message) = if text.trim_start().starts_with('{') {
                    let reason = error.to_string();
                    let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
                    (Some((error.line(), error.column())), reason)
                } else {
                    (problem.place, problem.message)
                };
                let message = format!("neither JSON nor YAML: {message}");
                let violation = Violation { path: String::new(), message };
                let places = place.map(|place| (String::new(), place)).into_iter().collect();
                Self { json: Err(Error::config("config: not valid", vec![violation])), places }
            }
        }
    }

    /// The line of a path, or of what is around it if it is not there itself.
    pub fn line(&self, path: &str) -> Option<usize> {
        // Both ways of writing an index are in use.
        let mut path = path.replace('[', ".").replace(']', "");
        loop {
            match self.places.get(&path) {
                Some((line, _)) => return Some(*line),
                None if path.is_empty() => return None,
                None => path.truncate(path.rfind('.').unwrap_or(0)),
            }
        }
    }

    /// Every line with something wrong.
    pub fn marked(&self, error: &Error) -> Vec<usize> {
        error.violations.iter().filter_map(|violation| self.line(&violation.path)).collect()
    }

    /// Everything that is wrong, each with its line, from top to bottom.
    pub fn problems(&self, error: &Error) -> Markup {
        if error.violations.is_empty() {
            return layout::problem(error);
        }
        let mut found: Vec<_> =
            error.violations.iter().map(|violation| (self.line(&violation.path), violation)).collect();
        found.sort_by_key(|(line, _)| *line);
        html! {
            div class="problem" role="alert" {
                p { "The config is not valid:" }
                ul {
                    @for (line, violation) in found {
                        li {
                            @if let Some(line) = line {
                                a href={ "#line-" (line) } data-line=(line) { "line " (line) } ": "
                            }
                            // Without the line, which is told already.
                            (Problem::new(&violation.path, &violation.message))
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = "{\n\t\"strategy\": {\"mode\": \"fallback\"},\n\t\"targets\": [\n\t\t{\"virtual_key\": \"a\"},\n\t\t{\n\t\t\t\"virtual_key\": \"b\",\n\t\t\t\"retry\": {}\n\t\t}\n\t]\n}\n";

    #[test]
    fn json_stays_as_it_was_typed_and_has_lines() {
        let typed = Typed::read(JSON);
        assert_eq!(typed.json.as_ref().unwrap(), JSON);
        for (path, line) in [
            ("", 1),
            ("strategy.mode", 2),
            ("targets", 3),
            ("targets.0", 4),
            ("targets.1.virtual_key", 6),
            ("targets[1].virtual_key", 6),
            ("targets.1.retry.attempts", 7),
            ("targets.7.gone", 3),
            ("gone", 1),
        ] {
            assert_eq!(typed.line(path), Some(line), "{path}");
        }
    }

    #[test]
    fn yaml_becomes_json() {
        let typed = Typed::read("strategy: { mode: fallback }\ntargets:\n  - virtual_key: a\n");
        assert_eq!(
            typed.json.as_ref().unwrap(),
            r#"{"strategy":{"mode":"fallback"},"targets":[{"virtual_key":"a"}]}"#
        );
        assert_eq!(typed.line("targets.0.virtual_key"), Some(3));
    }

    #[test]
    fn a_text_that_is_neither_says_where_it_breaks() {
        for (text, line, said) in [
            ("{\n  \"a\": 1\n  \"b\": 2\n}", 3, "expected `,` or `}`"),
            ("{\n  \"a\": [1, 2\n", 3, "EOF while parsing"),
            ("a: 1\nb: [1, 2\n", 2, ""),
        ] {
            let typed = Typed::read(text);
            let error = typed.json.as_ref().unwrap_err();
            assert!(typed.line("").is_some_and(|found| found >= line), "{text}: {:?}", typed.line(""));
            assert!(error.violations[0].message.contains(said), "{error:?}");
            assert!(typed.problems(error).0.contains("data-line"), "{text}");
        }
        assert_eq!(Typed::read(" \n").json.unwrap_err().message, "config: Required");
    }

    #[test]
    fn every_problem_is_shown_with_its_line_and_path() {
        let violation = |path: &str| Violation { path: path.into(), message: "<wrong>".into() };
        let typed = Typed::read(JSON);
        let error = Error::config(
            "config: not valid",
            vec![violation("targets.0.virtual_key"), violation("strategy.mode")],
        );
        let shown = typed.problems(&error).0;
        assert!(
            shown.contains("\"#line-4\" data-line=\"4\">line 4</a>: targets.0.virtual_key: &lt;wrong&gt;"),
            "{shown}"
        );
        let (first, _) = shown.split_once("line 4</a>").unwrap();
        assert!(first.contains("line 2</a>: strategy.mode"), "{shown}");
        assert_eq!(typed.marked(&error), [4, 2]);
    }
}
