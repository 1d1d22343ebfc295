//! `v2beta`: one image per call, always a form, sizes as aspect ratios. Some operations are answered with an
//! id, whose result is asked for until it is there.

use std::time::Duration;

use http::{Method, Request};
use serde::Deserialize;

use super::{Answer, Fields, Job, Result, Step, call, client_user};
use crate::{
    error::Error,
    images::Pieces,
    pb::{self, ImageFormat, MaskPolarity, Operation, control, size::Size, upscale::Mode, warning::Action},
    provider::{ImageRef, Next, bytes_of, decimal, finish, mask_as, multipart::Form},
};

/// Asking more often than this is not allowed.
const POLL_EVERY: Duration = Duration::from_secs(10);

/// How far an edit goes when nobody says so; the endpoints want a value. It is `v1`'s default.
const DEFAULT_STRENGTH: f64 = 0.65;

/// What an operation takes besides its image and `output_format`, wherever it is served.
pub(in crate::provider) const INPAINT: &[&str] =
    &["prompt", "mask", "negative_prompt", "seed", "style_preset"];
pub(in crate::provider) const OUTPAINT: &[&str] = &["prompt", "outpaint", "seed", "style_preset"];
pub(in crate::provider) const ERASE: &[&str] = &["mask", "seed"];
pub(in crate::provider) const SEARCH_REPLACE: &[&str] =
    &["prompt", "search_prompt", "negative_prompt", "seed", "style_preset"];
pub(in crate::provider) const SEARCH_RECOLOR: &[&str] =
    &["prompt", "select_prompt", "negative_prompt", "seed", "style_preset"];
pub(in crate::provider) const UPSCALE_CONSERVATIVE: &[&str] =
    &["prompt", "negative_prompt", "creativity", "seed"];
pub(in crate::provider) const UPSCALE_CREATIVE: &[&str] =
    &["prompt", "negative_prompt", "creativity", "seed", "style_preset"];
pub(in crate::provider) const CONTROL: &[&str] =
    &["prompt", "control_strength", "negative_prompt", "seed", "style_preset"];
pub(in crate::provider) const STYLE_GUIDE: &[&str] =
    &["prompt", "fidelity", "aspect_ratio", "negative_prompt", "seed"];

/// Where an operation is done, and what it takes there.
pub(super) struct Endpoint {
    path: String,
    /// Name of the file field for the input.
    image: Option<&'static str>,
    /// Fields besides the image and `output_format`, which all have.
    takes: &'static [&'static str],
    /// Answered with an id.
    pub(super) asynchronous: bool,
}

/// What a success means.
pub(super) enum Outcome {
    Image(pb::Image),
    Pending(Box<Step>),
}

#[derive(Deserialize)]
struct ImageAnswer {
    #[serde(default)]
    image: Option<ImageRef>,
    /// Some clients of asynchronous operations read this instead of `image`.
    #[serde(default)]
    result: Option<ImageRef>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    id: Option<String>,
}

pub(super) fn start(job: &Job) -> Result<Request<Pieces>> {
    let endpoint = endpoint(job)?;
    let fields = fields(job, &endpoint)?.values;
    let mut form = Form::new().fields(&fields);
    if let Some(name) = endpoint.image {
        let Some(input) = job.request.inputs.first() else {
            let operation = job.request.effective_operation().name();
            return Err(Error::invalid("image", format!("operation {operation:?} needs an image")));
        };
        form = form.image(name, name, bytes_of(input)?);
    }
    if let Some(mask) = &job.request.mask
        && endpoint.takes.contains(&"mask")
    {
        form = form.image("mask", "mask", mask_as(mask, MaskPolarity::WhiteEdits)?);
    }
    let mut request = call(job, Method::POST, &endpoint.path)?;
    if let Some(user) = client_user(job) {
        request = request.header("stability-client-user-id", user);
    }
    form.into_request(request)
}

/// The endpoint for the request's operation.
pub(super) fn endpoint(job: &Job) -> Result<Endpoint> {
    let request = &job.request;
    let model = request.model.as_str();
    let at = |path: &str, image: Option<&'static str>, takes: &'static [&'static str]| Endpoint {
        path: format!("/v2beta/stable-image/{path}"),
        image,
        takes,
        asynchronous: false,
    };
    let operation = request.effective_operation();
    let unsupported = |what: &str| {
        Err(Error::unsupported("operation", format!("model {model:?} has no operation {what:?}")))
    };
    Ok(match operation {
        Operation::Generate | Operation::Edit => return generation(model, operation),
        Operation::Inpaint => at("edit/inpaint", Some("image"), INPAINT),
        Operation::Outpaint => at("edit/outpaint", Some("image"), OUTPAINT),
        Operation::Erase => at("edit/erase", Some("image"), ERASE),
        Operation::SearchReplace => at("edit/search-and-replace", Some("image"), SEARCH_REPLACE),
        Operation::SearchRecolor => at("edit/search-and-recolor", Some("image"), SEARCH_RECOLOR),
        Operation::RemoveBackground => at("edit/remove-background", Some("image"), &[]),
        Operation::ReplaceBackground => Endpoint {
            asynchronous: true,
            ..at(
                "edit/replace-background-and-relight",
                Some("subject_image"),
                &["background_prompt", "negative_prompt", "seed"],
            )
        },
        Operation::Upscale => match request.upscale.unwrap_or_default().mode() {
            // The cheapest by far where the caller has no wish.
            Mode::Unspecified | Mode::Fast => at("upscale/fast", Some("image"), &[]),
            Mode::Conservative => at("upscale/conservative", Some("image"), UPSCALE_CONSERVATIVE),
            Mode::Creative => {
                Endpoint { asynchronous: true, ..at("upscale/creative", Some("image"), UPSCALE_CREATIVE) }
            }
        },
        Operation::Control => match request.control.unwrap_or_default().kind() {
            control::Kind::Sketch => at("control/sketch", Some("image"), CONTROL),
            control::Kind::Unspecified | control::Kind::Structure => {
                at("control/structure", Some("image"), CONTROL)
            }
            control::Kind::Style => at("control/style", Some("image"), STYLE_GUIDE),
            other => {
                let kind = other.as_str_name().trim_start_matches("KIND_").to_lowercase();
                return unsupported(&format!("control by {kind}"));
            }
        },
        Operation::Unspecified | Operation::Variation | Operation::Vectorize => {
            return unsupported(operation.name());
        }
    })
}

/// Text to image, and where the model has it, image to image.
fn generation(model: &str, operation: Operation) -> Result<Endpoint> {
    let family = match model {
        "stable-image-core" => "core",
        "stable-image-ultra" => "ultra",
        sd3 if sd3.starts_with("sd3") => "sd3",
        other => other,
    };
    let edits = operation == Operation::Edit;
    let takes: &[&str] = match (family, edits) {
        ("core", true) => {
            let message = format!("model {model:?} makes images from text only");
            return Err(Error::unsupported("operation", message));
        }
        ("sd3", false) => &["prompt", "negative_prompt", "aspect_ratio", "cfg_scale", "seed", "style_preset"],
        ("sd3", true) => &["prompt", "negative_prompt", "strength", "cfg_scale", "seed", "style_preset"],
        (_, false) => &["prompt", "negative_prompt", "aspect_ratio", "seed", "style_preset"],
        (_, true) => &["prompt", "negative_prompt", "aspect_ratio", "strength", "seed", "style_preset"],
    };
    Ok(Endpoint {
        path: format!("/v2beta/stable-image/generate/{family}"),
        image: edits.then_some("image"),
        takes,
        asynchronous: false,
    })
}

/// What the request says apart from its files.
pub(super) fn fields(job: &Job, endpoint: &Endpoint) -> Result<Fields> {
    let request = &job.request;
    let mut fields = fields_of(super::NAME, request, endpoint.takes)?;
    if endpoint.path.ends_with("/sd3") {
        // The plain name leaves the choice to Stability.
        if request.model != "sd3" {
            fields.put("model", request.model.as_str());
        }
        if endpoint.image.is_some() {
            fields.put("mode", "image-to-image");
        }
    }
    if !request.end_user.is_empty() && client_user(job).is_none() {
        fields.warn("user", Action::Dropped, "the user's id fits no header");
    }
    fields.values.extend(job.extras(super::NAME));
    Ok(fields)
}

/// The request in the words of Stability's models, wherever they are served.
pub(in crate::provider) fn fields_of(
    provider: &'static str,
    request: &pb::ImageRequest,
    takes: &[&str],
) -> Result<Fields> {
    let mut fields = Fields::new(provider);
    let takes = |name: &str| takes.contains(&name);
    texts(request, takes, &mut fields)?;
    generation_fields(request, takes, &mut fields);
    edit_fields(request, takes, &mut fields)?;
    Ok(fields)
}

fn texts(request: &pb::ImageRequest, takes: impl Fn(&str) -> bool, fields: &mut Fields) -> Result<()> {
    let prompt = if takes("background_prompt") { "background_prompt" } else { "prompt" };
    let search = if takes("select_prompt") { "select_prompt" } else { "search_prompt" };
    for (field, upstream, text) in [
        ("prompt", prompt, &request.prompt),
        ("negative_prompt", "negative_prompt", &request.negative_prompt),
        ("style", "style_preset", &request.style),
        ("search_prompt", search, &request.search_prompt),
    ] {
        match (text.is_empty(), takes(upstream)) {
            (false, true) => fields.put(upstream, text.as_str()),
            (false, false) => fields.dropped(field, request),
            (true, true) if field == "search_prompt" => {
                return Err(Error::invalid(field, "the operation needs a search_prompt: what to look for"));
            }
            (true, _) => {}
        }
    }
    Ok(())
}

fn generation_fields(request: &pb::ImageRequest, takes: impl Fn(&str) -> bool, fields: &mut Fields) {
    match request.size.and_then(|size| size.size) {
        Some(Size::AspectRatio(ratio)) if takes("aspect_ratio") => {
            fields.put("aspect_ratio", format!("{}:{}", ratio.width, ratio.height));
        }
        Some(Size::AspectRatio(_) | Size::Dimensions(_)) => fields.dropped("size", request),
        Some(Size::Auto(_)) | None => {}
    }
    match request.seed {
        Some(seed) if takes("seed") => {
            let seed = fields.seed(seed);
            fields.put("seed", seed);
        }
        Some(_) => fields.dropped("seed", request),
        None => {}
    }
    match request.guidance {
        Some(guidance) if takes("cfg_scale") => fields.put("cfg_scale", decimal(guidance)),
        Some(_) => fields.dropped("guidance", request),
        None => {}
    }
    let format = request.wanted_format();
    // Whoever wants another format gets it from the router, which converts what came.
    let alpha_only =
        request.effective_operation() == Operation::RemoveBackground && format == ImageFormat::Jpeg;
    if alpha_only {
        fields.warn("output_format", Action::Emulated, "made as png, for its transparency, and converted");
    } else if format != ImageFormat::Unspecified {
        fields.put("output_format", format.name());
    }
}

fn edit_fields(request: &pb::ImageRequest, takes: impl Fn(&str) -> bool, fields: &mut Fields) -> Result<()> {
    match request.strength {
        strength if takes("strength") => fields.put("strength", strength.map_or(DEFAULT_STRENGTH, decimal)),
        Some(strength) if takes("change_strength") => fields.put("change_strength", decimal(strength)),
        Some(_) => fields.dropped("strength", request),
        None => {}
    }
    if request.mask.is_some() && !takes("mask") {
        fields.dropped("mask", request);
    }
    match (&request.outpaint, takes("outpaint")) {
        (Some(outpaint), true) => {
            for (side, pixels) in [
                ("left", outpaint.left),
                ("right", outpaint.right),
                ("up", outpaint.up),
                ("down", outpaint.down),
            ] {
                if pixels > 0 {
                    fields.put(side, pixels);
                }
            }
            if let Some(creativity) = outpaint.creativity {
                fields.put("creativity", decimal(creativity));
            }
        }
        (Some(_), false) => fields.dropped("outpaint", request),
        (None, true) => {
            return Err(Error::invalid("outpaint", "outpaint needs the pixels to add on each side"));
        }
        (None, false) => {}
    }
    if let Some(upscale) = &request.upscale {
        match upscale.creativity {
            Some(creativity) if takes("creativity") => fields.put("creativity", decimal(creativity)),
            Some(_) => fields.dropped("upscale.creativity", request),
            None => {}
        }
        // Fast enlarges four times, the others to four megapixels or more.
        let fast = request.effective_operation() == Operation::Upscale && !takes("creativity");
        let as_it_is = fast && upscale.factor == Some(4.0);
        if upscale.factor.is_some() && !as_it_is {
            fields.dropped("upscale.factor", request);
        }
        if upscale.target.is_some() {
            fields.dropped("upscale.target", request);
        }
    }
    if let Some(strength) = request.control.and_then(|control| control.strength) {
        match ["control_strength", "fidelity", "style_strength"].into_iter().find(|name| takes(name)) {
            Some(name) => fields.put(name, decimal(strength)),
            None => fields.dropped("control.strength", request),
        }
    }
    Ok(())
}

impl Fields {
    fn dropped(&mut self, field: &str, request: &pb::ImageRequest) {
        let operation = request.effective_operation().name();
        let detail = format!("operation {operation} does not take it at {}", self.provider);
        self.warn(field, Action::Dropped, detail);
    }
}

/// What a success of JSON means.
pub(super) fn answer(job: &Job, answer: &mut Answer) -> Result<Outcome> {
    let ImageAnswer { image, result, finish_reason, seed, id } = answer.json()?;
    let reason = finish_reason.unwrap_or_default();
    let place = image.or(result);
    if place.is_none()
        && reason.is_empty()
        && let Some(id) = id
    {
        return poll(job, &id).map(|step| Outcome::Pending(Box::new(step)));
    }
    let image = super::image(&reason, seed, || {
        let place = place.ok_or_else(|| Error::bad_answer("the answer has no image"))?;
        answer.take_image(&place)
    })?;
    Ok(Outcome::Image(image))
}

fn poll(job: &Job, id: &str) -> Result<Step> {
    // It becomes part of the path of a request with our credential.
    if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err(Error::bad_answer("the answer's id is not one"));
    }
    let request = call(job, Method::GET, &format!("/v2beta/results/{id}"))?;
    Ok(Next::new(POLL_EVERY, finish(request, Pieces::default())?).into())
}
