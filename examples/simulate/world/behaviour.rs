//! How a scripted provider behaves: how long it takes, how often it fails, how much it can do at once.
//!
//! Pure: reads the script and draws one call's fate. `provider` plays it.

use std::time::Duration;

use imagegate::{
    config::read::Object,
    error::{Error, ErrorKind},
    pb::{BillingClass, Operation},
};

use super::{
    draws::Draws,
    scenario::{fraction, millis, not_negative, seconds},
};

/// One provider's script: how it behaves, and how it does in phases.
#[derive(Clone, Debug)]
pub struct Script {
    /// `price_usd`: list price of an image. Absent: the price is unknown, and nothing is spent.
    pub price_usd: Option<f64>,
    /// `models`: ids, the first is the default. Default: `standard`.
    pub models: Vec<String>,
    /// `operations`: what the models can do. Default `generate`.
    pub operations: Vec<Operation>,
    /// `max_n`: images per call. Default 10.
    pub max_n: u32,
    /// `max_prompt_chars`: of a prompt. Default 0, no limit.
    pub max_prompt_chars: u32,
    base: Behaviour,
    phases: Vec<Phase>,
}

/// What becomes of one call.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It is answered after a while.
    Answer(Duration),
    /// It fails after a while.
    Fail(Duration, Failure),
    /// Its content is refused after a while.
    Refuse(Duration),
    /// More calls are running than the provider can do.
    TurnAway(Failure),
    /// Nothing, ever.
    Silence,
}

/// How a provider says no.
#[derive(Clone, Debug)]
pub struct Failure {
    /// `status`: HTTP status. Default 500, over capacity 429.
    pub status: u16,
    /// `billed`: what it costs. Default `unknown`, over capacity `rejected_unbilled`. `not_sent` makes it a failure
    /// to reach the provider.
    pub billed: BillingClass,
    /// `retry_after_ms`: how long the provider wants to be left alone. Default: it does not say.
    pub retry_after: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Phase {
    from: Duration,
    until: Duration,
    behaviour: Behaviour,
}

#[derive(Clone, Debug)]
struct Behaviour {
    latency: Distribution,
    slow_fraction: f64,
    slow_factor: f64,
    error_rate: f64,
    error_after: Duration,
    error: Failure,
    capacity: Option<Capacity>,
    refusal_rate: f64,
    silent: bool,
}

#[derive(Clone, Debug)]
struct Capacity {
    in_flight: usize,
    over: Failure,
}

#[derive(Clone, Copy, Debug)]
enum Distribution {
    Constant(Duration),
    Uniform(Duration, Duration),
    Exponential(Duration),
    Lognormal { median: Duration, sigma: f64 },
}

const OPERATIONS: [Operation; 4] =
    [Operation::Generate, Operation::Edit, Operation::Inpaint, Operation::Variation];

const BILLED: [(&str, BillingClass); 4] = [
    ("not_sent", BillingClass::NotSent),
    ("rejected_unbilled", BillingClass::RejectedUnbilled),
    ("unknown", BillingClass::Unknown),
    ("billed", BillingClass::Billed),
];

impl Script {
    /// Reads one entry of `providers`.
    pub fn read(mut object: Object<'_>) -> Self {
        let price_usd = object.number("price_usd");
        let models = object.texts("models").unwrap_or_else(|| vec!["standard"]);
        let models = models.into_iter().map(str::to_owned).collect();
        let operations = read_operations(&mut object).unwrap_or_else(|| vec![Operation::Generate]);
        let max_n = object.whole("max_n", 1, 50).unwrap_or(10) as u32;
        let max_prompt_chars = object.whole("max_prompt_chars", 0, 100_000).unwrap_or_default() as u32;
        let base = Behaviour::read(&mut object, &Behaviour::default());
        let mut phases = Vec::new();
        for (i, value) in object.list("phases").unwrap_or_default().iter().enumerate() {
            let path = object.at(&format!("phases.{i}"));
            let Some(mut phase) = Object::open(value, path, object.problems()) else { continue };
            let from = phase.required("from_s").and_then(|_| seconds(&mut phase, "from_s"));
            let until = seconds(&mut phase, "until_s");
            phases.push(Phase {
                from: from.unwrap_or_default(),
                until: until.unwrap_or(Duration::MAX),
                behaviour: Behaviour::read(&mut phase, &base),
            });
            phase.finish();
        }
        object.finish();
        Self { price_usd, models, operations, max_n, max_prompt_chars, base, phases }
    }

    /// The fate of a call that starts at this time, beside that many others. Of several phases the last one counts.
    pub fn fate(&self, now: Duration, in_flight: usize, draws: &mut Draws) -> Fate {
        let phase = self.phases.iter().rev().find(|phase| (phase.from..phase.until).contains(&now));
        phase.map_or(&self.base, |phase| &phase.behaviour).fate(in_flight, draws)
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            latency: Distribution::Constant(Duration::from_secs(1)),
            slow_fraction: 0.0,
            slow_factor: 10.0,
            error_rate: 0.0,
            error_after: Duration::from_millis(300),
            error: Failure { status: 500, billed: BillingClass::Unknown, retry_after: None },
            capacity: None,
            refusal_rate: 0.0,
            silent: false,
        }
    }
}

impl Behaviour {
    /// The base with whatever the object says differently. A `latency` without `dist` keeps the base's and only
    /// changes `slow`.
    fn read(object: &mut Object<'_>, base: &Self) -> Self {
        let mut behaviour = base.clone();
        if let Some(mut latency) = object.object("latency") {
            if latency.has("dist") || !latency.has("slow") {
                behaviour.latency = Distribution::read(&mut latency).unwrap_or(base.latency);
            }
            if let Some(mut slow) = latency.object("slow") {
                behaviour.slow_fraction = fraction(&mut slow, "fraction").unwrap_or(base.slow_fraction);
                behaviour.slow_factor = not_negative(&mut slow, "factor").unwrap_or(base.slow_factor);
                slow.finish();
            }
            latency.finish();
        }
        if let Some(mut errors) = object.object("errors") {
            behaviour.error_rate = fraction(&mut errors, "rate").unwrap_or(base.error_rate);
            behaviour.error_after = millis(&mut errors, "after_ms").unwrap_or(base.error_after);
            behaviour.error = Failure::read(&mut errors, &base.error);
            errors.finish();
        }
        if let Some(mut refusals) = object.object("refusals") {
            behaviour.refusal_rate = fraction(&mut refusals, "rate").unwrap_or(base.refusal_rate);
            refusals.finish();
        }
        if let Some(capacity) = object.object("capacity") {
            behaviour.capacity = Capacity::read(capacity, base.capacity.as_ref());
        }
        behaviour.silent = object.flag("silent").unwrap_or(base.silent);
        behaviour
    }

    fn fate(&self, in_flight: usize, draws: &mut Draws) -> Fate {
        // Everything is drawn, needed or not, so that a changed rate leaves the other draws as they were.
        let (fails, refuses) = (draws.happens(self.error_rate), draws.happens(self.refusal_rate));
        let is_slow = draws.happens(self.slow_fraction);
        let latency = self.latency.draw(draws);
        if let Some(capacity) = self.capacity.as_ref().filter(|capacity| in_flight >= capacity.in_flight) {
            return Fate::TurnAway(capacity.over.clone());
        }
        if self.silent {
            return Fate::Silence;
        }
        if fails {
            return Fate::Fail(self.error_after, self.error.clone());
        }
        if refuses {
            return Fate::Refuse(self.error_after);
        }
        Fate::Answer(if is_slow { latency.mul_f64(self.slow_factor) } else { latency })
    }
}

impl Capacity {
    fn read(mut object: Object<'_>, base: Option<&Self>) -> Option<Self> {
        let in_flight = object.whole("in_flight", 0, 1_000_000).map(|number| number as usize);
        let in_flight = in_flight.or(base.map(|base| base.in_flight));
        if in_flight.is_none() {
            object.required("in_flight");
        }
        let full = Failure { status: 429, billed: BillingClass::RejectedUnbilled, retry_after: None };
        let mut over = base.map_or(full, |base| base.over.clone());
        if let Some(mut object) = object.object("over") {
            over = Failure::read(&mut object, &over);
            object.finish();
        }
        object.finish();
        Some(Self { in_flight: in_flight?, over })
    }
}

impl Failure {
    fn read(object: &mut Object<'_>, base: &Self) -> Self {
        let billed = object.text("billed").and_then(|name| {
            let found = BILLED.iter().find(|(known, _)| *known == name);
            if found.is_none() {
                let allowed = BILLED.map(|(name, _)| name).join(", ");
                object.problem("billed", format!("\"{name}\" is not allowed; allowed: {allowed}"));
            }
            found.map(|(_, class)| *class)
        });
        Self {
            status: object.whole("status", 400, 599).map_or(base.status, |status| status as u16),
            billed: billed.unwrap_or(base.billed),
            retry_after: millis(object, "retry_after_ms").or(base.retry_after),
        }
    }

    /// The error that a worker makes of it.
    pub fn error(&self) -> Error {
        let message = format!("the provider answered {}", self.status);
        let mut error = match self.billed {
            BillingClass::NotSent => {
                Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, "connection refused")
            }
            billed => Error::new(ErrorKind::from_http_status(self.status), message)
                .with_status(self.status)
                .billed(billed),
        };
        error.retry_after = self.retry_after;
        error
    }
}

impl Distribution {
    fn read(object: &mut Object<'_>) -> Option<Self> {
        object.required("dist")?;
        match object.text("dist")? {
            "constant" => Some(Self::Constant(required_millis(object, "ms")?)),
            "uniform" => {
                let (min, max) = (required_millis(object, "min_ms"), required_millis(object, "max_ms"));
                Some(Self::Uniform(min?, max?))
            }
            "exponential" => Some(Self::Exponential(required_millis(object, "mean_ms")?)),
            "lognormal" => {
                let median = required_millis(object, "median_ms");
                object.required("sigma");
                Some(Self::Lognormal { median: median?, sigma: not_negative(object, "sigma")? })
            }
            other => {
                let allowed = "constant, uniform, exponential, lognormal";
                object.problem("dist", format!("\"{other}\" is not allowed; allowed: {allowed}"));
                None
            }
        }
    }

    fn draw(self, draws: &mut Draws) -> Duration {
        match self {
            Self::Constant(time) => time,
            Self::Uniform(min, max) => draws.between(min, max),
            Self::Exponential(mean) => mean.mul_f64(draws.exponential()),
            Self::Lognormal { median, sigma } => median.mul_f64((sigma * draws.normal()).exp()),
        }
    }
}

fn read_operations(object: &mut Object<'_>) -> Option<Vec<Operation>> {
    let mut operations = Vec::new();
    for (i, name) in object.texts("operations")?.into_iter().enumerate() {
        match OPERATIONS.iter().find(|operation| operation.name() == name) {
            Some(operation) => operations.push(*operation),
            None => {
                let allowed = OPERATIONS.map(Operation::name).join(", ");
                object.problem(
                    &format!("operations.{i}"),
                    format!("\"{name}\" is not allowed; allowed: {allowed}"),
                );
            }
        }
    }
    Some(operations)
}

fn required_millis(object: &mut Object<'_>, name: &str) -> Option<Duration> {
    object.required(name)?;
    millis(object, name)
}
