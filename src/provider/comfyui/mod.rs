//! ComfyUI's own API: inputs are uploaded, a graph of nodes is queued, asked for until it is done, and its image
//! downloaded.
//!
//! Facts are from ComfyUI's `server.py` and `execution.py`. The graph is a workflow with slots (`workflow.rs`): the
//! operator's own, or one of three for a checkpoint. A graph that ComfyUI has made before is not made again; its
//! history names the files of that time.

mod failure;
mod workflow;

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use bytes::Bytes;
use http::{HeaderName, Method, Request, header::AUTHORIZATION};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::{
    failure::{Status, failed, failure, problems},
    workflow::{Workflow, warning},
};
use super::{
    Answer, AnswerBody, Job, Next, Output, Provider, Step, bytes_of, catalog, finish, is_path_segment,
    json_request, mask_as, multipart::Form, poll,
};
use crate::{
    digest::Framed,
    error::{Error, ErrorKind, Result},
    images::{Pieces, probe},
    pb::{self, MaskPolarity, warning::Action},
};

const NAME: &str = "comfyui";

const CREDENTIAL: (HeaderName, &str) = (AUTHORIZATION, "Bearer ");

/// Where uploads go among the server's inputs.
const FOLDER: &str = "imagegate";

const POLL_EVERY: Duration = Duration::from_millis(500);

/// The queue's answer holds every graph that waits, so that who stands far back asks less often: at most this long.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("comfyui")));

/// The provider `comfyui`.
#[derive(Debug)]
pub struct ComfyUi;

/// What the later steps of a job must know.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Note {
    /// Where the inputs lie at the server; the mask first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    /// What the operator should know of the workflow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remarks: Vec<String>,
}

/// Where a job was last seen.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Queued,
    Running,
    /// In no queue: it is done, or not known any more.
    Left,
}

#[derive(Deserialize)]
struct Uploaded {
    name: String,
    #[serde(default)]
    subfolder: String,
}

#[derive(Deserialize)]
struct Submitted {
    prompt_id: String,
    #[serde(default)]
    node_errors: Value,
}

/// Jobs as lists that begin with their number in the order and their id.
#[derive(Deserialize)]
struct Queue {
    queue_running: Vec<Vec<Value>>,
    queue_pending: Vec<Vec<Value>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    outputs: BTreeMap<String, Value>,
    /// Old versions have none.
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct File {
    filename: String,
    #[serde(default)]
    subfolder: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Provider for ComfyUi {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    /// None: the server is somebody's own.
    fn default_base_url(&self) -> &'static str {
        ""
    }

    fn image_members(&self) -> &'static [&'static str] {
        &[]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        if job.base_url.is_empty() {
            let message = format!("{NAME} needs a base_url, such as http://127.0.0.1:8188");
            return Err(Error::invalid("base_url", message));
        }
        if job.request.wanted() > 1 {
            return Err(Error::unsupported("n", format!("{NAME} makes one image a call")));
        }
        // Whatever the request and the workflow do not have in common shows before anything is sent.
        Workflow::of(job)?.fill(&vec![String::new(); count(job)])?;
        submit(job, &[])
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        let note: Note = serde_json::from_str(&answer.note).unwrap_or_default();
        let path = answer.address.strip_prefix(&job.base_url).unwrap_or_default();
        if !answer.status.is_success() {
            return match poll::ask_again(job, CREDENTIAL, &answer).filter(|_| note.state.is_some()) {
                Some(step) => Ok(step?.at("running", None).or_cancel(note.cancel(job)?).into()),
                // Of a graph that was made before, the files may have been cleared away since.
                None if answer.status == 404 && path.starts_with("/view?") => {
                    Err(failed(&answer, ErrorKind::NotFound, 404, "the saved image is not there any more"))
                }
                None => Err(failure(&answer)),
            };
        }
        let step = match path {
            "/upload/image" => uploaded(job, &answer, note),
            "/prompt" => submitted(job, &answer),
            "/queue" => queue(job, &answer, note),
            _ if path.starts_with("/history/") => history(job, &answer, note),
            _ => image(job, &answer, note),
        };
        step.map_err(|error| if error.provider.is_empty() { answer.own(NAME, error) } else { error })
    }
}

impl Note {
    fn text(&self) -> String {
        json!(self).to_string()
    }

    /// Asks for something that belongs to the job.
    fn ask(&self, job: &Job, path: &str, after: Duration) -> Result<Next> {
        let next = Next::new(after, finish(job.call(Method::GET, path)?, Pieces::default())?);
        Ok(Next { note: self.text(), ..next.or_cancel(self.cancel(job)?) })
    }

    /// What gives the job up. Servers from before September 2025 (pull request 9607) interrupt whatever runs, whichever
    /// job is named: so none is told to before the job itself was seen running.
    fn cancel(&self, job: &Job) -> Result<Option<Request<Pieces>>> {
        let (path, body) = match self.state {
            Some(State::Queued) => ("/queue", json!({"delete": [self.id]})),
            Some(State::Running) => ("/interrupt", json!({"prompt_id": self.id})),
            Some(State::Left) | None => return Ok(None),
        };
        let fields = body.as_object().cloned().unwrap_or_default();
        json_request(job.call(Method::POST, path)?, &fields).map(Some)
    }
}

/// How many files a job uploads.
fn count(job: &Job) -> usize {
    usize::from(job.request.mask.is_some()) + job.request.inputs.len()
}

/// The upload of the next file, or the job itself when all of them are there.
fn submit(job: &Job, files: &[String]) -> Result<Request<Pieces>> {
    if files.len() < count(job) {
        return upload(job, files.len());
    }
    let graph = Workflow::of(job)?.fill(files)?;
    json_request(job.call(Method::POST, "/prompt")?, &Map::from_iter([("prompt".to_owned(), graph)]))
}

/// The mask goes first, as it may have to be drawn anew: that takes long, and the first request may.
fn upload(job: &Job, number: usize) -> Result<Request<Pieces>> {
    let data: Bytes = match (&job.request.mask, number) {
        // `LoadImageMask` reads a colour as it is, so that no image has to be given an alpha channel.
        (Some(mask), 0) => mask_as(mask, MaskPolarity::WhiteEdits)?,
        (Some(_), number) => bytes_of(&job.request.inputs[number - 1])?,
        (None, number) => bytes_of(&job.request.inputs[number])?,
    };
    // Named by what is in it, it overwrites nothing, and what is there already is not kept twice.
    let digest = Framed::from_iter([&data]).finish();
    let name: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    Form::new()
        .text("type", "input")
        .text("subfolder", FOLDER)
        .image("image", &name, data)
        .into_request(job.call(Method::POST, "/upload/image")?)
}

fn uploaded(job: &Job, answer: &Answer, mut note: Note) -> Result<Step> {
    let file: Uploaded = answer.json()?;
    let folder = if file.subfolder.is_empty() { String::new() } else { format!("{}/", file.subfolder) };
    note.files.push(folder + &file.name);
    let next = Next::new(Duration::ZERO, submit(job, &note.files)?).at("uploading", None);
    Ok(Next { note: note.text(), ..next }.into())
}

fn submitted(job: &Job, answer: &Answer) -> Result<Step> {
    let submitted: Submitted = answer.json()?;
    if !is_path_segment(&submitted.prompt_id) {
        return Err(Error::bad_answer("the answer names no job"));
    }
    // Outputs that are invalid are left out as long as one is valid.
    let left_out =
        problems(&submitted.node_errors).map(|problems| format!("ComfyUI left out outputs: {problems}"));
    let note = Note {
        id: submitted.prompt_id,
        state: Some(State::Queued),
        remarks: left_out.into_iter().collect(),
        ..Default::default()
    };
    Ok(note.ask(job, "/queue", Duration::ZERO)?.at("queued", None).into())
}

/// Who is in no queue is asked for at once, everybody else after a while.
fn queue(job: &Job, answer: &Answer, mut note: Note) -> Result<Step> {
    let queue: Queue = answer.json()?;
    let is_ours = |entry: &&Vec<Value>| entry.get(1).and_then(Value::as_str) == Some(&note.id);
    let number = |entry: &Vec<Value>| entry.first().and_then(Value::as_f64).unwrap_or_default();
    let waiting = queue.queue_pending.iter().find(is_ours).map(number);
    let (state, text, pause) = if queue.queue_running.iter().any(|entry| is_ours(&entry)) {
        (State::Running, "running".to_owned(), POLL_EVERY)
    } else if let Some(ours) = waiting {
        let before = queue.queue_pending.iter().filter(|&entry| number(entry) < ours).count();
        let ahead = queue.queue_running.len() + before;
        let pause = POLL_EVERY * u32::try_from(ahead.max(1)).unwrap_or(u32::MAX);
        (State::Queued, format!("queued behind {ahead}"), pause.min(LONGEST_PAUSE))
    } else {
        (State::Left, "fetching".to_owned(), Duration::ZERO)
    };
    note.state = Some(state);
    Ok(note.ask(job, &format!("/history/{}", note.id), pause)?.at(&text, None).into())
}

fn history(job: &Job, answer: &Answer, mut note: Note) -> Result<Step> {
    let mut entries: BTreeMap<String, Entry> = answer.json()?;
    let Some(entry) = entries.remove(&note.id) else {
        if note.state == Some(State::Left) {
            return Err(failed(answer, ErrorKind::NotFound, 404, "the job is not known any more"));
        }
        let state = if note.state == Some(State::Running) { "running" } else { "queued" };
        return Ok(note.ask(job, "/queue", Duration::ZERO)?.at(state, None).into());
    };
    if let Some(status) = entry.status.filter(Status::is_error) {
        return Err(status.failure(answer));
    }
    let files = saved(&entry.outputs);
    let Some(file) = files.first() else {
        return Err(Error::bad_answer("the finished job has saved no image"));
    };
    if files.len() > 1 {
        note.remarks.push(format!("{} images were saved, of which the first is given", files.len()));
    }
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs([("filename", &file.filename), ("subfolder", &file.subfolder), ("type", &file.kind)]);
    note.state = Some(State::Left);
    Ok(note.ask(job, &format!("/view?{}", query.finish()), Duration::ZERO)?.at("fetching", None).into())
}

/// The images that were saved, in the order of their nodes' numbers; previews are none.
fn saved(outputs: &BTreeMap<String, Value>) -> Vec<File> {
    let mut nodes: Vec<_> = outputs.iter().collect();
    nodes.sort_by_key(|(id, _)| id.parse().unwrap_or(u64::MAX));
    nodes
        .into_iter()
        .filter_map(|(_, output)| output["images"].as_array())
        .flatten()
        .filter_map(|file| File::deserialize(file).ok())
        .filter(|file| file.kind == "output")
        .collect()
}

fn image(job: &Job, answer: &Answer, note: Note) -> Result<Step> {
    let data = match &answer.body {
        AnswerBody::Raw(data) if probe::sniff(data).is_some() => data.clone(),
        _ => {
            return Err(Error::bad_answer(format!(
                "the saved file is {}, not an image",
                answer.content_type()
            )));
        }
    };
    let workflow = Workflow::of(job)?;
    let remarks = note.remarks.into_iter().map(|remark| warning("comfyui_workflow", Action::Notice, remark));
    Ok(Step::Done(Output {
        images: vec![pb::Image { data, seed: workflow.seed(), ..Default::default() }],
        upstream_request_id: note.id,
        warnings: workflow.dropped().into_iter().chain(remarks).collect(),
        ..Default::default()
    }))
}
