//! Imagen's `:predict`: instances and parameters in, predictions out.
//!
//! Google has announced the end of these models; who still has them is served. Field names are those of google-genai
//! 3.4.0, which has `baseSteps` in `editConfig`, where Google's page on edits has it beside. What the filter takes
//! away is missing in the answer, or stands there as a reason without an image.

use http::{Request, request::Builder};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{NAME, output_options};
use crate::{
    error::{Error, Result},
    images::Pieces,
    pb::{self, FinishReason, MaskPolarity, Moderation, Operation, upscale::Mode, warning::Action},
    provider::{
        Answer, ImageRef, Job, Output, Step, bytes_of, decimal, google::shape::Shape, json_request, mask_as,
    },
};

/// Every ratio of every model, for sizes that come in pixels.
const RATIOS: &[(u32, u32)] = &[(1, 1), (3, 4), (4, 3), (9, 16), (16, 9)];

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Prediction {
    bytes_base64_encoded: Option<ImageRef>,
    rai_filtered_reason: String,
    /// As the model rewrote it.
    prompt: String,
}

/// The request of a job.
pub(super) fn start(job: &Job, call: Builder) -> Result<Request<Pieces>> {
    let request = &job.request;
    let mut instance = Map::new();
    let mut parameters = Map::new();
    instance.insert("prompt".into(), request.prompt.as_str().into());
    match request.effective_operation() {
        Operation::Generate => {}
        Operation::Edit => {
            instance.insert("referenceImages".into(), json!([source(request)?]));
            parameters.insert("editMode".into(), "EDIT_MODE_DEFAULT".into());
        }
        Operation::Inpaint => {
            instance.insert("referenceImages".into(), json!([source(request)?, mask(request)?]));
            parameters.insert("editMode".into(), "EDIT_MODE_INPAINT_INSERTION".into());
        }
        Operation::Erase => {
            instance.insert("referenceImages".into(), json!([source(request)?, mask(request)?]));
            parameters.insert("editMode".into(), "EDIT_MODE_INPAINT_REMOVAL".into());
        }
        Operation::Upscale => {
            instance.insert("image".into(), encoded(request)?);
            parameters.insert("mode".into(), "upscale".into());
            parameters.insert("upscaleConfig".into(), json!({"upscaleFactor": factor(request)?}));
        }
        other => {
            let message = format!("Imagen has no operation {:?}", other.name());
            return Err(Error::unsupported("operation", message));
        }
    }
    parameters.extend(common(request));
    parameters.extend(job.extras(NAME));
    let body = [("instances", json!([instance])), ("parameters", parameters.into())];
    json_request(call, &body.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
}

/// What a success means.
pub(super) fn advance(job: &Job, mut answer: Answer) -> Result<Step> {
    let predictions = predictions(&answer).map_err(|error| answer.own(NAME, error))?;
    let mut reason = String::new();
    let mut images = Vec::new();
    for prediction in predictions {
        let mut image = withheld();
        if let Some(place) = &prediction.bytes_base64_encoded {
            image.data = answer.take_image(place).map_err(|error| answer.own(NAME, error))?;
        }
        if !image.data.is_empty() {
            image.finish_reason = FinishReason::Stop.into();
            image.revised_prompt = prediction.prompt;
        } else if reason.is_empty() {
            reason = prediction.rai_filtered_reason;
        }
        images.push(image);
    }
    if images.len() < job.request.wanted() {
        images.resize_with(job.request.wanted(), withheld);
    }
    if images.iter().all(|image| image.data.is_empty()) {
        let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
        return Err(answer.own(NAME, Error::refused("output", format!("every image was withheld{reason}"))));
    }
    Ok(Step::Done(Output { images, warnings: warnings(job), ..Default::default() }))
}

/// An answer of which all has been filtered may have nothing in it at all; anything else has predictions.
fn predictions(answer: &Answer) -> Result<Vec<Prediction>> {
    let mut fields: Map<String, Value> = answer.json()?;
    match fields.remove("predictions") {
        Some(predictions) => serde_json::from_value(predictions)
            .map_err(|_| Error::bad_answer("the answer's predictions are not what Imagen makes")),
        None if fields.is_empty() => Ok(Vec::new()),
        None => Err(Error::bad_answer("the answer has no predictions")),
    }
}

fn withheld() -> pb::Image {
    pb::Image { finish_reason: FinishReason::ContentFiltered.into(), ..Default::default() }
}

/// Parameters that every operation has.
fn common(request: &pb::ImageRequest) -> Map<String, Value> {
    let mut parameters = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        parameters.extend(value.map(|value| (name.to_owned(), value)));
    };
    put("sampleCount", Some(request.wanted().into()));
    // Or else a filtered image is missing without a word.
    put("includeRaiReason", Some(true.into()));
    if let Some(shape) = Shape::of(request, RATIOS) {
        put("aspectRatio", Some(shape.ratio.into()));
        put("sampleImageSize", shape.tier.map(Value::from));
    }
    put(
        "negativePrompt",
        Some(&request.negative_prompt).filter(|text| !text.is_empty()).map(|text| text.as_str().into()),
    );
    put("guidanceScale", request.guidance.map(|guidance| decimal(guidance).into()));
    put("editConfig", request.steps.map(|steps| json!({"baseSteps": steps})));
    put("outputOptions", output_options(request));
    put(
        "safetySetting",
        match request.moderation() {
            Moderation::Unspecified => None,
            Moderation::Low => Some("block_only_high".into()),
            Moderation::Strict => Some("block_low_and_above".into()),
        },
    );
    if let Some(seed) = request.seed {
        put("seed", Some(seed.into()));
        // A seed beside a watermark is refused, and beside a prompt that is written anew it means nothing.
        put("addWatermark", Some(false.into()));
        if request.effective_operation() == Operation::Generate {
            put("enhancePrompt", Some(false.into()));
        }
    }
    parameters
}

fn encoded(request: &pb::ImageRequest) -> Result<Value> {
    let Some(input) = request.inputs.first() else {
        return Err(Error::invalid(
            "image",
            format!("the operation {} needs an image", request.effective_operation().name()),
        ));
    };
    Ok(base64(&bytes_of(input)?))
}

fn base64(data: &[u8]) -> Value {
    json!({"bytesBase64Encoded": base64_simd::STANDARD.encode_to_string(data)})
}

fn source(request: &pb::ImageRequest) -> Result<Value> {
    Ok(json!({
        "referenceType": "REFERENCE_TYPE_RAW",
        "referenceId": 1,
        "referenceImage": encoded(request)?,
    }))
}

fn mask(request: &pb::ImageRequest) -> Result<Value> {
    let Some(mask) = &request.mask else {
        return Err(Error::invalid("mask", "the operation needs a mask"));
    };
    Ok(json!({
        "referenceType": "REFERENCE_TYPE_MASK",
        "referenceId": 2,
        "referenceImage": base64(&mask_as(mask, MaskPolarity::WhiteEdits)?),
        "maskImageConfig": {"maskMode": "MASK_MODE_USER_PROVIDED"},
    }))
}

fn factor(request: &pb::ImageRequest) -> Result<&'static str> {
    let upscale = request.upscale.unwrap_or_default();
    if upscale.target.is_some() {
        return Err(Error::unsupported("upscale.target", "Imagen upscales by a factor: 2, 3 or 4"));
    }
    match upscale.factor {
        None | Some(2.0) => Ok("x2"),
        Some(3.0) => Ok("x3"),
        Some(4.0) => Ok("x4"),
        Some(other) => {
            Err(Error::unsupported("upscale.factor", format!("Imagen upscales by 2, 3 or 4, not {other}")))
        }
    }
}

/// What was done otherwise than asked.
fn warnings(job: &Job) -> Vec<pb::Warning> {
    let mut warnings = Vec::new();
    let mut warn = |field: &str, action: Action, detail: &str| {
        let (field, detail) = (field.to_owned(), detail.to_owned());
        warnings.push(pb::Warning { field, action: action.into(), detail, target: String::new() });
    };
    let request = &job.request;
    if request.seed.is_some() && !job.extras(NAME).contains_key("addWatermark") {
        warn(
            "addWatermark",
            Action::Adjusted,
            "Imagen takes a seed for images without a watermark only; it was left out",
        );
    }
    if let Some(upscale) = &request.upscale {
        if upscale.creativity.is_some() {
            warn("upscale.creativity", Action::Dropped, "Imagen has no such parameter");
        }
        if matches!(upscale.mode(), Mode::Fast | Mode::Creative) {
            warn("upscale.mode", Action::Dropped, "Imagen has one way to upscale");
        }
    }
    warnings
}
