//! What the checks found.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::check::Check;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Seen, and as promised.
    Passed,
    /// Seen, and not as promised.
    Failed,
    /// It could not be seen.
    NotObserved,
    /// The worker promises nothing of the kind.
    NotApplicable,
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Providers that were asked.
    pub providers: Vec<String>,
    /// Calls that were made.
    pub calls: usize,
    /// Models whose edges were not tried.
    pub models_left: usize,
    seen: BTreeMap<Check, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    passed: bool,
    findings: Vec<String>,
    unobserved: Vec<String>,
}

impl Outcome {
    /// As reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotObserved => "not_observed",
            Self::NotApplicable => "not_applicable",
        }
    }
}

impl Report {
    /// It was as promised, this time.
    pub fn pass(&mut self, check: Check) {
        self.seen.entry(check).or_default().passed = true;
    }

    /// It was not as promised.
    pub fn fail(&mut self, check: Check, finding: impl Into<String>) {
        let (finding, findings) = (finding.into(), &mut self.seen.entry(check).or_default().findings);
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }

    /// Nothing or a finding.
    pub fn hold(&mut self, check: Check, result: Result<(), String>) {
        match result {
            Ok(()) => self.pass(check),
            Err(finding) => self.fail(check, finding),
        }
    }

    /// It could not be seen.
    pub fn unobserved(&mut self, check: Check, reason: &str) {
        self.seen.entry(check).or_default().unobserved.push(reason.to_owned());
    }

    /// How a check went over all.
    pub fn outcome(&self, check: Check) -> Outcome {
        match self.seen.get(&check) {
            None => Outcome::NotApplicable,
            Some(seen) if !seen.findings.is_empty() => Outcome::Failed,
            Some(seen) if seen.passed => Outcome::Passed,
            Some(_) => Outcome::NotObserved,
        }
    }

    /// What was seen instead of what is promised.
    pub fn findings(&self, check: Check) -> &[String] {
        self.seen.get(&check).map_or(&[], |seen| &seen.findings)
    }

    /// Why it could not be seen.
    pub fn reasons(&self, check: Check) -> &[String] {
        self.seen.get(&check).map_or(&[], |seen| &seen.unobserved)
    }

    /// How many checks went so.
    pub fn count(&self, outcome: Outcome) -> usize {
        Check::ALL.into_iter().filter(|check| self.outcome(*check) == outcome).count()
    }

    /// Nothing was found; strictly, everything was seen as well.
    pub fn conforms(&self, strict: bool) -> bool {
        self.count(Outcome::Failed) == 0 && (!strict || self.count(Outcome::NotObserved) == 0)
    }

    /// For programs.
    pub fn json(&self, worker: &str, strict: bool) -> Value {
        let check = |check: Check| {
            json!({
                "id": check.id(),
                "promise": check.promise(),
                "outcome": self.outcome(check).name(),
                "findings": self.findings(check),
                "not_observed": self.reasons(check),
            })
        };
        json!({
            "worker": worker,
            "providers": self.providers,
            "calls": self.calls,
            "models_left": self.models_left,
            "conforms": self.conforms(strict),
            "checks": Check::ALL.map(check),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_finding_outweighs_everything_else() {
        let mut report = Report::default();
        report.pass(Check::Size);
        report.fail(Check::Size, "64x64 became 72x64");
        report.unobserved(Check::Size, "the other provider");
        assert_eq!(report.outcome(Check::Size), Outcome::Failed);
        assert!(!report.conforms(false));
    }

    #[test]
    fn what_was_not_seen_counts_only_under_strict() {
        let mut report = Report::default();
        report.unobserved(Check::Refusal, "no model p-refuse");
        assert_eq!(report.outcome(Check::Refusal), Outcome::NotObserved);
        assert!(report.conforms(false) && !report.conforms(true));
        assert_eq!(report.outcome(Check::Inputs), Outcome::NotApplicable);
    }

    #[test]
    fn ids_are_unique() {
        let ids: std::collections::BTreeSet<_> = Check::ALL.map(Check::id).into_iter().collect();
        assert_eq!(ids.len(), Check::ALL.len());
    }
}
