//! `v1`: engines. Several images per call, weighted prompts, sizes in pixels.
//!
//! Stability has switched off Stable Diffusion 1.6 (2025-07-24) and may have switched off the rest; the dialect
//! lives on in configs and in servers that copied it.

use http::{Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, Fields, Job, Result, call};
use crate::{
    error::Error,
    images::Pieces,
    pb::{self, MaskPolarity, Operation, size::Size, upscale::Mode, warning::Action},
    provider::{ImageRef, bytes_of, decimal, json_request, mask_as, multipart::Form},
};

/// The document says a list, the samples say an object with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Artifacts {
    Object { artifacts: Vec<Artifact> },
    List(Vec<Artifact>),
}

#[derive(Deserialize)]
struct Artifact {
    #[serde(default)]
    base64: Option<ImageRef>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default, rename = "finishReason")]
    finish_reason: Option<String>,
}

pub(super) fn start(job: &Job) -> Result<Request<Pieces>> {
    let mut fields = fields_of(super::NAME, job)?.values;
    let operation = job.request.effective_operation();
    let path = match operation {
        Operation::Edit => "image-to-image",
        Operation::Inpaint => "image-to-image/masking",
        Operation::Upscale => "image-to-image/upscale",
        _ => "text-to-image",
    };
    let request = call(job, Method::POST, &format!("/v1/generation/{}/{path}", job.request.model))?;
    if operation == Operation::Generate {
        return json_request(request, &fields);
    }
    let Some(input) = job.request.inputs.first() else {
        return Err(Error::invalid("image", format!("operation {:?} needs an image", operation.name())));
    };
    flatten_prompts(&mut fields);
    let name = if operation == Operation::Upscale { "image" } else { "init_image" };
    let mut form = Form::new().fields(&fields).image(name, name, bytes_of(input)?);
    if let Some(mask) = &job.request.mask
        && operation == Operation::Inpaint
    {
        form = form.image("mask_image", "mask_image", mask_as(mask, mask_polarity(mask))?);
    }
    form.into_request(request)
}

/// What the request says apart from its files, wherever the model is served.
pub(in crate::provider) fn fields_of(provider: &'static str, job: &Job) -> Result<Fields> {
    let request = &job.request;
    let operation = request.effective_operation();
    let mut fields = Fields::new(provider);
    match operation {
        Operation::Generate => {
            // The usual 512 is no size of these, which have a list.
            let is_xl = request.model.contains("xl-1024");
            let usual = is_xl.then_some(pb::Dimensions { width: 1024, height: 1024 });
            if let Some(size) = request.dimensions().or(usual) {
                fields.put("width", size.width);
                fields.put("height", size.height);
            }
            fields.put("text_prompts", Value::Array(prompts(request)));
            if request.strength.is_some() {
                fields.warn("strength", Action::Dropped, "there is no image to keep anything of");
            }
        }
        Operation::Edit | Operation::Inpaint => {
            fields.put("text_prompts", Value::Array(prompts(request)));
            drop_size(request, &mut fields);
            source_fields(request, operation, &mut fields);
        }
        Operation::Upscale => upscale_fields(request, &mut fields),
        other => {
            return Err(Error::unsupported(
                "operation",
                format!("model {:?} has no operation {:?}", request.model, other.name()),
            ));
        }
    }
    if operation != Operation::Upscale {
        if let Some(n) = request.n {
            fields.put("samples", n);
        }
        if let Some(guidance) = request.guidance {
            fields.put("cfg_scale", decimal(guidance));
        }
        if let Some(steps) = request.steps {
            fields.put("steps", steps);
        }
        if let Some(seed) = request.seed {
            let seed = fields.seed(seed);
            fields.put("seed", seed);
        }
        for (name, text) in [("sampler", &request.sampler), ("style_preset", &request.style)] {
            if !text.is_empty() {
                fields.put(name, text.as_str());
            }
        }
    }
    fields.values.extend(job.extras(provider));
    Ok(fields)
}

/// A form has texts only: `text_prompts[0][weight]`.
fn flatten_prompts(fields: &mut Map<String, Value>) {
    let Some(Value::Array(prompts)) = fields.remove("text_prompts") else { return };
    for (i, prompt) in prompts.iter().enumerate() {
        for part in ["text", "weight"] {
            fields.insert(format!("text_prompts[{i}][{part}]"), prompt[part].clone());
        }
    }
}

/// The images of a success.
pub(in crate::provider) fn images(answer: &mut Answer) -> Result<Vec<pb::Image>> {
    let (Artifacts::Object { artifacts } | Artifacts::List(artifacts)) = answer.json()?;
    if artifacts.is_empty() {
        return Err(Error::bad_answer("the answer has no image"));
    }
    let image = |artifact: Artifact| {
        super::image(artifact.finish_reason.as_deref().unwrap_or_default(), artifact.seed, || {
            let place = artifact.base64.ok_or_else(|| Error::bad_answer("an artifact has no base64"))?;
            answer.take_image(&place)
        })
    };
    artifacts.into_iter().map(image).collect()
}

fn prompts(request: &pb::ImageRequest) -> Vec<Value> {
    let mut prompts = Vec::new();
    if !request.prompt.is_empty() {
        prompts.push(json!({"text": request.prompt, "weight": 1}));
    }
    for prompt in &request.weighted_prompts {
        prompts.push(json!({"text": prompt.text, "weight": decimal(prompt.weight)}));
    }
    if !request.negative_prompt.is_empty() {
        prompts.push(json!({"text": request.negative_prompt, "weight": -1}));
    }
    prompts
}

fn source_fields(request: &pb::ImageRequest, operation: Operation, fields: &mut Fields) {
    if operation == Operation::Edit {
        if let Some(strength) = request.strength {
            fields.put("init_image_mode", "IMAGE_STRENGTH");
            // Upstream it is how much of the input is kept.
            fields.put("image_strength", decimal(1.0 - strength));
        }
        return;
    }
    if request.strength.is_some() {
        fields.warn("strength", Action::Dropped, "an edit with a mask has no strength at this model");
    }
    let source = match request.mask.as_ref().map(mask_polarity) {
        None => "INIT_IMAGE_ALPHA",
        Some(MaskPolarity::BlackEdits) => "MASK_IMAGE_BLACK",
        Some(_) => "MASK_IMAGE_WHITE",
    };
    fields.put("mask_source", source);
}

/// One side of the result; the other follows the input's shape.
fn upscale_fields(request: &pb::ImageRequest, fields: &mut Fields) {
    let native = if request.model.contains("x4") { 4.0 } else { 2.0 };
    let upscale = request.upscale.unwrap_or_default();
    match (upscale.target, request.dimensions()) {
        (Some(target), _) | (None, Some(target)) => fields.put("width", target.width),
        (None, None) => drop_size(request, fields),
    }
    if upscale.target.is_none() && upscale.factor.is_some_and(|factor| factor != native) {
        fields.warn("upscale.factor", Action::Dropped, format!("this model enlarges {native} times"));
    }
    for (name, given) in [
        ("upscale.mode", !matches!(upscale.mode(), Mode::Unspecified | Mode::Fast)),
        ("upscale.creativity", upscale.creativity.is_some()),
        ("prompt", !request.prompt.is_empty()),
        ("negative_prompt", !request.negative_prompt.is_empty()),
    ] {
        if given {
            fields.warn(name, Action::Dropped, "enlarging does not use it at this model");
        }
    }
}

fn drop_size(request: &pb::ImageRequest, fields: &mut Fields) {
    if let Some(pb::Size { size: Some(Size::Dimensions(_) | Size::AspectRatio(_)) }) = request.size {
        fields.warn("size", Action::Dropped, "the result has the size of the input");
    }
}

/// Alpha is understood of the input image only, so such a mask becomes one of gray values.
pub(in crate::provider) fn mask_polarity(mask: &pb::Mask) -> MaskPolarity {
    match mask.polarity() {
        MaskPolarity::BlackEdits => MaskPolarity::BlackEdits,
        MaskPolarity::Unspecified | MaskPolarity::WhiteEdits | MaskPolarity::AlphaEdits => {
            MaskPolarity::WhiteEdits
        }
    }
}
