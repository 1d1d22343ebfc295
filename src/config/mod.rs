//! Everything a person configures: read, checked, and turned into what the program needs.
//!
//! The only reader of files and of the environment.

pub mod yaml;

use std::fmt;

/// One thing wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted: `configs.hero.targets.0.provider`. Empty for the whole.
    pub path: String,
    /// What is wrong, with the value and what is allowed.
    pub message: String,
    /// Line and column, where a file was read.
    pub place: Option<(usize, usize)>,
}

impl Problem {
    /// A problem that has no place yet.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), place: None }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.place {
            write!(f, "line {line}, column {column}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}
