//! Requests that must fail, and how.

use prost::Message as _;
use tonic::{Code, Status};

use super::{
    answer::Answer,
    asking::{Subject, Usual, name},
    check::Check,
    edges,
    report::Report,
    trigger::Trigger,
};
use crate::{
    error::{ERROR_DETAIL, Error, ErrorKind},
    pb::{self, FinishReason, credential::Credential},
};

/// Nobody's name, model or key.
const NOBODY: &str = "imagegate-conform-unknown";

/// A provider that the worker does not serve.
pub async fn unknown_provider(subject: &Subject, report: &mut Report) {
    let mut message = subject.message(any_request(subject));
    message.provider = NOBODY.to_owned();
    let allowed = [Code::Unimplemented, Code::NotFound, Code::InvalidArgument];
    let answer = subject.send(message).await;
    refused(answer, &allowed, "unknown provider", Check::UnknownProvider, subject, report);
}

/// A model that the provider does not have, unless its record takes any.
pub async fn unknown_model(subject: &Subject, report: &mut Report) {
    if subject.record.capability(NOBODY).is_some() {
        return;
    }
    let request = pb::ImageRequest { model: NOBODY.to_owned(), ..any_request(subject) };
    let allowed = [Code::NotFound, Code::InvalidArgument];
    refused(subject.ask(request).await, &allowed, "unknown model", Check::UnknownModel, subject, report);
}

/// No key, and a wrong one.
pub async fn bad_credential(subject: &Subject, report: &mut Report) {
    let allowed = [Code::Unauthenticated, Code::PermissionDenied];
    for (label, key) in [("no credential", None), ("a wrong API key", Some(NOBODY))] {
        let mut message = subject.message(any_request(subject));
        let credential =
            key.map(|key| pb::Credential { credential: Some(Credential::ApiKey(key.to_owned())) });
        message.upstream = Some(pb::Upstream { credential, ..Default::default() });
        refused(subject.send(message).await, &allowed, label, Check::BadCredential, subject, report);
    }
}

/// A prompt that is refused, and images that are withheld.
pub async fn refusal(subject: &Subject, usual: &Usual, report: &mut Report) {
    match subject.triggering(Trigger::Refuse, usual) {
        None => report.unobserved(Check::Refusal, &Trigger::Refuse.missing(&subject.record)),
        Some(request) => {
            let answer = subject.ask(request).await;
            if let Err(status) = &answer {
                let kind = Error::from_status(status).kind;
                if status.code() == Code::FailedPrecondition && kind != ErrorKind::ContentRejected {
                    let finding = format!("{}: kind {} for a refusal", subject.name(), kind.name());
                    report.fail(Check::Refusal, finding);
                }
            }
            let label = "a refused prompt";
            refused(answer, &[Code::FailedPrecondition], label, Check::Refusal, subject, report);
        }
    }
    let Some(request) = subject.triggering(Trigger::Filter, usual) else { return };
    let answer = subject.ask(request).await;
    if !answer.as_ref().is_ok_and(is_withheld) {
        let label = "withheld images";
        refused(answer, &[Code::FailedPrecondition], label, Check::Refusal, subject, report);
    }
}

/// A rate limit.
pub async fn rate_limit(subject: &Subject, usual: &Usual, report: &mut Report) {
    let Some(request) = subject.triggering(Trigger::RateLimit, usual) else {
        return report.unobserved(Check::RateLimit, &Trigger::RateLimit.missing(&subject.record));
    };
    let answer = subject.ask(request).await;
    if let Err(status) = &answer
        && status.code() == Code::ResourceExhausted
        && Error::from_status(status).retry_after.is_none()
    {
        report.fail(Check::RateLimit, format!("{}: neither RetryInfo nor retry_after_ms", subject.name()));
    }
    refused(answer, &[Code::ResourceExhausted], "a rate limit", Check::RateLimit, subject, report);
}

/// Whether the details of a failure say the same as its code.
pub fn details(status: &Status, label: &str, report: &mut Report) {
    if status.details().is_empty() {
        return;
    }
    report.hold(Check::ErrorDetails, read_details(status).map_err(|what| format!("{label}: {what}")));
}

fn read_details(status: &Status) -> Result<(), String> {
    let google = tonic_types::pb::Status::decode(status.details())
        .map_err(|error| format!("the details are no google.rpc.Status: {error}"))?;
    if google.code != status.code() as i32 {
        return Err(format!("{} has details of {}", name(status.code()), name(Code::from_i32(google.code))));
    }
    let Some(any) = google.details.iter().find(|any| any.type_url == ERROR_DETAIL) else { return Ok(()) };
    let detail = pb::ErrorDetail::decode(any.value.as_slice())
        .map_err(|error| format!("the ErrorDetail cannot be read: {error}"))?;
    let kind =
        ErrorKind::from_name(&detail.kind).ok_or_else(|| format!("kind \"{}\" is not known", detail.kind))?;
    if kind.code() == status.code() {
        Ok(())
    } else {
        Err(format!("{} has a detail of kind {}", name(status.code()), detail.kind))
    }
}

/// Something that would work, were it not for what is wrong with it.
fn any_request(subject: &Subject) -> pb::ImageRequest {
    let models = subject.record.models.iter().filter(|model| !model.model.ends_with('*'));
    models.filter_map(edges::usual).next().unwrap_or_default()
}

fn refused(
    answer: Result<Answer, Status>,
    allowed: &[Code],
    label: &str,
    check: Check,
    subject: &Subject,
    report: &mut Report,
) {
    let label = format!("{}, {label}", subject.name());
    if let Err(status) = &answer {
        details(status, &label, report);
    }
    match answer {
        Err(status) if allowed.contains(&status.code()) => report.pass(check),
        Err(status) => report.fail(check, format!("{label}: {}", subject.told(&status))),
        Ok(answer) => {
            let images = answer.done.map_or(0, |done| done.images.len());
            report.fail(check, format!("{label}: a success with {images} images"));
        }
    }
}

/// Every image is there, marked, and without a byte.
fn is_withheld(answer: &Answer) -> bool {
    let Some(done) = &answer.done else { return false };
    answer.faults.is_empty()
        && !done.images.is_empty()
        && answer.images.iter().all(crate::images::Pieces::is_empty)
        && done.images.iter().all(|image| image.finish_reason() == FinishReason::ContentFiltered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_details_agree_with_their_status() {
        for kind in [ErrorKind::RateLimited, ErrorKind::ContentRejected, ErrorKind::NotFound] {
            assert_eq!(read_details(&Error::new(kind, "x").to_status()), Ok(()));
        }
    }

    #[test]
    fn details_that_disagree_are_named() {
        let refusal = Error::new(ErrorKind::ContentRejected, "x").to_status();
        let disguised = Status::with_details(Code::Internal, "x", refusal.details().to_vec().into());
        assert!(
            read_details(&disguised).unwrap_err().contains("INTERNAL has details of FAILED_PRECONDITION")
        );
        let garbage = Status::with_details(Code::Internal, "x", vec![0xff; 9].into());
        assert!(read_details(&garbage).unwrap_err().contains("no google.rpc.Status"));
    }
}
