//! `imagegate configs`: saved routing configs and their versions.

use std::{
    fs,
    io::{Read as _, Write as _, stdin, stdout},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Subcommand;
use serde_json::Value;
use similar::TextDiff;

use super::{
    connect::{Memory, RouterArgs},
    dry_run::DryRunArgs,
    json,
    table::{Heading, Table},
    times::date,
};
use crate::{
    admin::remote::Remote,
    config::{
        Problem, Rejected,
        file::is_config_id,
        yaml::{self, Document},
    },
    error::Error,
    pb::{self, SavedConfig, admin_service_server::AdminService as _},
};

/// Manage saved routing configs
#[derive(Debug, clap::Args)]
pub struct Configs {
    #[command(subcommand)]
    command: Command,

    /// For programs
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    router: RouterArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List saved configs
    #[command(after_help = "Example:\n  imagegate configs list")]
    List,
    /// Print a config as JSON
    #[command(after_help = "Example:\n  imagegate configs show pc-hero-1a2b3c > hero.json")]
    Show {
        /// As x-portkey-config names it
        slug: String,
        /// An older version
        #[arg(value_name = "VERSION")]
        number: Option<u32>,
    },
    /// Save a new config, or with --slug another version of one
    #[command(
        after_help = "Example:\n  imagegate configs save hero hero.yaml\n  imagegate configs save hero hero.yaml --slug pc-hero-1a2b3c"
    )]
    Save {
        /// What people call it
        name: String,
        /// YAML or JSON; - is standard input
        file: PathBuf,
        /// The config that is changed
        #[arg(long, value_name = "SLUG")]
        slug: Option<String>,
        /// For requests of callers without a default of their own
        #[arg(long)]
        default: bool,
    },
    /// List the versions of a config, the newest first
    #[command(after_help = "Example:\n  imagegate configs versions pc-hero-1a2b3c")]
    Versions {
        /// As x-portkey-config names it
        slug: String,
    },
    /// Show what changed from one version to another
    #[command(after_help = "Example:\n  imagegate configs diff pc-hero-1a2b3c 1 2")]
    Diff {
        /// As x-portkey-config names it
        slug: String,
        /// The one before
        #[arg(value_name = "A")]
        before: u32,
        /// The one after
        #[arg(value_name = "B")]
        after: u32,
    },
    /// Save the content of an older version anew
    #[command(after_help = "Example:\n  imagegate configs rollback pc-hero-1a2b3c 1")]
    Rollback {
        /// As x-portkey-config names it
        slug: String,
        /// The version to go back to
        #[arg(value_name = "VERSION")]
        number: u32,
    },
    /// Show what a config would do with requests of the log, and what that would cost. Calls no provider
    #[command(
        after_help = "Example:\n  imagegate configs dry-run hero.yaml --since 7d\n  imagegate configs dry-run pc-hero-1a2b3c@2 --provider openai -n 1000"
    )]
    DryRun {
        /// A file as YAML or JSON (- is standard input), or the slug of a config, as SLUG@2 in an older version
        #[arg(value_name = "FILE|SLUG")]
        what: String,
        #[command(flatten)]
        args: Box<DryRunArgs>,
    },
    /// Delete a config with all its versions
    #[command(after_help = "Example:\n  imagegate configs rm pc-hero-1a2b3c")]
    Rm {
        /// As x-portkey-config names it
        slug: String,
    },
}

impl Configs {
    /// Does what the subcommand says and prints what came of it.
    pub async fn run(self) -> Result<()> {
        let memory = self.router.memory()?;
        match self.command {
            Command::List => list(&memory, self.json).await,
            Command::Show { slug, number } => {
                let config = get(&memory, &slug, number.unwrap_or(0)).await?;
                if self.json {
                    return json::print(&json::config(&config));
                }
                writeln!(stdout(), "{}", pretty(&config.config_json))?;
                Ok(())
            }
            Command::Save { name, file, slug, default } => {
                let document = read(&file)?;
                let saved = save(&memory, name, &document, slug, default).await?;
                tell(&saved.map_err(|error| refused(&file, &document, error))?, self.json)
            }
            Command::Versions { slug } => versions(&memory, slug, self.json).await,
            Command::Diff { slug, before, after } => {
                let names = [before, after].map(|version| format!("{slug} version {version}"));
                let before = get(&memory, &slug, before).await?;
                let after = get(&memory, &slug, after).await?;
                if self.json {
                    return json::print_all(&[before, after], json::config);
                }
                write!(stdout(), "{}", diff(&names, &before.config_json, &after.config_json))?;
                Ok(())
            }
            Command::Rollback { slug, number } => {
                let request =
                    pb::UpdateConfigRequest { slug, rollback_to: Some(number), ..Default::default() };
                let ask = async |admin: &Remote, request| admin.update_config(request).await;
                tell(&memory.ask(request, ask).await?.config.unwrap_or_default(), self.json)
            }
            Command::DryRun { what, args } => dry_run(&memory, &what, &args, self.json).await,
            Command::Rm { slug } => {
                let ask = async |admin: &Remote, request| admin.delete_config(request).await;
                memory.ask(pb::DeleteConfigRequest { slug: slug.clone() }, ask).await?;
                super::deleted(&slug, self.json)
            }
        }
    }
}

async fn list(memory: &Memory<'_>, as_json: bool) -> Result<()> {
    let ask = async |admin: &Remote, request| admin.list_configs(request).await;
    let configs = memory.ask(pb::ListConfigsRequest {}, ask).await?.configs;
    if as_json {
        return json::print_all(&configs, json::config);
    }
    let texts = ["DEFAULT", "CHANGED", "BY", "PROBLEM"].map(Heading::Left);
    let first = [Heading::Left("SLUG"), Heading::Left("NAME"), Heading::Right("VERSION")];
    let mut table = Table::new([first.as_slice(), &texts].concat());
    for config in &configs {
        table.row([
            config.slug.clone(),
            config.name.clone(),
            config.version.to_string(),
            if config.is_default { "yes".to_owned() } else { String::new() },
            date(config.updated_unix_ms),
            config.updated_by.clone(),
            config.problem.clone(),
        ]);
    }
    table.print(&mut stdout())?;
    Ok(())
}

async fn get(memory: &Memory<'_>, slug: &str, version: u32) -> Result<SavedConfig> {
    let request = pb::GetConfigRequest { slug: slug.to_owned(), version };
    let answer = memory.ask(request, async |admin: &Remote, request| admin.get_config(request).await).await?;
    Ok(answer.config.unwrap_or_default())
}

async fn save(
    memory: &Memory<'_>,
    name: String,
    document: &Document,
    slug: Option<String>,
    is_default: bool,
) -> Result<Result<SavedConfig, Error>> {
    let config_json = document.value.to_string();
    let saved = match slug {
        None => {
            let request = pb::CreateConfigRequest { name, config_json, is_default, slug: String::new() };
            let ask = async |admin: &Remote, request| admin.create_config(request).await;
            memory.try_ask(request, ask).await?.map(|answer| answer.config)
        }
        Some(slug) => {
            let request = pb::UpdateConfigRequest {
                slug,
                name: Some(name),
                config_json: Some(config_json),
                // Without the flag it stays what it is.
                is_default: is_default.then_some(true),
                rollback_to: None,
            };
            let ask = async |admin: &Remote, request| admin.update_config(request).await;
            memory.try_ask(request, ask).await?.map(|answer| answer.config)
        }
    };
    Ok(saved.map(Option::unwrap_or_default))
}

async fn versions(memory: &Memory<'_>, slug: String, as_json: bool) -> Result<()> {
    let ask = async |admin: &Remote, request| admin.list_config_versions(request).await;
    let versions = memory.ask(pb::ListConfigVersionsRequest { slug }, ask).await?.versions;
    if as_json {
        return json::print_all(&versions, json::version);
    }
    let mut table = Table::new([
        Heading::Right("VERSION"),
        Heading::Left("SAVED"),
        Heading::Left("BY"),
        Heading::Right("REQUESTS"),
        Heading::Left("FIRST USED"),
        Heading::Left("LAST USED"),
        Heading::Left("VERSION ID"),
    ]);
    for version in &versions {
        table.row([
            version.version.to_string(),
            date(version.created_unix_ms),
            version.created_by.clone(),
            version.requests.to_string(),
            version.first_request_unix_ms.map(date).unwrap_or_default(),
            version.last_request_unix_ms.map(date).unwrap_or_default(),
            version.version_id.clone(),
        ]);
    }
    table.print(&mut stdout())?;
    Ok(())
}

async fn dry_run(memory: &Memory<'_>, what: &str, args: &DryRunArgs, as_json: bool) -> Result<()> {
    if let Some((slug, version)) = slug_and_version(what) {
        let request = pb::DryRunConfigRequest { slug, version, ..Default::default() };
        return Ok(args.run(memory, request, what, as_json).await??);
    }
    let file = Path::new(what);
    let document = read(file)?;
    let request = pb::DryRunConfigRequest { config_json: document.value.to_string(), ..Default::default() };
    let done = args.run(memory, request, what, as_json).await?;
    done.map_err(|error| refused(file, &document, error))
}

/// A slug, with `@` and a version if there is one. None: it is a file.
fn slug_and_version(what: &str) -> Option<(String, u32)> {
    let is_file = what == "-" || Path::new(what).exists() || what.contains(['/', '\\']);
    let (slug, version) = match what.split_once('@') {
        Some((slug, version)) => (slug, version.parse().ok().filter(|version| *version > 0)?),
        None => (what, 0),
    };
    let has_ending = [".yaml", ".yml", ".json"].iter().any(|ending| what.ends_with(ending));
    (!is_file && !has_ending && is_config_id(slug)).then(|| (slug.to_owned(), version))
}

fn tell(config: &SavedConfig, as_json: bool) -> Result<()> {
    if as_json {
        return json::print(&json::config(config));
    }
    writeln!(stdout(), "{}: version {}", config.slug, config.version)?;
    Ok(())
}

fn read(file: &Path) -> Result<Document> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        stdin().read_to_string(&mut text)?;
        text
    } else {
        fs::read_to_string(file).with_context(|| file.display().to_string())?
    };
    yaml::parse(&text).map_err(|problem| anyhow!("{}: {problem}", file.display()))
}

/// What is wrong with the file, where the router says it line by line.
fn refused(file: &Path, document: &Document, error: Error) -> anyhow::Error {
    if error.violations.is_empty() {
        return error.into();
    }
    let problems = error.violations.iter().map(|violation| {
        let problem = Problem::new(&violation.path, &violation.message);
        document.locate(problem)
    });
    Rejected { name: file.display().to_string(), problems: problems.collect() }.into()
}

/// What changed, as a unified diff of the two written out.
pub fn diff(names: &[String; 2], before: &str, after: &str) -> String {
    let [before, after] = [before, after].map(|text| pretty(text) + "\n");
    let [from, to] = names;
    TextDiff::from_lines(&before, &after).unified_diff().header(from, to).to_string()
}

/// A config with a line for each field.
pub fn pretty(text: &str) -> String {
    let value = serde_json::from_str::<Value>(text).and_then(|value| serde_json::to_string_pretty(&value));
    value.unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> [String; 2] {
        ["a".into(), "b".into()]
    }

    #[test]
    fn a_diff_shows_what_changed_and_little_else() {
        let before = r#"{"strategy":{"mode":"fallback"},"targets":[1,2,3,4,5,6,7,8,9]}"#;
        let shown = diff(&names(), before, &before.replace("fallback", "single"));
        assert!(shown.starts_with("--- a\n+++ b\n@@ "), "{shown}");
        assert!(shown.contains("\n-    \"mode\": \"fallback\"\n+    \"mode\": \"single\"\n"), "{shown}");
        assert!(!shown.contains('9'), "{shown}");
    }

    #[test]
    fn the_same_content_has_no_diff() {
        assert_eq!(diff(&names(), r#"{"a":1}"#, r#"{ "a": 1 }"#), "");
    }

    #[test]
    fn a_file_is_told_from_a_slug() {
        assert_eq!(slug_and_version("pc-hero-1a2b3c"), Some(("pc-hero-1a2b3c".into(), 0)));
        assert_eq!(slug_and_version("pc-hero@12"), Some(("pc-hero".into(), 12)));
        for file in ["-", "hero.yaml", "hero.json", "./hero", "Cargo.toml", "pc-hero@0", "pc-hero@x"] {
            assert_eq!(slug_and_version(file), None, "{file}");
        }
    }

    #[test]
    fn a_refused_config_names_the_lines() {
        let document = yaml::parse("strategy: { mode: falback }\ntargets: []\n").unwrap();
        let violation = |path: &str| pb::Violation { path: path.into(), message: "wrong".into() };
        let error =
            Error::config("the config is not valid", vec![violation("strategy.mode"), violation("targets")]);
        let shown = refused(Path::new("hero.yaml"), &document, error).to_string();
        assert!(shown.starts_with("hero.yaml: 2 problems\n  line 1, "), "{shown}");
        assert!(shown.contains("\n  line 2, column 1: targets: wrong"), "{shown}");
    }
}
