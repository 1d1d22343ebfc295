//! What becomes of random requests at every model of every provider: nothing is lost in silence.
//!
//! A request is fitted as the router does it and turned into upstream requests as the worker does it. What was
//! asked for is then either in these, which shows by their being others without it, or in a warning. One thousand
//! requests a model with `cargo test --release`, a part of them without optimisation; of each some fields are looked at.

mod draw;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use serde_json::Value;

use self::draw::{Draws, Field};
use super::{
    fixtures::{Success, successes},
    *,
};
use crate::{
    config::{file::RetiredModels, spec::ParamsPolicy},
    images::convert::Wish,
    params,
    pb::{size::Size as Kind, size_rule::Rule, warning::Action},
    route::fit,
};

const REQUESTS: usize = if cfg!(debug_assertions) { 250 } else { 1000 };

/// Fields of each request that are looked at.
const LOOKS: usize = 2;

/// The provider whose first request is an upload of the inputs, and nothing else.
const UPLOADS_FIRST: &str = "comfyui";

/// One provider: its record, and how it is driven. The sandbox speaks no HTTP.
struct Subject {
    record: Arc<pb::Provider>,
    http: Option<Http>,
}

struct Http {
    provider: Arc<dyn Provider>,
    successes: Vec<Success>,
}

/// What is sent for a request, and what is said about it.
struct Sent {
    asked: Vec<Asked>,
    wish: Wish,
    calls: Vec<pb::ImageRequest>,
    warnings: Vec<pb::Warning>,
}

/// One upstream call.
#[derive(Debug, PartialEq)]
enum Asked {
    Http { line: String, headers: BTreeMap<String, Vec<u8>>, body: Bytes },
    Message(Box<pb::ImageRequest>),
}

enum Refused {
    /// By the router.
    Fit(Error),
    /// By the provider's code.
    Start(Error),
}

impl Subject {
    fn all() -> Vec<Self> {
        let record = catalog::embedded(data!("sandbox"));
        let sandbox = Self { record: record.into(), http: None };
        let of = |provider: Arc<dyn Provider>| Self {
            record: provider.record().clone().into(),
            http: Some(Http { successes: successes(&*provider), provider }),
        };
        all().into_iter().map(of).chain([sandbox]).collect()
    }

    /// A model's own id, or one that only this entry describes.
    fn model(&self, entry: &str) -> String {
        let Some(prefix) = entry.strip_suffix('*') else { return entry.to_owned() };
        let plain = pb::ImageRequest { prompt: "a boat".into(), ..Default::default() };
        let ids = ["made-up", "made-up/model"].map(|id| format!("{prefix}{id}"));
        let is_one = |id: &&String| {
            let named = pb::ImageRequest { model: (*id).clone(), ..plain.clone() };
            let error = match self.send(&named) {
                Ok(_) => return true,
                Err(Refused::Fit(error) | Refused::Start(error)) => error,
            };
            error.param.as_deref() != Some("model")
        };
        ids.iter().find(is_one).unwrap_or(&ids[0]).clone()
    }

    fn send(&self, request: &pb::ImageRequest) -> std::result::Result<Sent, Refused> {
        let fitted = fit::fit(request, &self.record, ParamsPolicy::Nearest, RetiredModels::Warn);
        let fitted = fitted.map_err(Refused::Fit)?;
        let asked = fitted.calls.iter().map(|call| self.start(call)).collect::<Result<Vec<_>>>();
        Ok(Sent {
            asked: asked.map_err(Refused::Start)?,
            wish: fitted.wish,
            calls: fitted.calls,
            warnings: fitted.warnings,
        })
    }

    fn start(&self, call: &pb::ImageRequest) -> Result<Asked> {
        let Some(http) = &self.http else { return Ok(Asked::Message(Box::new(call.clone()))) };
        http.provider.start(&http.job(call)).map(asked)
    }

    /// What is said about a request, before and after it is sent.
    fn said(&self, sent: &Sent) -> Vec<pb::Warning> {
        let mut said = sent.warnings.clone();
        if let Some(http) = &self.http {
            let job = http.job(&sent.calls[0]);
            let output = http.successes.iter().find_map(|success| success.end(&*http.provider, &job));
            said.extend(output.unwrap_or_default().warnings);
        }
        said
    }
}

impl Http {
    fn job(&self, call: &pb::ImageRequest) -> Job {
        let Job { base_url, api_key, token, options, now, .. } = &self.successes[0].job;
        Job {
            request: call.clone(),
            base_url: base_url.clone(),
            api_key: api_key.clone(),
            token: token.clone(),
            options: options.clone(),
            // Whose fraction some make a seed of.
            now: *now + Duration::from_nanos(987_654_321),
        }
    }
}

/// A request as it can be compared: a form's boundary is another each time.
fn asked(request: http::Request<Pieces>) -> Asked {
    let (parts, body) = request.into_parts();
    let mut body = body.into_bytes();
    let mut headers = BTreeMap::new();
    for (name, value) in &parts.headers {
        let mut value = value.as_bytes().to_vec();
        if let Some(at) = value.windows(9).position(|window| window == b"boundary=") {
            let boundary = value.split_off(at + 9);
            let mut rest = 0;
            let mut left = Vec::with_capacity(body.len());
            for found in memchr::memmem::find_iter(&body, &boundary) {
                left.extend_from_slice(&body[rest..found]);
                rest = found + boundary.len();
            }
            left.extend_from_slice(&body[rest..]);
            body = left.into();
        }
        headers.insert(name.to_string(), value);
    }
    Asked::Http { line: format!("{} {}", parts.method, parts.uri), headers, body }
}

/// What was found wrong, each with how often and the first case.
#[derive(Default)]
struct Problems {
    found: BTreeMap<String, (usize, String)>,
}

impl Problems {
    fn add(&mut self, what: String, case: impl FnOnce() -> String) {
        self.found.entry(what).or_insert_with(|| (0, case())).0 += 1;
    }
}

/// One model of one provider.
struct Trial<'a> {
    subject: &'a Subject,
    capability: &'a pb::ModelCapability,
    model: String,
    problems: &'a mut Problems,
}

impl Trial<'_> {
    fn run(&mut self, draws: &mut Draws) {
        for _ in 0..REQUESTS {
            let request = draws.request(&self.model, self.capability, &self.subject.record.name);
            match self.subject.send(&request) {
                Err(Refused::Fit(error)) => self.refused(&request, &error),
                Err(Refused::Start(error)) => self.not_started(&request, &error),
                Ok(sent) => self.sent(&request, &sent, draws),
            }
        }
    }

    fn wrong(&mut self, request: &pb::ImageRequest, what: &str) {
        let operation = request.effective_operation().name();
        let what = format!("{} {}: {what}", self.subject.record.name, self.capability.model);
        self.problems.add(what, || {
            let fields = Field::of(request).into_iter().map(|field| match field {
                Field::Named(name) => format!("{name}={}", params::get(request, name).unwrap_or_default()),
                other => format!("{other:?}"),
            });
            format!("{operation} {}", fields.collect::<Vec<_>>().join(" "))
        });
    }

    fn refused(&mut self, request: &pb::ImageRequest, error: &Error) {
        if error.kind != ErrorKind::Unsupported || error.param.is_none() || error.message.is_empty() {
            self.wrong(
                request,
                &format!("refused as {} without a field: {}", error.kind.name(), error.message),
            );
        }
    }

    /// A request that is accepted may still lack what its operation needs, and a model may have no such operation,
    /// kind or count after all: either way the field is named, and nothing is sent.
    fn not_started(&mut self, request: &pb::ImageRequest, error: &Error) {
        let name = error.param.as_deref().unwrap_or_default();
        if error.kind == ErrorKind::Unsupported && !name.is_empty() {
            return;
        }
        let given = Field::of(request).into_iter().find(|field| field.name() == name);
        let is_missing = given.is_none_or(|field| self.is_default(&field, request)) && name != "operation";
        if !is_missing || error.kind != ErrorKind::InvalidRequest || name.is_empty() {
            self.wrong(request, &format!("accepted, but not started for {name}: {}", error.message));
        }
    }

    fn sent(&mut self, request: &pb::ImageRequest, sent: &Sent, draws: &mut Draws) {
        self.counted(request, sent);
        self.oriented(request, sent);
        self.warned(request, sent);
        let fields = Field::of(request);
        for _ in 0..LOOKS.min(fields.len()) {
            let field = &fields[draws.below(fields.len())];
            self.look(request, sent, field, draws);
        }
    }

    fn counted(&mut self, request: &pb::ImageRequest, sent: &Sent) {
        let count: usize = sent.calls.iter().map(pb::ImageRequest::wanted).sum();
        let most = self.capability.max_n.max(1) as usize;
        if count != request.wanted() || sent.calls.iter().any(|call| call.wanted() > most) {
            self.wrong(request, &format!("{count} images in {} calls", sent.calls.len()));
        }
    }

    /// Landscape stays landscape, portrait portrait, and a square square where the model has one.
    fn oriented(&mut self, request: &pb::ImageRequest, sent: &Sent) {
        let Some(wanted) = request.size.as_ref().and_then(ratio) else { return };
        let mut made: Vec<f64> = sent.calls.iter().filter_map(|call| ratio(call.size.as_ref()?)).collect();
        for asked in &sent.asked {
            let Asked::Http { body, .. } = asked else { continue };
            if request.upscale.is_none()
                && let Ok(body) = serde_json::from_slice(body)
            {
                ratios(&body, &mut made);
            }
        }
        for made in made {
            let turned = (wanted > 1.0 && made < 1.0) || (wanted < 1.0 && made > 1.0);
            if turned || is_square(wanted) && !is_square(made) && self.has_square() {
                self.wrong(request, &format!("{wanted:.2} became {made:.2}"));
            }
        }
    }

    fn has_square(&self) -> bool {
        match self.capability.size.as_ref().and_then(|size| size.rule.as_ref()) {
            None | Some(Rule::Free(_)) => true,
            Some(Rule::List(list)) => list.sizes.iter().any(|size| size.width == size.height),
            Some(Rule::Ratios(list)) => list.ratios.iter().any(|ratio| is_square(ratio.width / ratio.height)),
        }
    }

    /// Warnings are about what was asked for, and under the strict policy there is nothing to change.
    fn warned(&mut self, request: &pb::ImageRequest, sent: &Sent) {
        let asked: BTreeSet<String> =
            Field::of(request).iter().map(|field| field.name().to_owned()).collect();
        for warning in &sent.warnings {
            let field = warning.field.as_str();
            let whole = field.split('.').next().unwrap_or_default();
            if !asked.contains(field) && !asked.contains(whole) && !matches!(whole, "model" | "operation") {
                self.wrong(request, &format!("a warning of {field}, which was not asked for"));
            }
            // The caller gets what it asked for all the same.
            let fulfilled = matches!(field, "n" | "output_format") && warning.action() == Action::Emulated;
            let strict = request.params_policy() == pb::ParamsPolicy::Strict;
            if !strict || warning.action() == Action::Notice || fulfilled {
                continue;
            }
            self.wrong(request, &format!("{field} changed under the strict policy"));
        }
    }

    fn look(&mut self, request: &pb::ImageRequest, sent: &Sent, field: &Field, draws: &mut Draws) {
        if self.subject.record.name == UPLOADS_FIRST && !request.inputs.is_empty() {
            return;
        }
        let name = field.name();
        let matters = self.matters(request, sent, field);
        match reported(&sent.warnings, name) {
            Some(Action::Dropped) if matters => {
                self.wrong(request, &format!("{name} is said to be dropped, but makes a difference"));
            }
            Some(_) => {}
            None if matters => self.look_at_another_value(request, sent, field, draws),
            None if self.is_default(field, request) || self.is_said_otherwise(request, field) => {}
            None if reported(&self.subject.said(sent), name).is_some() => {}
            None => self.wrong(request, &format!("{name} is lost ({field:?})")),
        }
    }

    /// Whether what is sent is something else without the field.
    fn matters(&self, request: &pb::ImageRequest, sent: &Sent, field: &Field) -> bool {
        let mut without = request.clone();
        field.clear(&mut without);
        self.subject.send(&without).ok().is_none_or(|without| self.differ(field, &without, sent))
    }

    /// Whether a provider's own field says the same and counts before it, or the other way round.
    fn is_said_otherwise(&self, request: &pb::ImageRequest, field: &Field) -> bool {
        let mut plain = request.clone();
        if matches!(field, Field::Extra(_)) {
            params::NAMES.iter().for_each(|name| params::clear(&mut plain, name));
        } else {
            plain.provider_extras.clear();
        }
        if plain == *request {
            return false;
        }
        self.subject.send(&plain).is_ok_and(|sent| self.matters(&plain, &sent, field))
    }

    /// Two values that are both sent as they are make different requests.
    fn look_at_another_value(
        &mut self,
        request: &pb::ImageRequest,
        sent: &Sent,
        field: &Field,
        draws: &mut Draws,
    ) {
        if matches!(field, Field::Upscale | Field::Control) {
            // Their parts may mean the same: twice as large, and as large as the model makes it.
            return;
        }
        let mut other = request.clone();
        field.draw(&mut other, draws);
        let sizes = [request, &other].map(|request| request.size.as_ref().and_then(ratio));
        // Some models have ratios only, where many sizes are one.
        let alike = matches!(field, Field::Named("size"))
            && sizes[0].zip(sizes[1]).is_none_or(|(a, b)| (a / b).ln().abs() < 0.05);
        if other == *request || alike {
            return;
        }
        let Ok(others) = self.subject.send(&other) else { return };
        if reported(&others.warnings, field.name()).is_none()
            && !self.differ(field, &others, sent)
            && !self.is_default(field, &other)
            && !self.is_said_otherwise(request, field)
            && reported(&self.subject.said(sent), field.name()).is_none()
        {
            let value = |request| match field {
                Field::Named(name) => params::get(request, name).unwrap_or_default().to_string(),
                _ => String::new(),
            };
            let what = format!("{} is the same for {} and {}", field.name(), value(request), value(&other));
            self.wrong(request, &what);
        }
    }

    fn differ(&self, field: &Field, one: &Sent, other: &Sent) -> bool {
        // What the model makes itself must be asked of it: our own conversion has a warning.
        let ours = !matches!(field, Field::Named("output_format"));
        one.asked != other.asked || ours && one.wish != other.wish
    }

    /// Whether none of these requests is answered like this one without a word.
    fn all_are_others(
        &self,
        request: &pb::ImageRequest,
        mut others: impl Iterator<Item = pb::ImageRequest>,
        field: &Field,
    ) -> bool {
        let Ok(sent) = self.subject.send(request) else { return false };
        others.all(|other| match self.subject.send(&other) {
            Ok(other) => {
                self.differ(field, &other, &sent)
                    || reported(&self.subject.said(&other), field.name()).is_some()
            }
            Err(_) => true,
        })
    }

    /// What is the same as saying nothing.
    fn is_default(&self, field: &Field, request: &pb::ImageRequest) -> bool {
        match field {
            // How the shim answers; no provider knows of it.
            Field::Named("response_format") => true,
            // Models tell these apart by the prompt.
            Field::ImageRole => request
                .inputs
                .first()
                .is_none_or(|input| matches!(input.role(), pb::InputRole::Source | pb::InputRole::Reference)),
            Field::Named("n") => request.wanted() == 1,
            Field::Named("partial_images") => request.partial_images == Some(0),
            Field::Named("size") => match request.size.as_ref().map(ratio) {
                Some(Some(shape)) => {
                    // As below: a square, where the provider wants a size.
                    let size = Some(Kind::AspectRatio(pb::AspectRatio { width: 1.0, height: 2.0 }));
                    let other = pb::ImageRequest { size: Some(pb::Size { size }), ..request.clone() };
                    let other = self.subject.send(&other);
                    is_square(shape)
                        && other.is_ok_and(|other| {
                            self.matters(request, &other, field)
                                || reported(&other.warnings, "size").is_some()
                        })
                }
                Some(None) | None => true,
            },
            Field::Named("output_format") => {
                self.capability.formats.first() == Some(&request.wanted_format().into())
            }
            Field::Named("strength") => {
                // Where the provider wants a value, the one that it gets unasked.
                let other = pb::ImageRequest { strength: Some(0.37), ..request.clone() };
                self.subject.send(&other).is_ok_and(|other| self.matters(request, &other, field))
            }
            Field::Control => request.control.is_some_and(|control| {
                let others = (1..=6).filter(|kind| *kind != control.kind).map(|kind| {
                    let control = Some(pb::Control { kind, ..control });
                    pb::ImageRequest { control, ..request.clone() }
                });
                control.strength.is_none() && self.all_are_others(request, others, field)
            }),
            Field::Upscale => request.upscale.is_some_and(|upscale| {
                let with = |upscale| pb::ImageRequest { upscale: Some(upscale), ..request.clone() };
                let modes = (1..=3).filter(|mode| upscale.mode != 0 && *mode != upscale.mode);
                let modes = modes.map(|mode| with(pb::Upscale { mode, ..upscale }));
                let tenfold = with(pb::Upscale { factor: Some(10.0), ..upscale });
                upscale.target.is_none()
                    && upscale.creativity.is_none()
                    && self.all_are_others(request, modes.chain([tenfold]), field)
            }),
            _ => false,
        }
    }
}

/// What was done with a field, as far as anything was.
fn reported(warnings: &[pb::Warning], field: &str) -> Option<Action> {
    let mut actions = warnings.iter().filter_map(|warning| {
        let rest = warning.field.strip_prefix(field)?;
        // Parts are named too: `upscale.factor`.
        let is_part = field != "image" && rest.starts_with('.');
        let action = if is_part { Action::Adjusted } else { warning.action() };
        (rest.is_empty() || is_part).then_some(action).filter(|_| warning.action() != Action::Notice)
    });
    actions.next()
}

fn is_square(ratio: f64) -> bool {
    (ratio - 1.0).abs() < 1e-9
}

fn ratio(size: &pb::Size) -> Option<f64> {
    match size.size? {
        Kind::Dimensions(size) => Some(f64::from(size.width) / f64::from(size.height)),
        Kind::AspectRatio(ratio) => Some(ratio.width / ratio.height),
        Kind::Auto(_) => None,
    }
}

/// Whatever in a body looks like a size or a ratio.
fn ratios(body: &Value, found: &mut Vec<f64>) {
    match body {
        Value::String(text) => {
            let pair = text.split_once(['x', ':', '*']);
            let pair = pair.and_then(|(a, b)| Some((a.parse::<f64>().ok()?, b.parse::<f64>().ok()?)));
            found.extend(pair.map(|(width, height)| width / height));
        }
        Value::Array(items) => items.iter().for_each(|item| ratios(item, found)),
        Value::Object(fields) => {
            if let (Some(width), Some(height)) =
                (fields.get("width").and_then(Value::as_f64), fields.get("height").and_then(Value::as_f64))
            {
                found.push(width / height);
            }
            fields.values().for_each(|value| ratios(value, found));
        }
        _ => {}
    }
}

#[test]
fn nothing_that_is_asked_for_is_lost_in_silence() {
    let subjects = Subject::all();
    let trials: Vec<_> = subjects
        .iter()
        .flat_map(|subject| subject.record.models.iter().map(move |capability| (subject, capability)))
        .enumerate()
        .collect();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let problems = Mutex::new(Problems::default());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (trials, problems) = (&trials, &problems);
            scope.spawn(move || {
                let mut found = Problems::default();
                for (seed, (subject, capability)) in trials.iter().skip(thread).step_by(threads) {
                    let model = subject.model(&capability.model);
                    Trial { subject, capability, model, problems: &mut found }
                        .run(&mut Draws::new(*seed as u64));
                }
                problems.lock().unwrap().found.extend(found.found);
            });
        }
    });
    let Problems { found: problems } = problems.into_inner().unwrap();
    let lines =
        problems.iter().map(|(what, (count, case))| format!("{what}\n    {count} times, as in {case}"));
    assert!(problems.is_empty(), "{}", lines.collect::<Vec<_>>().join("\n"));
}
