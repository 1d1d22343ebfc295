//! Whether a model does what its entry declares.

use tokio::time::Instant;
use tonic::Status;

use super::{
    answer::Answer,
    asking::{Subject, Usual},
    check::Check,
    edges::{self, Case},
    errors,
    report::Report,
    verdict,
};
use crate::pb::ModelCapability;

/// Tries a model's edges, and returns the ordinary call if that works.
pub async fn check(subject: &Subject, model: &ModelCapability, report: &mut Report) -> Option<Usual> {
    let Some(request) = edges::usual(model) else {
        let reason = format!("{} has only operations that the kit does not ask for", model.model);
        report.unobserved(Check::Call, &reason);
        return None;
    };
    let case = Case { check: Check::Call, label: "an ordinary call".to_owned(), request: request.clone() };
    let asked = Instant::now();
    let answer = subject.ask(request.clone()).await;
    let took = asked.elapsed();
    judge(&case, &answer, subject, model, report);
    // Every edge would fail as well, and none for its own reason.
    answer.ok()?;
    for case in edges::cases(model) {
        let answer = subject.ask(case.request.clone()).await;
        judge(&case, &answer, subject, model, report);
    }
    Some(Usual { request, capability: model.clone(), took })
}

fn judge(
    case: &Case,
    answer: &Result<Answer, Status>,
    subject: &Subject,
    model: &ModelCapability,
    report: &mut Report,
) {
    let label = format!("{} {}, {}", subject.name(), model.model, case.label);
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => {
            errors::details(status, &label, report);
            return report.fail(case.check, format!("{label}: {}", subject.told(status)));
        }
    };
    report.pass(case.check);
    Check::OF_ANSWERS.into_iter().for_each(|check| report.pass(check));
    for (check, what) in verdict::faults(answer, &case.request, model) {
        report.fail(check, format!("{label}: {what}"));
    }
}
