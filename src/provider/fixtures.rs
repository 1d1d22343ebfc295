//! Runs every case under `tests/fixtures/providers/<provider>/<case>/` through its provider.
//!
//! A case is a job (`job.json`), the requests it must make (`request-1.json`, ...), the answers to them
//! (`answer-1.json`, ...), and what comes of it: `reply.json` or `error.json`. Everything is compared exactly.

use std::{fs, path::Path, path::PathBuf};

use base64_simd::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::*;
use crate::params::from_json;

/// A job as its file spells it; enums by their names in the proto, without prefix and in lower case.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct JobFile {
    base_url: Option<String>,
    keyless: bool,
    token: Option<String>,
    now_unix_s: u64,
    options: HashMap<String, String>,
    operation: String,
    model: String,
    prompt: String,
    negative_prompt: String,
    weighted_prompts: Vec<(String, f32)>,
    n: Option<u32>,
    size: Option<String>,
    quality: String,
    style: String,
    seed: Option<u64>,
    steps: Option<u32>,
    guidance: Option<f32>,
    sampler: String,
    scheduler: String,
    strength: Option<f32>,
    /// Base64, or an address.
    inputs: Vec<String>,
    mask: Option<(String, String)>,
    search_prompt: String,
    /// left, right, up, down
    outpaint: Option<[u32; 4]>,
    upscale: Option<UpscaleFile>,
    /// kind, strength
    control: Option<(String, Option<f32>)>,
    input_fidelity: String,
    moderation: String,
    format: String,
    compression: Option<u32>,
    background: String,
    end_user: String,
    partial_images: Option<u32>,
    extras: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct UpscaleFile {
    mode: String,
    factor: Option<f32>,
    width: u32,
    height: u32,
    creativity: Option<f32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerFile {
    status: u16,
    #[serde(default)]
    headers: HashMap<String, String>,
    json: Option<Value>,
    text: Option<String>,
    base64: Option<String>,
}

/// What an enum's name in a file means; none is the default.
fn named<E: Default>(from_str_name: fn(&str) -> Option<E>, prefix: &str, name: &str) -> E {
    if name.is_empty() {
        return E::default();
    }
    from_str_name(&format!("{prefix}_{}", name.to_uppercase())).unwrap_or_else(|| panic!("{prefix} {name}"))
}

fn size(text: &str) -> pb::Size {
    use pb::size::Size;
    let size = if text == "auto" {
        Size::Auto(true)
    } else if let Some((width, height)) = text.split_once(':') {
        Size::AspectRatio(pb::AspectRatio { width: width.parse().unwrap(), height: height.parse().unwrap() })
    } else {
        let (width, height) = text.split_once('x').unwrap();
        Size::Dimensions(pb::Dimensions { width: width.parse().unwrap(), height: height.parse().unwrap() })
    };
    pb::Size { size: Some(size) }
}

fn input(text: &str) -> pb::InputImage {
    use pb::input_image::Source;
    let source = match text {
        url if url.starts_with("https:") => Source::Url(url.to_owned()),
        base64 => Source::Data(decode(base64)),
    };
    pb::InputImage { source: Some(source), ..Default::default() }
}

fn decode(base64: &str) -> Bytes {
    BASE64.decode_to_vec(base64).unwrap().into()
}

impl JobFile {
    fn into_job(self, provider: &dyn Provider) -> Job {
        let request = pb::ImageRequest {
            operation: named(pb::Operation::from_str_name, "OPERATION", &self.operation).into(),
            model: self.model,
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            weighted_prompts: self
                .weighted_prompts
                .into_iter()
                .map(|(text, weight)| pb::WeightedPrompt { text, weight })
                .collect(),
            n: self.n,
            size: self.size.as_deref().map(size),
            quality: named(pb::Quality::from_str_name, "QUALITY", &self.quality).into(),
            style: self.style,
            seed: self.seed,
            steps: self.steps,
            guidance: self.guidance,
            sampler: self.sampler,
            scheduler: self.scheduler,
            strength: self.strength,
            inputs: self.inputs.iter().map(|text| input(text)).collect(),
            mask: self.mask.map(|(polarity, data)| pb::Mask {
                data: decode(&data),
                polarity: named(pb::MaskPolarity::from_str_name, "MASK_POLARITY", &polarity).into(),
            }),
            search_prompt: self.search_prompt,
            outpaint: self.outpaint.map(|[left, right, up, down]| pb::Outpaint {
                left,
                right,
                up,
                down,
                creativity: None,
            }),
            upscale: self.upscale.map(|upscale| pb::Upscale {
                mode: named(pb::upscale::Mode::from_str_name, "MODE", &upscale.mode).into(),
                factor: upscale.factor,
                target: (upscale.width > 0)
                    .then_some(pb::Dimensions { width: upscale.width, height: upscale.height }),
                creativity: upscale.creativity,
            }),
            control: self.control.map(|(kind, strength)| pb::Control {
                kind: named(pb::control::Kind::from_str_name, "KIND", &kind).into(),
                strength,
            }),
            input_fidelity: named(pb::InputFidelity::from_str_name, "INPUT_FIDELITY", &self.input_fidelity)
                .into(),
            output: Some(pb::Output {
                format: named(pb::ImageFormat::from_str_name, "IMAGE_FORMAT", &self.format).into(),
                compression: self.compression,
                background: named(pb::Background::from_str_name, "BACKGROUND", &self.background).into(),
                ..Default::default()
            }),
            moderation: named(pb::Moderation::from_str_name, "MODERATION", &self.moderation).into(),
            end_user: self.end_user,
            partial_images: self.partial_images,
            provider_extras: [(
                provider.record().name.clone(),
                prost_types::Struct {
                    fields: self
                        .extras
                        .iter()
                        .map(|(name, value)| (name.clone(), from_json(value)))
                        .collect(),
                },
            )]
            .into(),
            ..Default::default()
        };
        let base_url = self.base_url.unwrap_or_else(|| provider.default_base_url().to_owned());
        // Virtual keys can only have what the data file lists.
        let unknown = self.options.keys().find(|name| !provider.record().settings.contains(name));
        assert_eq!(unknown, None, "not among the settings of {}", provider.record().name);
        Job {
            api_key: (!self.keyless).then(|| "key".into()),
            token: self.token.map(Into::into),
            options: self.options,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(self.now_unix_s),
            ..Job::new(request, base_url)
        }
    }
}

impl AnswerFile {
    fn into_answer(self, image_members: &[&str], address: String, note: String) -> Answer {
        let (body, media_type) = match (self.json, self.text, self.base64) {
            (Some(json), None, None) => (json_body(json, image_members), "application/json"),
            (None, Some(text), None) => (AnswerBody::Raw(text.into()), "text/plain"),
            (None, None, Some(data)) => (AnswerBody::Raw(decode(&data)), "image/png"),
            _ => panic!("an answer has one of json, text and base64"),
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        for (name, value) in &self.headers {
            let name: http::HeaderName = name.parse().unwrap();
            headers.insert(name, value.parse().unwrap());
        }
        Answer { status: StatusCode::from_u16(self.status).unwrap(), headers, body, address, note }
    }
}

/// A body as the driver hands it over: with its images taken out.
pub(super) fn json_body(mut json: Value, image_members: &[&str]) -> AnswerBody {
    fn take(value: &mut Value, is_image: bool, members: &[&str], images: &mut Vec<Result<Bytes, BadBase64>>) {
        match value {
            Value::String(text) if is_image => {
                let place = format!("{IMAGE_REF_PREFIX}{}", images.len());
                let data = BASE64.decode_to_vec(text.as_bytes());
                images.push(data.map(Bytes::from).map_err(|_| BadBase64));
                *text = place;
            }
            Value::Array(items) => items.iter_mut().for_each(|item| take(item, is_image, members, images)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    take(value, members.contains(&name.as_str()), members, images);
                }
            }
            _ => {}
        }
    }
    let mut images = Vec::new();
    take(&mut json, false, image_members, &mut images);
    AnswerBody::Json { skeleton: serde_json::to_vec(&json).unwrap().into(), images }
}

/// A request as its file spells it. The credential is not shown, only that it is marked as one.
fn request_json(request: http::Request<Pieces>, base_url: &str) -> Value {
    let (parts, body) = request.into_parts();
    let body = body.into_bytes();
    let mut headers = Map::new();
    let mut boundary = None;
    for (name, value) in &parts.headers {
        let text = value.to_str().unwrap();
        let shown = if name == AUTHORIZATION || value.is_sensitive() {
            assert!(value.is_sensitive(), "the credential");
            match text {
                "Bearer key" | "key" => "(sensitive)",
                "Key key" => "(sensitive) Key",
                "Basic a2V5" => "(sensitive) Basic",
                other => panic!("the credential is {other}"),
            }
        } else if name == http::header::CONTENT_LENGTH {
            assert_eq!(text, body.len().to_string(), "content-length");
            continue;
        } else if let Some((media_type, said)) = text.split_once("; boundary=") {
            boundary = Some(format!("--{said}"));
            media_type
        } else {
            text
        };
        headers.insert(name.to_string(), shown.into());
    }
    let uri = parts.uri.to_string();
    let mut file = json!({
        "method": parts.method.as_str(),
        "path": uri.strip_prefix(base_url).unwrap_or(&uri),
        "headers": headers,
    });
    if let Some(boundary) = boundary {
        file["parts"] = form_json(&body, boundary.as_bytes());
    } else if !body.is_empty() {
        file["json"] = serde_json::from_slice(&body).unwrap();
    }
    file
}

fn form_json(body: &[u8], boundary: &[u8]) -> Value {
    let find = |from: usize, what: &[u8]| {
        body[from..].windows(what.len()).position(|window| window == what).map(|at| from + at)
    };
    let mut parts = Vec::new();
    let mut start = 0;
    while let Some(end) = find(start + boundary.len(), boundary) {
        // Between the boundaries, without the line breaks around.
        let part = &body[start + boundary.len() + 2..end - 2];
        let head = part.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let (head, data) = (std::str::from_utf8(&part[..head]).unwrap(), &part[head + 4..]);
        let quoted = |name: &str| {
            let (_, rest) = head.split_once(&format!(" {name}=\""))?;
            rest.split_once('"').map(|(value, _)| value)
        };
        let name = quoted("name").unwrap();
        parts.push(match (quoted("filename"), head.split_once("content-type: ")) {
            (Some(filename), Some((_, media_type))) => json!({
                "name": name, "filename": filename, "content_type": media_type,
                "base64": BASE64.encode_to_string(data),
            }),
            (None, None) => json!({"name": name, "text": std::str::from_utf8(data).unwrap()}),
            _ => panic!("a file has a name and a type: {head}"),
        });
        start = end;
    }
    Value::Array(parts)
}

fn reply_json(output: &Output, urls: &[String]) -> Value {
    let images = output.images.iter().map(|image| {
        let mut shown = json!({"base64": BASE64.encode_to_string(&image.data)});
        if let Some(seed) = image.seed {
            shown["seed"] = seed.into();
        }
        if !image.revised_prompt.is_empty() {
            shown["revised_prompt"] = image.revised_prompt.as_str().into();
        }
        if image.finish_reason() != pb::FinishReason::Unspecified {
            shown["finish_reason"] = image.finish_reason().as_str_name().into();
        }
        shown
    });
    let mut reply = json!({"images": images.collect::<Vec<_>>()});
    if !urls.is_empty() {
        reply["fetch"] = urls.into();
    }
    if let Some(usage) = &output.usage {
        reply["usage"] = json!({
            "input_text_tokens": usage.input_text_tokens, "input_image_tokens": usage.input_image_tokens,
            "output_text_tokens": usage.output_text_tokens, "output_image_tokens": usage.output_image_tokens,
        });
        if let Some(credits) = usage.credits {
            reply["usage"]["credits"] = credits.into();
        }
    }
    if let Some(usd) = output.reported_cost_usd {
        reply["reported_cost_usd"] = usd.into();
    }
    if !output.upstream_request_id.is_empty() {
        reply["upstream_request_id"] = output.upstream_request_id.as_str().into();
    }
    if !output.warnings.is_empty() {
        let warning = |w: &pb::Warning| json!({"field": w.field, "action": w.action().as_str_name(), "detail": w.detail});
        reply["warnings"] = output.warnings.iter().map(warning).collect();
    }
    reply
}

fn error_json(error: &Error) -> Value {
    let wait = error.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap());
    json!({
        "kind": error.kind.name(), "status": error.status, "message": error.message, "provider": error.provider,
        "type": error.error_type, "code": error.code, "param": error.param, "retry_after_ms": wait,
        "billing": error.billing.name(), "upstream_request_id": error.upstream_request_id,
    })
}

/// What a case makes, by file name.
fn run(provider: &dyn Provider, case: &Path) -> Vec<(String, Value)> {
    let read = |name: &str| fs::read_to_string(case.join(name)).unwrap_or_else(|_| panic!("no {name}"));
    let job: JobFile = serde_json::from_str(&read("job.json")).unwrap();
    let job = job.into_job(provider);
    let mut made = Vec::new();
    let mut next = provider.start(&job).map(|request| Next::new(Duration::ZERO, request).into());
    for turn in 1.. {
        let Next { after, request, progress, cancel, note } = match next {
            Ok(Step::Next(next)) => *next,
            Ok(Step::Done(output)) => {
                made.push(("reply.json".to_owned(), reply_json(&output, &[])));
                break;
            }
            Ok(Step::Fetch { urls, output }) => {
                made.push(("reply.json".to_owned(), reply_json(&output, &urls)));
                break;
            }
            Err(error) => {
                made.push(("error.json".to_owned(), error_json(&error)));
                break;
            }
        };
        let address = request.uri().to_string();
        let mut shown = request_json(request, &job.base_url);
        if !after.is_zero() {
            shown["after_ms"] = u64::try_from(after.as_millis()).unwrap().into();
        }
        if let Some(progress) = progress {
            shown["progress"] = json!([progress.state, progress.fraction]);
        }
        let mut cancel: Vec<_> = cancel.into_iter().map(|one| request_json(one, &job.base_url)).collect();
        match cancel.len() {
            0 => {}
            1 => shown["cancel"] = cancel.remove(0),
            _ => shown["cancel"] = cancel.into(),
        }
        if !note.is_empty() {
            shown["note"] = note.as_str().into();
        }
        made.push((format!("request-{turn}.json"), shown));
        let answer: AnswerFile = serde_json::from_str(&read(&format!("answer-{turn}.json"))).unwrap();
        next = provider.advance(&job, answer.into_answer(provider.image_members(), address, note));
    }
    made
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// A job that goes well, for tests that need any such.
pub(super) struct Success {
    /// As its file spells it.
    pub(super) job: Job,
    answers: Vec<String>,
}

impl Success {
    /// What another job ends with if it gets this one's answers; none if it cannot read them.
    pub(super) fn end(&self, provider: &dyn Provider, job: &Job) -> Option<Output> {
        let mut next = Next::new(Duration::ZERO, provider.start(job).ok()?);
        for answer in &self.answers {
            let answer: AnswerFile = serde_json::from_str(answer).unwrap();
            let address = next.request.uri().to_string();
            let answer = answer.into_answer(provider.image_members(), address, next.note);
            next = match provider.advance(job, answer).ok()? {
                Step::Done(output) | Step::Fetch { output, .. } => return Some(output),
                Step::Next(next) => *next,
            };
        }
        None
    }
}

/// The cases of a provider that end well, those with the fewest settings first.
pub(super) fn successes(provider: &dyn Provider) -> Vec<Success> {
    let cases = directories(&root().join(&provider.record().name)).into_iter();
    let mut found: Vec<_> = cases
        .filter(|case| case.join("reply.json").exists() && case.join("answer-1.json").exists())
        .map(|case| {
            let job = fs::read_to_string(case.join("job.json")).unwrap();
            let job: JobFile = serde_json::from_str(&job).unwrap();
            let answer = |turn| fs::read_to_string(case.join(format!("answer-{turn}.json"))).ok();
            Success { job: job.into_job(provider), answers: (1..).map_while(answer).collect() }
        })
        .collect();
    found.sort_by_key(|success| success.job.options.len());
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/providers")
}

#[test]
fn every_case_does_exactly_what_its_files_say() {
    let root = root();
    let mut problems = Vec::new();
    let mut cases = 0;
    for provider in all() {
        for case in directories(&root.join(&provider.record().name)) {
            cases += 1;
            let name = case.strip_prefix(&root).unwrap().display().to_string();
            let made = run(&*provider, &case);
            for (file, made) in &made {
                let text = fs::read_to_string(case.join(file)).unwrap_or_else(|_| "null".to_owned());
                let expected: Value = serde_json::from_str(&text).unwrap();
                if *made != expected {
                    problems.push(format!("{name}/{file}\n  expected {expected}\n  made     {made}"));
                }
            }
            for file in directories(&case) {
                let file = file.file_name().unwrap().to_string_lossy().into_owned();
                let known = file == "job.json" || file.starts_with("answer-");
                if !known && made.iter().all(|(name, _)| *name != file) {
                    problems.push(format!("{name}/{file} is expected, but was not made"));
                }
            }
        }
    }
    assert!(cases > 0, "no case found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
