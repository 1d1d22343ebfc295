//! Amazon's own image models, Titan Image Generator and Nova Canvas: one envelope, a task in it.
//!
//! Fields are those of AWS's page "Image generation and editing" of the Nova user guide, which Titan shares.

use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{NAME, base64};
use crate::{
    error::{Error, Result},
    images::{convert, mask, probe},
    pb::{self, FinishReason, ImageFormat, Operation, Quality, control::Kind, warning::Action},
    provider::{Answer, ImageRef, Job, bytes_of, decimal},
};

/// Seeds end here.
const MAX_SEED_NOVA: u128 = 858_993_459;
const MAX_SEED_TITAN: u128 = 2_147_483_646;

/// The extra that asks for certain colours.
const COLORS: &str = "colors";

/// What is to be done.
struct Task {
    /// `taskType`.
    name: &'static str,
    /// The member with what belongs to the task.
    params: &'static str,
    /// The member in it for the input, if there is one.
    image: Option<&'static str>,
    /// Fields of the request that mean something to it.
    takes: &'static [&'static str],
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Images {
    images: Option<Vec<ImageRef>>,
    /// Why there are fewer than asked for.
    error: Option<String>,
}

pub(super) fn body(job: &Job) -> Result<Map<String, Value>> {
    let request = &job.request;
    let task = task(job)?;
    let takes = |field: &str| task.takes.contains(&field);
    let mut params = Map::new();
    for (field, name, text) in [
        ("prompt", "text", &request.prompt),
        ("negative_prompt", "negativeText", &request.negative_prompt),
        ("style", "style", &request.style),
    ] {
        if takes(field) && !text.is_empty() {
            params.insert(name.into(), text.as_str().into());
        }
    }
    if let (true, Some(strength)) = (takes("strength"), request.strength) {
        // Upstream it is how much of the input is kept.
        params.insert("similarityStrength".into(), decimal(1.0 - strength).into());
    }
    if takes("control") {
        params.extend(control(request)?);
    }
    if takes("mask") {
        params.extend(selection(request, task.name == "OUTPAINTING")?);
    }
    params.extend(images_of(request, &task)?);
    params.extend(job.extras(NAME));
    let mut body = Map::new();
    body.insert("taskType".into(), task.name.into());
    body.insert(task.params.into(), params.into());
    if takes("n") {
        body.insert("imageGenerationConfig".into(), config(job, takes("size")).into());
    }
    Ok(body)
}

fn task(job: &Job) -> Result<Task> {
    let request = &job.request;
    let operation = request.effective_operation();
    let task = |name, params, image, takes| Task { name, params, image, takes };
    let coloured = job.extras(NAME).contains_key(COLORS);
    Ok(match operation {
        Operation::Generate | Operation::Edit if coloured => task(
            "COLOR_GUIDED_GENERATION",
            "colorGuidedGenerationParams",
            (operation == Operation::Edit).then_some("referenceImage"),
            &["prompt", "negative_prompt", "n", "size", "quality", "guidance", "seed"],
        ),
        Operation::Generate => task(
            "TEXT_IMAGE",
            "textToImageParams",
            None,
            &["prompt", "negative_prompt", "style", "n", "size", "quality", "guidance", "seed"],
        ),
        Operation::Control => task(
            "TEXT_IMAGE",
            "textToImageParams",
            Some("conditionImage"),
            &["prompt", "negative_prompt", "style", "control", "n", "size", "quality", "guidance", "seed"],
        ),
        Operation::Edit | Operation::Variation => task(
            "IMAGE_VARIATION",
            "imageVariationParams",
            Some("images"),
            &["prompt", "negative_prompt", "strength", "n", "size", "quality", "guidance", "seed"],
        ),
        Operation::Inpaint => task("INPAINTING", "inPaintingParams", Some("image"), PAINTING),
        // Without a text, what is selected goes.
        Operation::Erase => task(
            "INPAINTING",
            "inPaintingParams",
            Some("image"),
            &["negative_prompt", "mask", "search_prompt", "n", "quality", "guidance", "seed"],
        ),
        Operation::Outpaint | Operation::ReplaceBackground => {
            task("OUTPAINTING", "outPaintingParams", Some("image"), PAINTING)
        }
        Operation::RemoveBackground => {
            if request.wanted() > 1 {
                return Err(Error::unsupported("n", "removing a background gives one image"));
            }
            task("BACKGROUND_REMOVAL", "backgroundRemovalParams", Some("image"), &[])
        }
        Operation::Unspecified
        | Operation::Upscale
        | Operation::SearchReplace
        | Operation::SearchRecolor
        | Operation::Vectorize => {
            let message = format!("model {:?} has no operation {:?}", request.model, operation.name());
            return Err(Error::unsupported("operation", message));
        }
    })
}

/// The result has the size of the input.
const PAINTING: &[&str] =
    &["prompt", "negative_prompt", "mask", "search_prompt", "n", "quality", "guidance", "seed"];

/// What of the request the task has no field for.
pub(super) fn warnings(job: &Job) -> Result<Vec<pb::Warning>> {
    let request = &job.request;
    let task = task(job)?;
    let mut warnings = Vec::new();
    let mut warn = |field: &str, action: Action, detail: String| {
        warnings.push(pb::Warning {
            field: field.into(),
            action: action.into(),
            detail,
            target: String::new(),
        });
    };
    for (field, given) in [
        ("prompt", !request.prompt.is_empty()),
        ("negative_prompt", !request.negative_prompt.is_empty()),
        ("style", !request.style.is_empty()),
        ("strength", request.strength.is_some()),
        ("control", request.control.is_some()),
        ("outpaint", request.outpaint.is_some()),
        ("mask", request.mask.is_some()),
        ("search_prompt", !request.search_prompt.is_empty()),
        ("size", request.dimensions().is_some()),
        ("quality", request.quality() != Quality::Unspecified),
        ("guidance", request.guidance.is_some()),
        ("seed", request.seed.is_some()),
        ("upscale", request.upscale.is_some()),
    ] {
        if given && !task.takes.contains(&field) {
            warn(field, Action::Dropped, format!("the task {} does not take it", task.name));
        }
    }
    if request.mask.is_some() && task.takes.contains(&"mask") {
        let detail = "sent in black and white alone: what it selects by half or more is selected";
        warn("mask", Action::Notice, detail.into());
        if !request.search_prompt.is_empty() {
            warn("search_prompt", Action::Dropped, "the mask says what is selected".into());
        }
    }
    Ok(warnings)
}

fn control(request: &pb::ImageRequest) -> Result<Map<String, Value>> {
    let control = request.control.unwrap_or_default();
    let mode = match control.kind() {
        Kind::Unspecified | Kind::Canny => "CANNY_EDGE",
        Kind::Segmentation => "SEGMENTATION",
        other => {
            let kind = other.as_str_name().trim_start_matches("KIND_").to_lowercase();
            let message = format!("control.kind {kind} is not allowed; allowed: canny, segmentation");
            return Err(Error::unsupported("control.kind", message));
        }
    };
    let mut fields = Map::new();
    fields.insert("controlMode".into(), mode.into());
    if let Some(strength) = control.strength {
        fields.insert("controlStrength".into(), decimal(strength).into());
    }
    Ok(fields)
}

/// What is painted anew. Inside, black is painted; around, white is.
fn selection(request: &pb::ImageRequest, white_edits: bool) -> Result<Map<String, Value>> {
    if request.outpaint.is_some() {
        let message = "these models take no sides: send the image on its larger canvas, and select what is to be \
                       filled by a mask, or what stays by a search_prompt";
        return Err(Error::unsupported("outpaint", message));
    }
    let (name, value) = match &request.mask {
        Some(mask) => {
            let mask = mask::two_tone(&mask.data, mask.polarity(), white_edits)
                .map_err(|problem| Error::unsupported("mask", problem))?;
            ("maskImage", base64(&mask))
        }
        None if !request.search_prompt.is_empty() => ("maskPrompt", request.search_prompt.as_str().into()),
        None => {
            let message = format!(
                "operation {:?} needs a mask, or a search_prompt in its place",
                request.effective_operation().name()
            );
            return Err(Error::invalid("mask", message));
        }
    };
    Ok([(name.to_owned(), value)].into_iter().collect())
}

fn images_of(request: &pb::ImageRequest, task: &Task) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    let Some(name) = task.image else {
        if !request.inputs.is_empty() {
            return Err(Error::unsupported("image", "an image is made from text alone here"));
        }
        return Ok(fields);
    };
    let images = request.inputs.iter().map(opaque).collect::<Result<Vec<Value>>>()?;
    let value = match (name, images.len()) {
        (_, 0) => {
            let operation = request.effective_operation().name();
            return Err(Error::invalid("image", format!("operation {operation:?} needs an image")));
        }
        ("images", _) => images.into(),
        (_, 1) => images.into_iter().collect::<Value>()[0].take(),
        (_, count) => {
            return Err(Error::unsupported(
                "image",
                format!("the task {} takes one image, not {count}", task.name),
            ));
        }
    };
    fields.insert(name.into(), value);
    Ok(fields)
}

/// An input as these models take it: PNG or JPEG, and nowhere transparent. What is transparent has no colour that
/// could be sent in its place.
fn opaque(input: &pb::InputImage) -> Result<Value> {
    let data = bytes_of(input)?;
    let format = probe::sniff(&data);
    if format == Some(ImageFormat::Jpeg) {
        return Ok(base64(&data));
    }
    let unusable = |problem: String| Error::unsupported("image", problem);
    let picture = convert::decode(&data).map_err(unusable)?;
    if picture.color().has_alpha() && picture.to_rgba8().pixels().any(|pixel| pixel.0[3] < 255) {
        return Err(unusable("the image has transparent pixels, which these models refuse".into()));
    }
    match format {
        Some(ImageFormat::Png) => Ok(base64(&data)),
        _ => convert::encode(&picture, ImageFormat::Png, None).map(|png| base64(&png)).map_err(unusable),
    }
}

fn config(job: &Job, sized: bool) -> Map<String, Value> {
    let request = &job.request;
    let mut config = Map::new();
    let mut put = |name: &str, value: Value| _ = config.insert(name.into(), value);
    put("numberOfImages", request.wanted().into());
    if let (true, Some(size)) = (sized, request.dimensions()) {
        put("width", size.width.into());
        put("height", size.height.into());
    }
    match request.quality() {
        Quality::Unspecified => {}
        Quality::Low | Quality::Medium => put("quality", json!("standard")),
        Quality::High | Quality::Xhigh | Quality::Max => put("quality", json!("premium")),
    }
    if let Some(guidance) = request.guidance {
        put("cfgScale", decimal(guidance).into());
    }
    put("seed", seed(job).into());
    config
}

/// The models' own default is a constant: the same prompt would give the same picture again. Whoever names none wants
/// another one each time, and the moment at which the job began is all that differs here.
fn seed(job: &Job) -> u64 {
    let max = if job.request.model.contains("nova") { MAX_SEED_NOVA } else { MAX_SEED_TITAN };
    job.request.seed.unwrap_or_else(|| {
        let nanos = job.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        u64::try_from(nanos % (max + 1)).unwrap_or_default()
    })
}

/// The images of a success, and one without data for each that was withheld.
///
/// # Errors
/// All were withheld.
pub(super) fn images(job: &Job, answer: &mut Answer) -> Result<Vec<pb::Image>> {
    let Images { images: places, error } = answer.json()?;
    let wanted = job.request.wanted();
    let mut images = Vec::with_capacity(wanted);
    // Which images of several a seed gives is not for us to tell apart.
    let seed = (wanted == 1 && task(job)?.takes.contains(&"seed")).then(|| seed(job));
    for place in places.unwrap_or_default() {
        let data = answer.take_image(&place)?;
        images.push(pb::Image { data, seed, finish_reason: FinishReason::Stop.into(), ..Default::default() });
    }
    let Some(error) = error.filter(|error| !error.is_empty()) else {
        return if images.is_empty() {
            Err(Error::bad_answer("the answer has no image"))
        } else {
            Ok(images)
        };
    };
    let refused = super::is_refusal(&error);
    if images.is_empty() {
        return Err(if refused {
            Error::refused("output", format!("the images were withheld: {error}"))
        } else {
            Error::bad_answer(format!("no image was made: {error}"))
        });
    }
    let reason = if refused { FinishReason::ContentFiltered } else { FinishReason::Error };
    images.resize_with(wanted.max(images.len()), || pb::Image {
        finish_reason: reason.into(),
        ..Default::default()
    });
    Ok(images)
}
