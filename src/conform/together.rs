//! Calls side by side: no answer may end up in another call.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::{
    asking::{Subject, Usual},
    check::Check,
    edges,
    report::{Outcome, Report},
    verdict,
};
use crate::{params, pb};

/// Calls at once.
const CALLS: u32 = 16;

/// Makes calls that differ in all that their answers can show: size, count and seed.
pub async fn check(subject: &Subject, usual: &Usual, report: &mut Report) {
    let requests = requests(usual);
    let answers = join_all(requests.iter().map(|request| subject.ask(request.clone()))).await;
    let mut findings = Vec::new();
    for (request, answer) in requests.iter().zip(answers) {
        match answer {
            Err(status) => findings.push(subject.told(&status)),
            Ok(answer) => {
                let faults = verdict::faults(&answer, request, &usual.capability);
                // What a call alone gets wrong too is no news.
                let news = faults.into_iter().filter(|(check, _)| report.outcome(*check) != Outcome::Failed);
                findings.extend(news.map(|(_, what)| what));
            }
        }
    }
    if findings.is_empty() && !can_differ(&requests) {
        let reason = format!("answers of {} show nothing to tell them apart by", usual.request.model);
        return report.unobserved(Check::Concurrency, &reason);
    }
    let label = |what: String| format!("{} {}: {what}", subject.name(), usual.request.model);
    match findings.into_iter().next() {
        None => report.pass(Check::Concurrency),
        Some(first) => report.fail(Check::Concurrency, label(first)),
    }
}

fn requests(usual: &Usual) -> Vec<pb::ImageRequest> {
    let model = &usual.capability;
    let sizes = edges::different_sizes(model.size.as_ref(), CALLS);
    let has_seed = model.parameters.iter().any(|rule| params::canonical(&rule.name) == "seed");
    let request = |i: u32| {
        let mut request = usual.request.clone();
        if !request.prompt.is_empty() {
            request.prompt = format!("{}, number {i}", request.prompt);
        }
        // Inputs have the size of the request they were made for.
        if request.inputs.is_empty() && !sizes.is_empty() {
            request.size = Some(sizes[i as usize % sizes.len()]);
        }
        request.seed = has_seed.then(|| u64::from(i) + 1);
        request.n = Some(1 + i % model.max_n.clamp(1, 2));
        request
    };
    (0..CALLS).map(request).collect()
}

fn can_differ(requests: &[pb::ImageRequest]) -> bool {
    let shown = |request: &pb::ImageRequest| (request.size.map(|size| size.text()), request.n);
    requests.iter().map(shown).collect::<BTreeSet<_>>().len() > 1
}
