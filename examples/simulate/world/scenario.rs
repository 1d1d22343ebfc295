//! A scenario as its file writes it: who calls, how often, with which routing config, and over which providers.
//!
//! Read with the gateway's own reader: all problems at once, each with its line, and no unknown field.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use imagegate::{
    config::{
        self, Problem, Settings,
        providers::Providers,
        read::{Object, Problems},
        yaml,
    },
    params, pb,
};
use serde_json::{Map, Value, json};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

use super::behaviour::Script;

/// A checked scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// `seed`: of everything random. Default 1.
    pub seed: u64,
    /// `duration_s`: how long callers arrive. What runs then is played to its end.
    pub duration: Duration,
    /// `warm_up_s`: requests that start before are not counted. Default 0.
    pub warm_up: Duration,
    /// `arrivals`: who calls when.
    pub arrivals: Arrivals,
    /// `deadline_ms`: how long a caller waits. Default 60000.
    pub deadline: Duration,
    /// `request`: parameters of each request. Default none.
    pub request: pb::ImageRequest,
    /// `headers` and `users`: sent with each request. Default none.
    pub headers: Headers,
    /// `routers`: instances of the gateway that know nothing of each other. Default 1.
    pub routers: u64,
    /// `config`, the routing config, and `settings`, the other fields of a gateway's file.
    pub settings: Arc<Settings>,
    /// `providers`: by name.
    pub providers: BTreeMap<String, Script>,
    /// `cancel`: callers that go away.
    pub cancel: Cancel,
    /// `clients`: what callers do with a failure.
    pub clients: Clients,
}

/// What is sent beside each request.
#[derive(Clone, Debug)]
pub struct Headers {
    /// Where `{user}` stands for a number below `users`.
    headers: Vec<(AsciiMetadataKey, String)>,
    /// Default 1.
    users: u64,
}

/// When callers come.
#[derive(Clone, Debug)]
pub enum Arrivals {
    /// Whether or not the ones before have been answered.
    Open {
        /// `process`: `poisson`, the default, or `uniform`.
        process: Process,
        /// `rate_per_s`, and `phases` of `from_s` with another rate: the start of each, in order.
        rates: Vec<(Duration, f64)>,
    },
    /// So many, each after its last answer.
    Closed {
        /// `concurrency`: how many there are.
        concurrency: u64,
        /// `think_ms`: mean of an exponential pause before each request. Default 0.
        think: Duration,
    },
}

/// How regularly callers arrive.
#[derive(Clone, Copy, Debug)]
pub enum Process {
    /// Independent of each other.
    Poisson,
    /// Like clockwork.
    Uniform,
}

/// Callers that go away before they are answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cancel {
    /// `rate`: how many of them. Default 0.
    pub rate: f64,
    /// `after_ms`: `[shortest, longest]`. Default 0.
    pub after: (Duration, Duration),
}

/// What callers do with a failure.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// `retries`: after the first try, for statuses that a client library would retry. Default 0.
    pub retries: u32,
    /// `pause_ms`: before each. Default 100.
    pub pause: Duration,
}

impl Scenario {
    /// Reads a scenario's text.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the text's order.
    pub fn read(text: &str) -> Result<Self, Vec<Problem>> {
        let document = yaml::parse(text).map_err(|problem| vec![problem])?;
        let problems = Problems::default();
        let scenario =
            Object::open(&document.value, "", &problems).and_then(|object| Self::read_fields(object));
        let mut found: Vec<_> =
            problems.into_vec().into_iter().map(|problem| document.locate(problem)).collect();
        found.sort_by_key(|problem| problem.place);
        found.dedup();
        scenario.filter(|_| found.is_empty()).ok_or(found)
    }

    fn read_fields(mut file: Object<'_>) -> Option<Self> {
        let seed = file.whole("seed", 0, u64::from(u32::MAX)).unwrap_or(1);
        file.required("duration_s");
        let duration = seconds(&mut file, "duration_s");
        let warm_up = seconds(&mut file, "warm_up_s").unwrap_or_default();
        file.required("arrivals");
        let arrivals = file.object("arrivals").and_then(Arrivals::read);
        let deadline = millis(&mut file, "deadline_ms").unwrap_or(Duration::from_secs(60));
        let request = read_request(&mut file);
        let headers = Headers::read(&mut file);
        let routers = file.whole("routers", 1, 1000).unwrap_or(1);
        let providers = read_providers(&mut file);
        let settings = read_settings(&mut file, &providers);
        let cancel = file.object("cancel").map(Cancel::read).unwrap_or_default();
        let clients = file.object("clients").map_or_else(Clients::default, Clients::read);
        file.finish();
        Some(Self {
            seed,
            duration: duration?,
            warm_up,
            arrivals: arrivals?,
            deadline,
            request,
            headers,
            routers,
            settings: Arc::new(settings?),
            providers,
            cancel,
            clients,
        })
    }

    /// The providers as the gateway's configuration wants to know them: none needs a credential.
    pub fn built_in(&self) -> Providers {
        built_in(&self.providers)
    }
}

fn built_in(providers: &BTreeMap<String, Script>) -> Providers {
    providers.keys().fold(Providers::default(), |all, name| all.with_own(name))
}

fn read_request(file: &mut Object<'_>) -> pb::ImageRequest {
    let mut request = pb::ImageRequest::default();
    for (name, value) in file.map("request").into_iter().flatten() {
        if name == "prompt" {
            file.problem(
                "request.prompt",
                "the prompt is the request's number, which providers keep books by",
            );
        } else if let Err(error) = params::set(&mut request, name, value) {
            file.problem(&format!("request.{name}"), error.message.clone());
        }
    }
    request
}

fn read_providers(file: &mut Object<'_>) -> BTreeMap<String, Script> {
    file.required("providers");
    let mut providers = BTreeMap::new();
    for (name, value) in file.map("providers").into_iter().flatten() {
        let path = file.at(&format!("providers.{name}"));
        if let Some(object) = Object::open(value, path, file.problems()) {
            providers.insert(name.clone(), Script::read(object));
        }
    }
    providers
}

/// Has the gateway read its configuration, and says what it finds wrong at the places of this file.
fn read_settings(file: &mut Object<'_>, providers: &BTreeMap<String, Script>) -> Option<Settings> {
    let config = file.required("config")?;
    let mut settings: Map<String, Value> = file.map("settings").cloned().unwrap_or_default();
    settings.insert("configs".into(), json!({ "it": config }));
    settings.insert("default_config".into(), "it".into());
    let read = config::read(&Value::Object(settings).to_string(), &built_in(providers), &|_| None);
    let problems = read.map_err(|problems| {
        for Problem { path, message, .. } in problems {
            let path = match path.strip_prefix("configs.it") {
                Some(rest) => format!("config{rest}"),
                None => format!("settings.{path}"),
            };
            file.problems().add(path, message);
        }
    });
    problems.ok()
}

impl Headers {
    fn read(file: &mut Object<'_>) -> Self {
        let users = file.whole("users", 1, u64::from(u32::MAX)).unwrap_or(1);
        let mut headers = Vec::new();
        for (name, value) in file.map("headers").into_iter().flatten() {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match (name.parse::<AsciiMetadataKey>(), text.parse::<AsciiMetadataValue>()) {
                (Ok(name), Ok(_)) => headers.push((name, text)),
                _ => file.problem(&format!("headers.{name}"), "not a header"),
            }
        }
        Self { headers, users }
    }

    /// The headers of one caller.
    pub fn of_caller(&self, caller: u64) -> MetadataMap {
        let user = (caller % self.users).to_string();
        let mut map = MetadataMap::new();
        for (name, text) in &self.headers {
            let value = text.replace("{user}", &user).parse();
            map.insert(name.clone(), value.expect("a header's text stays one with a number in it"));
        }
        map
    }
}

impl Arrivals {
    fn read(mut object: Object<'_>) -> Option<Self> {
        let arrivals = if object.has("concurrency") {
            let concurrency = object.whole("concurrency", 1, 1_000_000);
            let think = millis(&mut object, "think_ms").unwrap_or_default();
            concurrency.map(|concurrency| Self::Closed { concurrency, think })
        } else {
            Self::read_open(&mut object)
        };
        object.finish();
        arrivals
    }

    fn read_open(object: &mut Object<'_>) -> Option<Self> {
        object.required("rate_per_s");
        let rate = not_negative(object, "rate_per_s");
        let process = match object.text("process") {
            None | Some("poisson") => Process::Poisson,
            Some("uniform") => Process::Uniform,
            Some(other) => {
                let message = format!("\"{other}\" is not allowed; allowed: poisson, uniform");
                object.problem("process", message);
                return None;
            }
        };
        let mut rates = vec![(Duration::ZERO, rate?)];
        for (i, value) in object.list("phases").unwrap_or_default().iter().enumerate() {
            let path = object.at(&format!("phases.{i}"));
            let mut phase = Object::open(value, path, object.problems())?;
            phase.required("from_s");
            phase.required("rate_per_s");
            let from = seconds(&mut phase, "from_s");
            let rate = not_negative(&mut phase, "rate_per_s");
            phase.finish();
            rates.push((from?, rate?));
        }
        if !rates.is_sorted_by_key(|(from, _)| *from) {
            object.problem("phases", "must be in the order of their from_s");
        }
        Some(Self::Open { process, rates })
    }
}

impl Cancel {
    fn read(mut object: Object<'_>) -> Self {
        let rate = fraction(&mut object, "rate").unwrap_or_default();
        let mut after = (Duration::ZERO, Duration::ZERO);
        match object.list("after_ms").map(|list| list.iter().map(Value::as_u64).collect::<Vec<_>>()) {
            None => {}
            Some(list) => match list[..] {
                [Some(min), Some(max)] if min <= max => {
                    after = (Duration::from_millis(min), Duration::from_millis(max));
                }
                _ => object.problem("after_ms", "must be [shortest, longest] in whole milliseconds"),
            },
        }
        object.finish();
        Self { rate, after }
    }
}

impl Default for Clients {
    fn default() -> Self {
        Self { retries: 0, pause: Duration::from_millis(100) }
    }
}

impl Clients {
    fn read(mut object: Object<'_>) -> Self {
        let retries = object.whole("retries", 0, 100).unwrap_or_default() as u32;
        let pause = millis(&mut object, "pause_ms").unwrap_or(Self::default().pause);
        object.finish();
        Self { retries, pause }
    }
}

/// A field from 0 to 1.
pub fn fraction(object: &mut Object<'_>, name: &str) -> Option<f64> {
    within(object, name, 1.0, "from 0 to 1")
}

/// A field from 0 on.
pub fn not_negative(object: &mut Object<'_>, name: &str) -> Option<f64> {
    within(object, name, 1e6, "from 0 to 1000000")
}

/// A duration in milliseconds, where 0 is a duration too.
pub fn millis(object: &mut Object<'_>, name: &str) -> Option<Duration> {
    let number = within(object, name, 86_400_000.0, "from 0 to 86400000 milliseconds")?;
    Some(Duration::from_secs_f64(number / 1000.0))
}

/// A duration in seconds.
pub fn seconds(object: &mut Object<'_>, name: &str) -> Option<Duration> {
    within(object, name, 86_400.0, "from 0 to 86400 seconds").map(Duration::from_secs_f64)
}

fn within(object: &mut Object<'_>, name: &str, max: f64, allowed: &str) -> Option<f64> {
    let number = object.number(name)?;
    if !(0.0..=max).contains(&number) {
        object.problem(name, format!("{number} is not allowed; allowed: {allowed}"));
        return None;
    }
    Some(number)
}
