//! Any server that speaks OpenAI's dialect: LocalAI, stable-diffusion.cpp, vLLM and others.
//!
//! Nothing is known of its models, so that everything is passed on. Fields beyond OpenAI's have the names that
//! vLLM-Omni gives them (its page "Image Generation API"); LocalAI and stable-diffusion.cpp ignore what they do not
//! know. Whatever was asked for, an answer may carry bytes or addresses.

use std::sync::LazyLock;

use http::{Method, Request};
use serde_json::{Map, Value};

use super::{Answer, Job, Provider, Step, catalog, decimal, json_request, openai};
use crate::{
    error::{Error, Result},
    images::Pieces,
    pb::{self, Operation},
};

const NAME: &str = "openai-compatible";

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("openai_compatible")));

/// The provider `openai-compatible`.
#[derive(Debug)]
pub struct OpenAiCompatible;

impl Provider for OpenAiCompatible {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    /// None: the server is somebody's own.
    fn default_base_url(&self) -> &'static str {
        ""
    }

    fn image_members(&self) -> &'static [&'static str] {
        openai::OpenAi.image_members()
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        if job.base_url.is_empty() {
            let message = format!("{NAME} needs a base_url, such as http://127.0.0.1:8080/v1");
            return Err(Error::invalid("base_url", message));
        }
        match job.request.effective_operation() {
            Operation::Generate => json_request(job.call(Method::POST, "/images/generations")?, &fields(job)),
            Operation::Edit | Operation::Inpaint => {
                openai::edit_form(job, &fields(job))?.into_request(job.call(Method::POST, "/images/edits")?)
            }
            other => {
                Err(Error::unsupported("operation", format!("{NAME} has no operation {:?}", other.name())))
            }
        }
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        openai::read_answer(NAME, job, answer)
    }
}

/// OpenAI's fields and those of diffusion models. The caller's own extras win.
fn fields(job: &Job) -> Map<String, Value> {
    let request = &job.request;
    let mut fields = openai::fields(NAME, job);
    let mut put = |name: &str, value: Value| _ = fields.entry(name).or_insert(value);
    // A server that keeps its images gives addresses otherwise.
    put("response_format", "b64_json".into());
    if !request.style.is_empty() {
        put("style", request.style.as_str().into());
    }
    if !request.negative_prompt.is_empty() {
        put("negative_prompt", request.negative_prompt.as_str().into());
    }
    if let Some(seed) = request.seed {
        put("seed", seed.into());
    }
    if let Some(steps) = request.steps {
        put("num_inference_steps", steps.into());
    }
    if let Some(guidance) = request.guidance {
        put("guidance_scale", decimal(guidance).into());
    }
    fields
}
