//! What a target made, as the answer to one request: its place in the plan, and what was changed on the way.

use super::{
    prepare::{Ready, at_target},
    tries::Tried,
};
use crate::{
    call::{Call, Reply},
    images::made::Made,
    pb::{self, CacheStatus, ImageFormat},
};

/// The answer to a request, from what was made for it, or before and found to be the same.
pub fn reply(ready: &Ready<'_>, call: &Call, tried: Tried, cache_status: CacheStatus) -> Reply {
    let Tried { made, retries } = tried;
    let sent = &ready.fitted.calls[0];
    let mut warnings = at_target(&ready.fitted.warnings, ready.target);
    warnings.extend(at_target(&made.warnings, ready.target));
    report_size(ready, &made, &mut warnings);
    Reply {
        target: ready.target.path.clone(),
        provider: ready.provider().to_owned(),
        model: sent.model.clone(),
        images: made.images,
        usage: made.usage,
        applied: pb::Applied {
            size: sent.size,
            quality: sent.quality,
            background: sent.output.map_or(0, |output| output.background),
            delivery: sent.output.map_or(0, |output| output.delivery),
        },
        warnings,
        retry_count: i32::try_from(retries).unwrap_or(i32::MAX),
        cache_status,
        strict_open_ai_compliance: ready.target.strict_open_ai_compliance && !call.ctx.overrides.not_strict,
    }
}

/// A provider may answer with another size than it was asked for.
fn report_size(ready: &Ready<'_>, made: &Made, warnings: &mut Vec<pb::Warning>) {
    let Some(wanted) = ready.requested_size else { return };
    if warnings.iter().any(|warning| warning.field == "size") {
        return;
    }
    let other = made.images.iter().map(|(image, _)| image).find(|image| {
        image.format() != ImageFormat::Svg && (image.width, image.height) != (wanted.width, wanted.height)
    });
    if let Some(image) = other {
        warnings.push(pb::Warning {
            field: "size".into(),
            action: pb::warning::Action::Adjusted.into(),
            detail: format!("{wanted} was asked for, {}x{} was answered", image.width, image.height),
            target: ready.target.path.clone(),
        });
    }
}
