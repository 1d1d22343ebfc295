//! The operator's own price book: written in the file, or in one beside it (docs/costs.md).

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    Problem,
    read::Problems,
    yaml::{self, Document},
};

/// The field.
const FIELD: &str = "prices";

/// A book in a file of its own.
#[derive(Debug)]
pub struct Beside {
    /// Where it is.
    pub path: PathBuf,
    document: Document,
}

/// Takes in the book of a file that `prices` names, by a path that begins at `folder`.
pub fn take_in(value: &mut Value, folder: &Path, problems: &Problems) -> Option<Beside> {
    let field = value.get_mut(FIELD)?;
    let path = folder.join(field.as_str()?);
    let read = fs::read_to_string(&path)
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))
        .and_then(|text| yaml::parse(&text).map_err(|problem| format!("{}: {problem}", path.display())));
    match read {
        Ok(document) => {
            field.clone_from(&document.value);
            Some(Beside { path, document })
        }
        Err(message) => {
            problems.add(FIELD, message);
            *field = Value::Null;
            None
        }
    }
}

impl Beside {
    /// A problem in this file as one of the field that names it, with the line here.
    pub fn locate(&self, problem: Problem) -> Problem {
        match problem.path.strip_prefix(FIELD).filter(|rest| rest.is_empty() || rest.starts_with('.')) {
            Some(rest) => {
                let inside = Problem::new(rest.trim_start_matches('.'), problem.message);
                Problem::new(FIELD, format!("{}: {}", self.path.display(), self.document.locate(inside)))
            }
            None => problem,
        }
    }
}
