//! A config tried on requests of the log: which ones, and what comes of it in sum.

use std::collections::BTreeMap;

use tonic::Request;

use super::{Admin, check};
use crate::{
    config::callers::Scope,
    error::{Error, ErrorKind, Result},
    pb::{self, DryRunReason, DryRunRequest, DryRunShare, DryRunSummary, dry_run_request::Verdict},
    router::dry_run::DryRun,
};

const LIMIT: u32 = 100;
const HIGHEST_LIMIT: u32 = 1000;

impl Admin {
    pub(super) async fn dry_run_config(
        &self,
        request: Request<pb::DryRunConfigRequest>,
    ) -> Result<pb::DryRunConfigResponse> {
        let caller = self.reader(&request, Scope::Configs)?;
        self.reader(&request, Scope::Logs)?;
        let asked = request.into_inner();
        let limit = if asked.limit == 0 { LIMIT } else { asked.limit };
        if limit > HIGHEST_LIMIT {
            let message = format!("limit: {limit} is not allowed; allowed: 1 to {HIGHEST_LIMIT}");
            return Err(Error::invalid("limit", message));
        }
        let config = self.config_to_try(&caller.tenant, &asked).await?;
        let filter = asked.filter.unwrap_or_default();
        let (records, is_all) = self.store()?.newest_requests(&caller.tenant, &filter, limit).await?;
        let mut requests = Vec::with_capacity(records.len());
        for record in &records {
            requests.push(config.of(record).await);
        }
        let mut summary = summary(&requests);
        summary.notes = config.notes();
        if !is_all {
            summary.notes.push(format!("more requests match; these are the newest {limit}"));
        }
        Ok(pb::DryRunConfigResponse { summary: Some(summary), requests })
    }

    async fn config_to_try(&self, tenant: &str, asked: &pb::DryRunConfigRequest) -> Result<DryRun> {
        let pb::DryRunConfigRequest { config_json, slug, version, .. } = asked;
        let (name, text) = match (config_json.as_str(), slug.as_str()) {
            ("", "") => return Err(Error::invalid("config", "config: Required, or the slug of one")),
            ("", slug) => match self.store()?.get_config(tenant, slug, *version).await {
                Ok(saved) => (saved.slug, saved.config_json),
                // One of the file has no versions.
                Err(error) if error.kind == ErrorKind::NotFound && *version == 0 => {
                    return self.router.dry_run_of_file(tenant, slug).ok_or(error);
                }
                Err(error) => return Err(error),
            },
            (text, "") if *version == 0 => ("inline".to_owned(), text.to_owned()),
            (_, "") => return Err(Error::invalid("version", "version: only with the slug of a config")),
            _ => return Err(Error::invalid("slug", "slug: not together with config; allowed: one of them")),
        };
        let value = serde_json::from_str(&text)
            .map_err(|error| Error::invalid("config", format!("config: not JSON: {error}")))?;
        self.router.dry_run(tenant, &name, &value).map_err(|problems| check::refused("config", problems))
    }
}

fn summary(requests: &[DryRunRequest]) -> DryRunSummary {
    let mut summary = DryRunSummary { requests: requests.len() as u64, ..Default::default() };
    let mut shares = Shares::new();
    let (mut refusals, mut open_questions) = (BTreeMap::new(), BTreeMap::new());
    for request in requests {
        summary.changed += u64::from(request.changed);
        let then = request.recorded.clone().unwrap_or_default();
        if !then.first_provider.is_empty() {
            share(&mut shares, &then.first_provider, &then.first_model).recorded_requests += 1;
        }
        match request.verdict() {
            Verdict::Undecided | Verdict::Unspecified => {
                summary.undecided += 1;
                count(&mut open_questions, request);
                // Nothing to compare what it cost with.
                continue;
            }
            Verdict::Refused => {
                summary.refused += 1;
                count(&mut refusals, request);
            }
            Verdict::Routed => {
                summary.routed += 1;
                let first = request.first.clone().unwrap_or_default();
                let is_change = |warning: &pb::Warning| warning.action() != pb::warning::Action::Notice;
                summary.adjusted += u64::from(first.warnings.iter().any(is_change));
                let share = share(&mut shares, &first.provider, &first.model);
                share.requests += 1;
                match first.price_usd {
                    Some(price) => {
                        share.expected_cost_usd += price;
                        summary.expected_cost_usd += price;
                    }
                    None => summary.expected_cost_unknown += 1,
                }
            }
        }
        summary.recorded_cost_usd += then.cost_usd.unwrap_or_default();
        summary.recorded_cost_unknown += u64::from(then.cost_unknown);
    }
    summary.shares = shares.into_values().collect();
    summary.shares.sort_by_key(|share| std::cmp::Reverse((share.requests, share.recorded_requests)));
    summary.refusals = most_first(refusals);
    summary.open_questions = most_first(open_questions);
    summary
}

type Shares = BTreeMap<(String, String), DryRunShare>;

fn share<'a>(shares: &'a mut Shares, provider: &str, model: &str) -> &'a mut DryRunShare {
    let (provider, model) = (provider.to_owned(), model.to_owned());
    let new = DryRunShare { provider: provider.clone(), model: model.clone(), ..Default::default() };
    shares.entry((provider, model)).or_insert(new)
}

fn count(reasons: &mut BTreeMap<String, DryRunReason>, request: &DryRunRequest) {
    let (reason, message) = (request.reason.clone(), request.message.clone());
    let new = DryRunReason { reason: reason.clone(), message, requests: 0 };
    reasons.entry(reason).or_insert(new).requests += 1;
}

fn most_first(reasons: BTreeMap<String, DryRunReason>) -> Vec<DryRunReason> {
    let mut reasons: Vec<_> = reasons.into_values().collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.requests));
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(
        verdict: Verdict,
        model: &str,
        price_usd: Option<f64>,
        was: &str,
        cost_usd: f64,
    ) -> DryRunRequest {
        let dropped = pb::Warning { action: pb::warning::Action::Dropped.into(), ..Default::default() };
        let first = pb::PlannedTarget {
            provider: "p".into(),
            model: model.into(),
            price_usd,
            warnings: if model == "b" { vec![dropped] } else { Vec::new() },
            ..Default::default()
        };
        DryRunRequest {
            verdict: verdict.into(),
            reason: if verdict == Verdict::Routed { String::new() } else { model.into() },
            first: (verdict == Verdict::Routed).then_some(first),
            recorded: Some(pb::DryRunRecorded {
                first_provider: "p".into(),
                first_model: was.into(),
                cost_usd: Some(cost_usd),
                ..Default::default()
            }),
            changed: model != was,
            ..Default::default()
        }
    }

    #[test]
    fn requests_are_summed_by_where_they_go_and_why_they_do_not() {
        let requests = [
            seen(Verdict::Routed, "a", Some(0.5), "b", 0.25),
            seen(Verdict::Routed, "a", None, "a", 0.25),
            seen(Verdict::Routed, "b", Some(0.125), "b", 0.25),
            seen(Verdict::Refused, "unsupported size", None, "b", 0.25),
            seen(Verdict::Undecided, "params.prompt", None, "b", 64.0),
        ];
        let summary = summary(&requests);
        assert_eq!((summary.requests, summary.routed, summary.refused, summary.undecided), (5, 3, 1, 1));
        assert_eq!((summary.changed, summary.adjusted), (3, 1));
        let shares: Vec<_> = summary
            .shares
            .iter()
            .map(|share| {
                (share.model.as_str(), share.requests, share.recorded_requests, share.expected_cost_usd)
            })
            .collect();
        assert_eq!(shares, [("a", 2, 1, 0.5), ("b", 1, 4, 0.125)]);
        // What is undecided counts on neither side.
        assert_eq!((summary.expected_cost_usd, summary.recorded_cost_usd), (0.625, 1.0));
        assert_eq!((summary.expected_cost_unknown, summary.recorded_cost_unknown), (1, 0));
        assert_eq!(summary.refusals[0].reason, "unsupported size");
        assert_eq!(
            (summary.open_questions[0].reason.as_str(), summary.open_questions[0].requests),
            ("params.prompt", 1)
        );
    }
}
