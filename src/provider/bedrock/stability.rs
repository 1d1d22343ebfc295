//! Stability's models on Bedrock: a model for each thing that they do, fields as in Stability's own `v2beta`, but
//! images as base64 in JSON both ways. Everything is answered at once, and a refusal is a 200.
//!
//! Fields are those of AWS's pages on Stable Diffusion 3.5 Large, Stable Image Ultra and the Stability AI Image
//! Services; Ultra and Core make images from text only there.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{NAME, base64};
use crate::{
    error::{Error, ErrorKind, Result},
    pb::{self, BillingClass, FinishReason, MaskPolarity, Operation, warning::Action},
    provider::{
        Answer, ImageRef, Job, bytes_of, mask_as,
        stability::{Fields, v1, v2beta},
    },
};

/// What a model takes.
struct Service {
    /// Fields for the inputs, in their order.
    images: &'static [&'static str],
    /// Fields besides images and `output_format`, which all have.
    takes: &'static [&'static str],
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Images {
    /// AWS's page calls them texts and shows numbers.
    seeds: Vec<Value>,
    finish_reasons: Vec<Option<String>>,
    images: Vec<Option<ImageRef>>,
}

/// The body for a model, by its id without maker.
pub(super) fn body(job: &Job, model: &str) -> Result<Map<String, Value>> {
    let service = service(job, model)?;
    let mut body = fields(job, model)?.values;
    put_images(job, service.images, &mut body)?;
    if let Some(mask) = &job.request.mask
        && service.takes.contains(&"mask")
    {
        body.insert("mask".into(), base64(&mask_as(mask, MaskPolarity::WhiteEdits)?));
    }
    Ok(body)
}

/// What the request says apart from its images.
pub(super) fn fields(job: &Job, model: &str) -> Result<Fields> {
    let request = &job.request;
    let mut fields = v2beta::fields_of(NAME, request, service(job, model)?.takes)?;
    if request.effective_operation() == Operation::Edit && model.starts_with("sd3") {
        fields.values.insert("mode".into(), "image-to-image".into());
    }
    // Another model is what other ways of doing it are here.
    let mode = request.upscale.unwrap_or_default().mode();
    let kind = request.control.unwrap_or_default().kind();
    for (field, said) in
        [("upscale.mode", word(mode.as_str_name())), ("control.kind", word(kind.as_str_name()))]
    {
        if said != "unspecified" && !model.contains(&said) {
            fields.warn(field, Action::Dropped, format!("{said} is not what {} does", request.model));
        }
    }
    fields.values.extend(job.extras(NAME));
    Ok(fields)
}

/// `MODE_FAST` as models' names have it.
fn word(name: &str) -> String {
    name.rsplit('_').next().unwrap_or_default().to_lowercase()
}

fn service(job: &Job, model: &str) -> Result<Service> {
    let operation = job.request.effective_operation();
    let name = model.split_once("-v").map_or(model, |(name, _)| name);
    let on_image = |takes| Ok(Service { images: &["image"], takes });
    match (name, operation) {
        ("sd3-5-large" | "sd3-large" | "stable-image-core" | "stable-image-ultra", Operation::Generate) => {
            Ok(Service { images: &[], takes: &["prompt", "negative_prompt", "aspect_ratio", "seed"] })
        }
        ("sd3-5-large" | "sd3-large", Operation::Edit) => {
            on_image(&["prompt", "negative_prompt", "strength", "seed"])
        }
        ("stable-image-inpaint", Operation::Inpaint) => on_image(v2beta::INPAINT),
        ("stable-outpaint", Operation::Outpaint) => on_image(v2beta::OUTPAINT),
        ("stable-image-erase-object", Operation::Erase) => on_image(v2beta::ERASE),
        ("stable-image-search-replace", Operation::SearchReplace) => on_image(v2beta::SEARCH_REPLACE),
        ("stable-image-search-recolor", Operation::SearchRecolor) => on_image(v2beta::SEARCH_RECOLOR),
        ("stable-image-remove-background", Operation::RemoveBackground)
        | ("stable-fast-upscale", Operation::Upscale) => on_image(&[]),
        ("stable-conservative-upscale", Operation::Upscale) => on_image(v2beta::UPSCALE_CONSERVATIVE),
        ("stable-creative-upscale", Operation::Upscale) => on_image(v2beta::UPSCALE_CREATIVE),
        ("stable-image-control-sketch" | "stable-image-control-structure", Operation::Control) => {
            on_image(v2beta::CONTROL)
        }
        ("stable-image-style-guide", Operation::Control) => on_image(v2beta::STYLE_GUIDE),
        ("stable-style-transfer", Operation::Control | Operation::Edit) => Ok(Service {
            images: &["init_image", "style_image"],
            takes: &["prompt", "negative_prompt", "style_strength", "change_strength", "seed"],
        }),
        _ => {
            let message = format!("model {:?} has no operation {:?}", job.request.model, operation.name());
            Err(Error::unsupported("operation", message))
        }
    }
}

/// Stable Diffusion XL: fields as in Stability's `v1`.
pub(super) fn xl_body(job: &Job) -> Result<Map<String, Value>> {
    let mut body = v1::fields_of(NAME, job)?.values;
    if job.request.effective_operation() != Operation::Generate {
        put_images(job, &["init_image"], &mut body)?;
    }
    if let Some(mask) = &job.request.mask {
        body.insert("mask_image".into(), base64(&mask_as(mask, v1::mask_polarity(mask))?));
    }
    Ok(body)
}

fn put_images(job: &Job, names: &[&str], body: &mut Map<String, Value>) -> Result<()> {
    let inputs = &job.request.inputs;
    if inputs.len() < names.len() {
        let needed = names.join(" and ");
        let message = format!("model {:?} needs {} images: {needed}", job.request.model, names.len());
        return Err(Error::unsupported("image", message));
    }
    if inputs.len() > names.len() {
        let message = format!("model {:?} takes {} images here", job.request.model, names.len());
        return Err(Error::unsupported("image", message));
    }
    for (name, input) in names.iter().zip(inputs) {
        body.insert((*name).to_owned(), base64(&bytes_of(input)?));
    }
    Ok(())
}

/// The images of a success.
///
/// # Errors
/// None was made.
pub(super) fn images(answer: &mut Answer) -> Result<Vec<pb::Image>> {
    let Images { seeds, finish_reasons, images: places } = answer.json()?;
    let reason = |i: usize| finish_reasons.get(i).and_then(Option::as_deref);
    let mut images = Vec::new();
    for i in 0..places.len().max(finish_reasons.len()) {
        let seed = seeds.get(i).and_then(|seed| seed.as_u64().or_else(|| seed.as_str()?.parse().ok()));
        let image = match (reason(i), places.get(i).and_then(Option::as_ref)) {
            (Some(reason), _) => withheld(reason),
            (None, Some(place)) => pb::Image {
                data: answer.take_image(place)?,
                finish_reason: FinishReason::Stop.into(),
                ..Default::default()
            },
            (None, None) => return Err(Error::bad_answer("the answer lacks an image")),
        };
        images.push(pb::Image { seed, ..image });
    }
    if images.iter().all(|image| image.data.is_empty()) {
        return Err(match finish_reasons.into_iter().flatten().next() {
            Some(reason) => refusal(&reason),
            None => Error::bad_answer("the answer has no image"),
        });
    }
    Ok(images)
}

fn withheld(reason: &str) -> pb::Image {
    let reason = if is_filter(reason) { FinishReason::ContentFiltered } else { FinishReason::Error };
    pb::Image { finish_reason: reason.into(), ..Default::default() }
}

fn is_filter(reason: &str) -> bool {
    reason.starts_with("Filter reason")
}

/// What it means that nothing was made. An "Inference error" may go away by itself.
fn refusal(reason: &str) -> Error {
    if !is_filter(reason) {
        let message = format!("no image was made: {reason}");
        return Error::new(ErrorKind::Unavailable, message).billed(BillingClass::Unknown);
    }
    let stage = ["prompt", "input", "output"].into_iter().find(|stage| reason.contains(stage));
    Error::refused(stage.unwrap_or("output"), format!("the image was withheld: {reason}"))
}
