//! Everything a person configures: read, checked, and turned into what the program needs.
//!
//! The only reader of configuration files and of the environment. `yaml` parses, `secrets` fills in what the
//! file only refers to, `file` and `spec` read with all problems at once, `plan` checks routing configs.

mod alone;
mod build;
pub mod callers;
pub mod condition;
pub mod dashboard;
pub mod file;
pub mod identity;
pub mod images;
pub mod issuers;
pub mod memory;
pub mod otlp;
pub mod plan;
pub mod policies;
mod prices;
pub mod providers;
pub mod quota;
pub mod read;
pub mod redis;
pub mod saved;
mod secrets;
pub mod spec;
pub mod strategy;
pub mod tls;
pub mod yaml;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

pub use file::Settings;
use providers::Providers;
use read::Problems;
use serde_json::{Map, Value};

/// What `imagegate serve` does without a file.
pub const EMBEDDED: &str = include_str!("embedded.yaml");

/// Variables that override the file, and the field each sets.
const OVERRIDES: &[(&str, &[&str])] = &[
    ("IMAGEGATE_LISTEN_HTTP", &["listen", "http"]),
    ("IMAGEGATE_LISTEN_GRPC", &["listen", "grpc"]),
    ("IMAGEGATE_LISTEN_ADMIN", &["listen", "admin"]),
    ("IMAGEGATE_DATA_DIR", &["data_dir"]),
    ("IMAGEGATE_PUBLIC_URL", &["public_url"]),
    ("IMAGEGATE_TLS", &["tls"]),
];

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

/// Where settings come from, for reading them again.
#[derive(Clone, Debug)]
pub enum Origin {
    /// [`EMBEDDED`].
    Embedded,
    /// A file.
    File(PathBuf),
}

/// A configuration that cannot be used, with everything that is wrong.
#[derive(Debug)]
pub struct Rejected {
    /// The file's name.
    pub name: String,
    /// In the file's order.
    pub problems: Vec<Problem>,
}

impl Origin {
    /// Reads and checks the whole configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(&self, built_in: &Providers) -> Result<Settings, Rejected> {
        let name = self.to_string();
        let text = match self {
            Self::Embedded => EMBEDDED.to_owned(),
            Self::File(path) => fs::read_to_string(path).map_err(|error| Rejected {
                name: name.clone(),
                problems: vec![Problem::new("", format!("cannot be read: {error}"))],
            })?,
        };
        let folder = self.path().and_then(Path::parent).unwrap_or(Path::new(""));
        read_in(folder, &text, built_in, &environment).map_err(|problems| Rejected { name, problems })
    }

    /// The file to watch for changes.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Embedded => None,
            Self::File(path) => Some(path),
        }
    }
}

/// Checks a configuration's text against an environment.
///
/// # Errors
/// Everything that is wrong with it, in the text's order.
pub fn read(
    text: &str,
    built_in: &Providers,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, Vec<Problem>> {
    read_in(Path::new(""), text, built_in, environment)
}

/// As [`read`], of a file in a folder, where paths in it begin.
fn read_in(
    folder: &Path,
    text: &str,
    built_in: &Providers,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, Vec<Problem>> {
    let mut document = yaml::parse(text).map_err(|problem| vec![problem])?;
    let problems = Problems::default();
    for (variable, path) in OVERRIDES {
        if let Some(value) = environment(variable).filter(|value| !value.is_empty()) {
            put(&mut document.value, path, value);
        }
    }
    secrets::fill_in(&mut document.value, "", environment, &problems);
    otlp::fill_in(&mut document.value, environment, &problems);
    let beside = prices::take_in(&mut document.value, folder, &problems);
    let settings = Settings::read(&document.value, built_in, &problems);
    let locate = |problem| match &beside {
        Some(beside) => document.locate(beside.locate(problem)),
        None => document.locate(problem),
    };
    let mut found: Vec<_> = problems.into_vec().into_iter().map(locate).collect();
    match settings {
        Some(settings) if found.is_empty() => {
            Ok(Settings { prices_file: beside.map(|beside| beside.path), ..settings })
        }
        _ => {
            found.sort_by_key(|problem| problem.place);
            found.dedup();
            Err(found)
        }
    }
}

/// A variable of the process.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn put(value: &mut Value, path: &[&str], text: String) {
    let Value::Object(fields) = value else { return };
    match path {
        [] => {}
        [name] => _ = fields.insert((*name).to_owned(), Value::String(text)),
        [name, rest @ ..] => {
            put(fields.entry(*name).or_insert_with(|| Value::Object(Map::new())), rest, text);
        }
    }
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

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded defaults"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "{}: {count} problem{}", self.name, if count == 1 { "" } else { "s" })?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Rejected {}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in() -> Providers {
        let record = |name: &str| crate::pb::Provider { name: name.into(), ..Default::default() };
        Providers::default().with(&record("openai")).with(&record("stability-ai")).with_own("sandbox")
    }

    fn check(text: &str) -> Result<Settings, Vec<String>> {
        let environment = |name: &str| (name == "OPENAI_API_KEY").then(|| "sk-from-env".to_owned());
        read(text, &built_in(), &environment)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_embedded_configuration_is_valid() {
        let settings = check(EMBEDDED).unwrap();
        assert!(settings.configs.contains_key("demo"));
        assert!(settings.listen.http.unwrap().ip().is_loopback());
    }

    #[test]
    fn all_problems_come_at_once_with_their_lines() {
        let problems = check(
            "listen: {htp: 127.0.0.1:1}\nvirtual_keys:\n  a: {provider: openai, api_key: {env: MISSING}}\n  \
             b: {provider: opnai, api_key: x}\nconfigs:\n  c: {strategy: {mode: fallback}, targets: []}\n",
        )
        .unwrap_err();
        assert_eq!(
            problems,
            [
                "line 1, column 10: listen.htp: unknown field; did you mean \"http\"?",
                "line 3, column 25: virtual_keys.a.api_key: environment variable MISSING is not set",
                "line 4, column 7: virtual_keys.b.provider: unknown provider \"opnai\"; did you mean \"openai\"?",
                "line 6, column 35: configs.c.targets: at least one target is required",
            ]
        );
    }

    #[test]
    fn secrets_are_filled_in_and_do_not_show() {
        let settings = check(
            "virtual_keys:\n  a: {provider: openai, api_key: {env: OPENAI_API_KEY}}\n  \
             b: {provider: openai, api_key: \"${OPENAI_API_KEY}\"}\n",
        )
        .unwrap();
        assert_eq!(settings.virtual_keys.len(), 2);
        assert!(!format!("{settings:?}").contains("sk-from-env"));
    }

    #[test]
    fn a_setting_that_the_provider_does_not_have_is_no_setting() {
        let openai = crate::gateway::built_in();
        let check = |more: &str| {
            let text = format!("virtual_keys: {{k: {{api_key: k, {more}}}}}");
            read(&text, &openai, &|_| None).map(drop).map_err(|problems| problems[0].message.clone())
        };
        assert_eq!(check("provider: openai, openai_project: p, openai_beta: b"), Ok(()));
        let misspelt = "openai has no such setting; did you mean \"openai_project\"?";
        assert_eq!(check("provider: openai, openai_projct: p"), Err(misspelt.to_owned()));
        let others = check("provider: openai, azure_api_version: v1").unwrap_err();
        assert!(others.starts_with("openai has no such setting; allowed: openai_organization"), "{others}");
        assert_eq!(check("provider: fal, aws_region: r"), Err("fal has no such setting".to_owned()));
        // What a worker of one's own takes, it knows itself.
        let own = "virtual_keys: {k: {provider: mine, aws_regoin: r}}\nworkers: {mine: 'http://a:1'}";
        assert!(read(own, &openai, &|_| None).is_ok());
    }

    #[test]
    fn no_virtual_key_is_called_like_cloudflares_models() {
        let key = "{provider: openai, api_key: {env: OPENAI_API_KEY}}";
        let problems = check(&format!("virtual_keys:\n  cf: {key}\n  cfo: {key}\n")).unwrap_err();
        let expected = "line 2, column 3: virtual_keys.cf: models called \"@cf/...\" are Cloudflare's own: choose another id";
        assert_eq!(problems, [expected]);
    }

    #[test]
    fn an_embeddings_endpoint_is_checked_and_its_key_does_not_show() {
        let settings = check(
            "embeddings: {url: 'http://127.0.0.1:1/v1/embeddings', model: m, api_key: {env: OPENAI_API_KEY}}\n\
             limits: {cache_bytes: 0}\n",
        )
        .unwrap();
        let embeddings = settings.embeddings.as_ref().unwrap();
        assert_eq!(
            (embeddings.url.url.as_str(), embeddings.timeout.as_secs()),
            ("http://127.0.0.1:1/v1/embeddings", 2)
        );
        assert_eq!(settings.limits.cache_bytes, 0);
        assert!(!format!("{settings:?}").contains("sk-from-env"));
        let problems = check("embeddings: {url: nowhere, api_key: x, timeout: 5}\n").unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn what_a_model_can_do_is_checked_entry_by_entry() {
        let key = |models: &str| format!("virtual_keys: {{k: {{provider: sandbox, models: {models}}}}}\n");
        let good =
            "[{ids: [a, b], operations: [generate], sizes: {list: [512x512]}, retired_on: 2026-01-31}]";
        assert_eq!(check(&key(good)).unwrap().virtual_keys["k"].models.len(), 2);
        let bad = "[{ids: [], operations: [generate]}, {ids: [a], operations: [paint]}, \
                   {ids: [a], operations: [generate], sizes: {list: [big]}}, \
                   {ids: [a], operations: [generate], formats: [bmp]}, {ids: [a], operations: [edit], max_m: 1}]";
        let problems = check(&key(bad)).unwrap_err();
        assert_eq!(problems.len(), 5);
        for (i, (problem, said)) in problems.iter().zip(["ids", "paint", "big", "bmp", "max_m"]).enumerate() {
            assert!(problem.contains(&format!("virtual_keys.k.models.{i}")), "{problem}");
            assert!(problem.contains(said), "{problem}");
        }
    }

    #[test]
    fn a_worker_of_ones_own_is_a_provider() {
        let settings =
            check("workers: {gradient: http://127.0.0.1:1}\nconfigs: {g: {provider: gradient}}\n").unwrap();
        assert_eq!(settings.workers["gradient"][0].to_string(), "http://127.0.0.1:1");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let environment = |name: &str| (name == "IMAGEGATE_LISTEN_HTTP").then(|| "127.0.0.1:9".to_owned());
        let settings = read("listen: {http: 127.0.0.1:1}", &built_in(), &environment).unwrap();
        assert_eq!(settings.listen.http.unwrap().port(), 9);
    }
}
