//! AUTOMATIC1111's web UI, Forge, SD.Next and whatever else serves `/sdapi/v1`, on a host of one's own.
//!
//! Fields, errors and progress are from the servers' code: AUTOMATIC1111 1.10 as Forge has it (June 2025), and SD.Next
//! (July 2026). An answer comes only when its images are done. `/sdapi/v1/progress` tells of whichever job runs, and
//! not whose it is: the answer's type has no field for the task's id. So a job gets an id (`force_task_id`, since
//! version 1.8) and is asked for where the web UI asks, at `/internal/progress`. Where there is no such thing (SD.Next,
//! older versions, `--nowebui`) a job has no progress and is not interrupted.

mod fields;

use std::{sync::LazyLock, time::UNIX_EPOCH};

use http::{Method, Request, header::AUTHORIZATION};
use prost::Message as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Answer, ImageRef, Job, Output, Provider, Step, Watched, authorized, catalog, finish, json_request,
};
use crate::{
    digest::Framed,
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass, Operation, warning::Action},
};

const NAME: &str = "automatic1111";

/// Schedulers that may be part of a sampler's name, as in `DPM++ 2M Karras`.
const SCHEDULERS: &[&str] = &[
    "automatic",
    "uniform",
    "karras",
    "exponential",
    "polyexponential",
    "sgm uniform",
    "kl optimal",
    "align your steps",
    "simple",
    "normal",
    "ddim",
    "beta",
    "turbo",
];

/// The model that is whichever checkpoint the server has loaded.
const LOADED: &str = "loaded";

/// A job that says it has less than this to go is left to finish. Interrupting hits whatever runs at that moment, so
/// the job must not have ended, and another begun, since it was last looked at, which is up to three seconds ago.
const INTERRUPTED_FROM_S: f64 = 5.0;

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("automatic1111")));

/// The provider `automatic1111`.
#[derive(Debug)]
pub struct Automatic1111;

#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    images: Option<Vec<ImageRef>>,
    /// Instead of `images`, from upscaling.
    #[serde(default)]
    image: Option<ImageRef>,
    /// JSON as text, see [`Info`]; empty at stable-diffusion.cpp.
    #[serde(default)]
    info: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Info {
    all_seeds: Option<Vec<i64>>,
    /// Not 0 behind a grid of all images.
    index_of_first_image: Option<usize>,
    sd_model_name: Option<String>,
    sd_model_hash: Option<String>,
    sampler_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorAnswer {
    /// The exception's class.
    error: Option<String>,
    /// A text, or FastAPI's list of problems.
    detail: Value,
    /// The exception's text.
    errors: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TaskState {
    active: bool,
    queued: bool,
    progress: Option<f64>,
    /// Seconds, once the first step is done.
    eta: Option<f64>,
}

impl Provider for Automatic1111 {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    /// None: the server is somebody's own.
    fn default_base_url(&self) -> &'static str {
        ""
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["images", "image"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        if job.base_url.is_empty() {
            let message = format!("{NAME} needs a base_url, such as http://127.0.0.1:7860");
            return Err(Error::invalid("base_url", message));
        }
        let (path, fields) = match job.request.effective_operation() {
            Operation::Generate => ("txt2img", fields::generate(job)),
            Operation::Edit | Operation::Inpaint => ("img2img", fields::edit(job)?),
            Operation::Upscale => ("extra-single-image", fields::upscale(job)?),
            other => {
                let message = format!("{NAME} has no operation {:?}", other.name());
                return Err(Error::unsupported("operation", message));
            }
        };
        json_request(call(job, &format!("/sdapi/v1/{path}"))?, &fields)
    }

    fn advance(&self, job: &Job, mut answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        let Made { images, image, info } = answer.json().map_err(|error| answer.own(NAME, error))?;
        let info: Info = info.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let mut images: Vec<_> = images.unwrap_or_default().into_iter().chain(image).collect();
        let seeds = info.all_seeds.as_deref().unwrap_or_default();
        if !seeds.is_empty() {
            // What stands before is a grid; what comes behind are by-products of extensions.
            let first = info.index_of_first_image.unwrap_or(images.len().saturating_sub(seeds.len()));
            images = images.into_iter().skip(first).take(seeds.len()).collect();
        }
        let mut made = Vec::new();
        for (i, place) in images.iter().enumerate() {
            let data = answer.take_image(place).map_err(|error| answer.own(NAME, error))?;
            let seed = seeds.get(i).and_then(|seed| u64::try_from(*seed).ok());
            made.push(pb::Image { data, seed, ..Default::default() });
        }
        if made.is_empty() {
            return Err(answer.own(NAME, Error::bad_answer("the answer has no image")));
        }
        let mut warnings = fields::dropped(job);
        warnings.extend(ignored(&job.request, &info));
        Ok(Step::Done(Output { images: made, warnings, ..Default::default() }))
    }

    fn watch(&self, job: &Job) -> Option<Request<Pieces>> {
        if job.request.effective_operation() == Operation::Upscale {
            return None;
        }
        let fields = Map::from_iter([
            ("id_task".to_owned(), task_id(job).into()),
            ("live_preview".to_owned(), false.into()),
        ]);
        json_request(call(job, "/internal/progress").ok()?, &fields).ok()
    }

    fn watched(&self, job: &Job, answer: Answer) -> Watched {
        let said = if answer.status.is_success() { answer.json().ok() } else { None };
        let progress = |fraction, state: &str| Some(pb::Progress { fraction, state: state.to_owned() });
        match said {
            Some(TaskState { active: true, progress: fraction, eta, .. }) => Watched {
                progress: progress(fraction.map(|fraction| fraction.clamp(0.0, 1.0)), "running"),
                cancel: interrupt(job).into_iter().filter(|_| eta >= Some(INTERRUPTED_FROM_S)).collect(),
            },
            Some(TaskState { queued: true, .. }) => {
                Watched { progress: progress(None, "queued"), cancel: Vec::new() }
            }
            _ => Watched::default(),
        }
    }
}

/// A request with the credential, which is `user:password`.
fn call(job: &Job, path: &str) -> Result<http::request::Builder> {
    let basic = |key: &SecretString| base64_simd::STANDARD.encode_to_string(key.expose_secret()).into();
    let credential = job.api_key.as_ref().map(basic);
    let address = format!("{}{path}", job.base_url);
    authorized(Method::POST, &address, (AUTHORIZATION, "Basic "), credential.as_ref())
}

/// A name for the job's task at the server: the same whenever it is asked for, and no other job's. Nothing but the
/// job is known here, so it is made of the job's nanosecond and of what is asked for, which tells apart jobs of one
/// nanosecond. It gives no right to anything: interrupting takes no id.
fn task_id(job: &Job) -> String {
    let asked = pb::ImageRequest { inputs: Vec::new(), mask: None, ..job.request.clone() };
    let began = job.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut digest = Framed::default();
    digest.add(asked.encode_to_vec());
    digest.add(began.to_le_bytes());
    let start: String = digest.finish().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("imagegate-{start}")
}

/// Stops whatever the server does right now.
fn interrupt(job: &Job) -> Option<Request<Pieces>> {
    finish(call(job, "/sdapi/v1/interrupt").ok()?, Pieces::default()).ok()
}

/// What the server took something else for: it says nothing of a checkpoint or a sampler that it does not have.
fn ignored(request: &pb::ImageRequest, info: &Info) -> Vec<pb::Warning> {
    let mut warnings = Vec::new();
    if let Some(used) = info.sd_model_name.as_deref().filter(|name| !name.is_empty()) {
        let hash = info.sd_model_hash.as_deref().unwrap_or_default();
        if !matches!(request.model.as_str(), "" | LOADED) && !is_checkpoint(&request.model, used, hash) {
            let detail = format!("the server does not have {}; {used} made the image", request.model);
            warnings.push(warning("model".to_owned(), Action::Adjusted, detail));
        }
    }
    if let Some(used) = info.sampler_name.as_deref().filter(|name| !name.is_empty()) {
        let (asked, used_name) = (request.sampler.to_lowercase(), used.to_lowercase());
        let rest = asked.strip_prefix(&used_name).map(str::trim_start);
        if !asked.is_empty() && !rest.is_some_and(|rest| rest.is_empty() || SCHEDULERS.contains(&rest)) {
            let detail = format!("the server does not have {}; {used} was used", request.sampler);
            warnings.push(warning("sampler".to_owned(), Action::Adjusted, detail));
        }
    }
    warnings
}

/// Whether a checkpoint is called so: by name, file, title (`folder/name.safetensors [hash]`) or hash.
fn is_checkpoint(asked: &str, name: &str, hash: &str) -> bool {
    let file = asked.split(" [").next().unwrap_or(asked);
    let file = file.rsplit(['/', '\\']).next().unwrap_or(file);
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let is_hash = !hash.is_empty() && (asked.contains(hash) || hash.starts_with(asked));
    is_hash || [file, stem].iter().any(|text| text.eq_ignore_ascii_case(name))
}

fn warning(field: String, action: Action, detail: String) -> pb::Warning {
    pb::Warning { field, action: action.into(), detail, target: String::new() }
}

/// The error that an answer with an error status is. What a caller did wrong is often a 500.
fn failure(answer: &Answer) -> Error {
    let body: ErrorAnswer = answer.json().unwrap_or_default();
    let class = body.error.filter(|class| !class.is_empty());
    let raised = body.errors.filter(|text| !text.is_empty());
    let text = match (body.detail, raised, &class) {
        (Value::String(detail), ..) if !detail.is_empty() => detail,
        (Value::Array(problems), ..) => {
            // Without the values that pydantic puts beside: a prompt is one of them.
            let text = |problem: &Value| {
                let field = problem.get("loc")?.as_array()?.last()?;
                let field = field.as_str().map_or_else(|| field.to_string(), str::to_owned);
                Some(format!("{field}: {}", problem.get("msg")?.as_str()?))
            };
            problems.iter().filter_map(text).collect::<Vec<_>>().join(", ")
        }
        (_, Some(text), _) => text,
        (_, None, Some(class)) => class.clone(),
        (_, None, None) => answer.plain_text(),
    };
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    let wrong = [
        ("Sampler not found", "sampler"),
        ("Invalid encoded image", "image"),
        ("could not find upscaler named", "upscaler_1"),
    ];
    if let Some((_, param)) = wrong.iter().find(|(words, _)| text.contains(words)) {
        error.kind = ErrorKind::InvalidRequest;
        error.status = 400;
        error.param = Some((*param).to_owned());
        error.billing = BillingClass::RejectedUnbilled;
    } else if class.as_deref() == Some("OutOfMemoryError") {
        // The next job may well fit, as others share the card's memory; and this one has made nothing.
        error.kind = ErrorKind::Unavailable;
        error.billing = BillingClass::RejectedUnbilled;
    }
    // At stable-diffusion.cpp it is the message.
    error.error_type = class.filter(|class| !class.contains(' '));
    error.code = error.kind.openai_code().map(str::to_owned);
    error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, StatusCode};

    use super::{super::AnswerBody, *};

    fn job() -> Job {
        let request = pb::ImageRequest { prompt: "a red fox".into(), ..Default::default() };
        Job { now: UNIX_EPOCH + Duration::from_nanos(1), ..Job::new(request, "http://127.0.0.1:7860") }
    }

    fn watched(status: u16, json: &str) -> (Option<(String, Option<f64>)>, bool) {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: AnswerBody::Json { skeleton: json.to_owned().into(), images: Vec::new() },
            address: String::new(),
            note: String::new(),
        };
        let watched = Automatic1111.watched(&job(), answer);
        for request in &watched.cancel {
            assert_eq!(request.uri(), "http://127.0.0.1:7860/sdapi/v1/interrupt");
        }
        let progress = watched.progress.map(|progress| (progress.state, progress.fraction));
        (progress, !watched.cancel.is_empty())
    }

    #[test]
    fn a_job_is_asked_for_by_the_id_that_it_was_given() {
        let job = job();
        let json = |request: Request<Pieces>| -> Value {
            serde_json::from_slice(&request.into_body().into_bytes()).unwrap()
        };
        let watch = Automatic1111.watch(&job).unwrap();
        assert_eq!(watch.uri(), "http://127.0.0.1:7860/internal/progress");
        assert_eq!(json(watch)["id_task"], json(Automatic1111.start(&job).unwrap())["force_task_id"]);
    }

    #[test]
    fn no_two_jobs_share_an_id() {
        let mut later = job();
        later.now += Duration::from_nanos(1);
        let mut other = job();
        other.request.seed = Some(1);
        assert_eq!(task_id(&job()), task_id(&job()));
        assert_ne!(task_id(&job()), task_id(&later));
        assert_ne!(task_id(&job()), task_id(&other));
    }

    #[test]
    fn only_a_job_that_surely_still_runs_may_be_interrupted() {
        let running = |fraction| Some(("running".to_owned(), fraction));
        for (json, expected) in [
            (r#"{"active": true, "progress": 0.25, "eta": 30.0}"#, (running(Some(0.25)), true)),
            (r#"{"active": true, "progress": 0.9, "eta": 4.9}"#, (running(Some(0.9)), false)),
            (r#"{"active": true, "progress": 0, "eta": null}"#, (running(Some(0.0)), false)),
            (r#"{"active": true}"#, (running(None), false)),
            (r#"{"active": false, "queued": true}"#, (Some(("queued".to_owned(), None)), false)),
            // SD.Next tells here of whichever job runs.
            (r#"{"active": false, "queued": false, "progress": 0.5, "eta": 30.0}"#, (None, false)),
            (r#"{"detail": "Not Found"}"#, (None, false)),
            ("[]", (None, false)),
        ] {
            assert_eq!(watched(200, json), expected, "{json}");
        }
        assert_eq!(watched(500, r#"{"active": true, "eta": 30.0}"#), (None, false));
    }
}
