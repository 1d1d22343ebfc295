//! `imagegate conform`: the conformance kit's report on a worker, for a person or a program.

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
    process::ExitCode,
};

use anyhow::{Result, anyhow};

use super::{
    connect::{self, TlsArgs},
    failure,
};
use crate::{
    config,
    conform::{
        self,
        check::Check,
        report::{Outcome, Report},
    },
    pb::credential::Credential,
    pool::Service,
};

/// Nothing could be checked.
const UNCHECKED: u8 = 2;

/// Findings of one check that are printed.
const SHOWN: usize = 3;

/// Find out whether a worker keeps its promises: the conformance kit
#[derive(Debug, clap::Args)]
pub struct Conform {
    /// The worker's address: http://127.0.0.1:50061
    uri: String,

    /// Only this provider of the worker
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,

    /// Environment variable with the API key, for all providers or for one
    #[arg(long, value_name = "[PROVIDER=]VAR")]
    api_key_env: Vec<String>,

    /// Name of a credential that the worker holds itself, for all providers or for one
    #[arg(long, value_name = "[PROVIDER=]NAME")]
    held_by_worker: Vec<String>,

    /// Models of each provider whose limits are tried
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_models: usize,

    /// What could not be observed counts as a failure
    #[arg(long)]
    strict: bool,

    /// For programs
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    tls: TlsArgs,
}

impl Conform {
    /// Checks, prints what was found, and says by the exit code whether the worker conforms.
    pub async fn run(self) -> Result<ExitCode> {
        let report = match self.report().await {
            Ok(report) => report,
            Err(error) => {
                failure::tell(&error, self.json);
                return Ok(ExitCode::from(UNCHECKED));
            }
        };
        let mut out = stdout();
        if self.json {
            let report = report.json(&self.uri, self.strict);
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            print(&mut out, &report)?;
            writeln!(out, "{} {}", self.uri, verdict(&report, self.strict))?;
        }
        Ok(if report.conforms(self.strict) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn report(&self) -> Result<Report> {
        let settings = conform::Settings {
            provider: self.provider.clone(),
            max_models: self.max_models,
            credentials: self.credentials()?,
        };
        let (uris, tls) = (std::slice::from_ref(&self.uri), self.tls.read()?);
        let pool = connect::pool("URI", Service::Worker(self.uri.clone()), uris, tls.as_ref())?;
        conform::run(pool, &self.uri, &settings).await.map_err(anyhow::Error::msg)
    }

    fn credentials(&self) -> Result<BTreeMap<String, Credential>> {
        let split = |text: &str| {
            let (provider, rest) = text.split_once('=').unwrap_or(("", text));
            (provider.to_owned(), rest.to_owned())
        };
        let mut credentials = BTreeMap::new();
        for (provider, variable) in self.api_key_env.iter().map(|text| split(text)) {
            let key = config::environment(&variable).filter(|key| !key.is_empty());
            let key = key.ok_or_else(|| anyhow!("--api-key-env: {variable} is not set or empty"))?;
            credentials.insert(provider, Credential::ApiKey(key));
        }
        for (provider, name) in self.held_by_worker.iter().map(|text| split(text)) {
            credentials.insert(provider, Credential::HeldByWorker(name));
        }
        Ok(credentials)
    }
}

fn print(out: &mut impl Write, report: &Report) -> Result<()> {
    for check in Check::ALL {
        let mark = match report.outcome(check) {
            Outcome::Passed => "pass",
            Outcome::Failed => "FAIL",
            Outcome::NotObserved => "?",
            Outcome::NotApplicable => "-",
        };
        writeln!(out, "{mark:<5} {:<17} {}", check.id(), check.promise())?;
        let findings = report.findings(check);
        for finding in findings.iter().take(SHOWN) {
            writeln!(out, "      found: {finding}")?;
        }
        if findings.len() > SHOWN {
            writeln!(out, "      and {} more like this", findings.len() - SHOWN)?;
        }
        for reason in report.reasons(check).iter().take(SHOWN) {
            writeln!(out, "      not observed: {reason}")?;
        }
    }
    let providers = report.providers.join(", ");
    writeln!(out, "\n{} calls to {providers}", report.calls)?;
    if report.models_left > 0 {
        writeln!(out, "{} more models were not tried; --max-models raises the limit", report.models_left)?;
    }
    Ok(())
}

fn verdict(report: &Report, strict: bool) -> String {
    let verdict = if report.conforms(strict) { "conforms" } else { "does not conform" };
    let count = |outcome| report.count(outcome);
    format!(
        "{verdict}: {} passed, {} failed, {} not observed, {} not applicable",
        count(Outcome::Passed),
        count(Outcome::Failed),
        count(Outcome::NotObserved),
        count(Outcome::NotApplicable)
    )
}
