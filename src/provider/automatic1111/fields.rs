//! What a request is in the fields of the endpoint that serves it.
//!
//! The servers ignore fields that an endpoint does not have, so they are left out, and named in a warning.

use serde_json::{Map, Value, json};

use super::{LOADED, NAME, task_id, warning};
use crate::{
    error::{Error, Result},
    images::probe,
    params,
    pb::{self, MaskPolarity, Operation, upscale::Mode, warning::Action},
    provider::{Job, bytes_of, decimal, mask_as},
};

/// Made for photographs, and part of every installation; without a name nothing is enlarged.
const UPSCALER: &str = "R-ESRGAN 4x+";
const QUICK_UPSCALER: &str = "Lanczos";

/// Sides are multiples of this; the servers cut off what is more.
const GRID: u32 = 8;

/// Fields that only one endpoint has.
const OF_GENERATION: &[&str] = &[
    "enable_hr",
    "hr_scale",
    "hr_upscaler",
    "hr_second_pass_steps",
    "hr_resize_x",
    "hr_resize_y",
    "hr_sampler_name",
    "hr_scheduler",
];
const OF_EDITS: &[&str] = &[
    "strength",
    "resize_mode",
    "image_cfg_scale",
    "initial_noise_multiplier",
    "mask_blur",
    "inpainting_fill",
    "inpaint_full_res",
    "inpaint_full_res_padding",
];
const OF_UPSCALING: &[&str] = &[
    "upscaler_1",
    "upscaler_2",
    "extras_upscaler_2_visibility",
    "gfpgan_visibility",
    "codeformer_visibility",
    "codeformer_weight",
];

/// Whether the endpoint of an operation has a field.
fn takes(operation: Operation, name: &str) -> bool {
    if OF_GENERATION.contains(&name) {
        operation == Operation::Generate
    } else if OF_EDITS.contains(&name) {
        matches!(operation, Operation::Edit | Operation::Inpaint)
    } else {
        OF_UPSCALING.contains(&name) == (operation == Operation::Upscale)
    }
}

/// The caller's own fields, as far as the endpoint has them.
fn extras(job: &Job) -> Map<String, Value> {
    let operation = job.request.effective_operation();
    job.extras(NAME).into_iter().filter(|(name, _)| takes(operation, name)).collect()
}

/// What all that draws has in common. The caller's own extras win.
pub(super) fn generate(job: &Job) -> Map<String, Value> {
    let request = &job.request;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| _ = fields.insert(name.to_owned(), value);
    for (name, text) in [
        ("prompt", &request.prompt),
        ("negative_prompt", &request.negative_prompt),
        ("sampler_name", &request.sampler),
        ("scheduler", &request.scheduler),
    ] {
        if !text.is_empty() {
            put(name, text.as_str().into());
        }
    }
    if let Some(size) = request.dimensions() {
        put("width", size.width.into());
        put("height", size.height.into());
    }
    if let Some(seed) = request.seed {
        put("seed", seed.into());
    }
    if let Some(steps) = request.steps {
        put("steps", steps.into());
    }
    if let Some(guidance) = request.guidance {
        put("cfg_scale", decimal(guidance).into());
    }
    put("batch_size", request.wanted().into());
    put("force_task_id", task_id(job).into());
    let mut extras = extras(job);
    let mut settings = Map::new();
    if !matches!(request.model.as_str(), "" | LOADED) {
        settings.insert("sd_model_checkpoint".to_owned(), request.model.as_str().into());
    }
    if let Some(layers) = extras.remove("clip_skip") {
        settings.insert("CLIP_stop_at_last_layers".to_owned(), layers);
    }
    if !settings.is_empty() {
        put("override_settings", settings.into());
        // Or else they would hold for everybody from now on.
        put("override_settings_restore_afterwards", true.into());
    }
    fields.extend(extras);
    fields
}

/// What changes an image, all of it or what a mask selects.
pub(super) fn edit(job: &Job) -> Result<Map<String, Value>> {
    let request = &job.request;
    let input = request.inputs.first().ok_or_else(|| Error::invalid("image", "an edit needs an image"))?;
    let input = bytes_of(input)?;
    let mut fields = Map::new();
    if let (None, Ok(image)) = (request.dimensions(), probe::probe(&input.clone().into())) {
        // The server would make it 512x512, whatever its input is.
        fields.insert("width".to_owned(), (image.width / GRID * GRID).max(GRID).into());
        fields.insert("height".to_owned(), (image.height / GRID * GRID).max(GRID).into());
    }
    if let Some(strength) = request.strength {
        fields.insert("denoising_strength".to_owned(), decimal(strength).into());
    }
    let base64 = |data: &[u8]| Value::from(base64_simd::STANDARD.encode_to_string(data));
    if request.effective_operation() == Operation::Inpaint {
        let mask = request.mask.as_ref().ok_or_else(|| Error::invalid("mask", "inpainting needs a mask"))?;
        fields.insert("mask".to_owned(), base64(&mask_as(mask, MaskPolarity::WhiteEdits)?));
        // Otherwise the size is that of the masked part, and the image keeps its input's.
        fields.insert("inpaint_full_res".to_owned(), false.into());
    }
    fields.insert("init_images".to_owned(), json!([base64(&input)]));
    fields.extend(generate(job));
    Ok(fields)
}

/// What enlarges an image.
pub(super) fn upscale(job: &Job) -> Result<Map<String, Value>> {
    let request = &job.request;
    let input = request.inputs.first().ok_or_else(|| Error::invalid("image", "upscaling needs an image"))?;
    if request.wanted() > 1 {
        return Err(Error::unsupported("n", "n: upscaling makes one image of one"));
    }
    let upscale = request.upscale.unwrap_or_default();
    let upscaler = match upscale.mode() {
        Mode::Fast => QUICK_UPSCALER,
        Mode::Unspecified | Mode::Conservative => UPSCALER,
        Mode::Creative => {
            return Err(Error::unsupported("upscale.mode", format!("{NAME} has no creative upscaling")));
        }
    };
    let image = base64_simd::STANDARD.encode_to_string(bytes_of(input)?);
    let mut fields = Map::from_iter([
        ("image".to_owned(), Value::from(image)),
        ("upscaler_1".to_owned(), upscaler.into()),
    ]);
    let mut put = |name: &str, value: Value| _ = fields.insert(name.to_owned(), value);
    match (upscale.target, upscale.factor) {
        (Some(target), _) => {
            put("resize_mode", 1.into());
            put("upscaling_resize_w", target.width.into());
            put("upscaling_resize_h", target.height.into());
        }
        (None, Some(factor)) => put("upscaling_resize", decimal(factor).into()),
        (None, None) => {}
    }
    fields.extend(extras(job));
    Ok(fields)
}

/// What the endpoint has no field for, although the model has it elsewhere.
pub(super) fn dropped(job: &Job) -> Vec<pb::Warning> {
    let request = &job.request;
    let operation = request.effective_operation();
    let given = params::NAMES.iter().filter(|name| params::get(request, name).is_some());
    let mut names: Vec<String> = given.map(|name| (*name).to_owned()).collect();
    names.extend(job.extras(NAME).into_iter().map(|(name, _)| name));
    names.retain(|name| !takes(operation, name));
    if operation == Operation::Upscale {
        let upscale = request.upscale.unwrap_or_default();
        let also = [
            ("model", !matches!(request.model.as_str(), "" | LOADED)),
            ("size", request.size.is_some()),
            ("upscale.creativity", upscale.creativity.is_some()),
            ("upscale.factor", upscale.factor.is_some() && upscale.target.is_some()),
        ];
        names.extend(also.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned()));
    }
    let detail = format!("operation {} does not take it at {NAME}", operation.name());
    names.into_iter().map(|name| warning(name, Action::Dropped, detail.clone())).collect()
}
