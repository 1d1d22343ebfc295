//! An image that is larger than the messages of gRPC may be by default.

use super::{
    asking::{Subject, Usual},
    check::Check,
    report::Report,
    trigger::Trigger,
};
use crate::images::probe;

/// How large it is at least, in bytes.
const LARGE: usize = 64_000_000;

/// Asks for it.
pub async fn check(subject: &Subject, usual: &Usual, report: &mut Report) {
    let Some(request) = subject.triggering(Trigger::Large, usual) else {
        return report.unobserved(Check::LargeImage, &Trigger::Large.missing(&subject.record));
    };
    let answer = match subject.ask(request).await {
        Ok(answer) => answer,
        Err(status) => {
            return report.fail(Check::LargeImage, format!("{}: {}", subject.name(), subject.told(&status)));
        }
    };
    for (check, what) in answer.faults {
        report.fail(check, format!("{}, a large image: {what}", subject.name()));
    }
    let Some(image) = answer.images.first() else { return };
    let result = match probe::probe(image) {
        Err(defect) => Err(format!("{}: {defect}", subject.name())),
        Ok(_) if image.len() < LARGE => Err(format!("{}: {} bytes of {LARGE}", subject.name(), image.len())),
        Ok(_) => Ok(()),
    };
    report.hold(Check::LargeImage, result);
}
