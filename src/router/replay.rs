//! `Idempotency-Key`: the same key and the same request get the same answer, and one provider call.
//!
//! Kept for a day in memory, and in Redis where routers share it: then a key belongs to the one router that claims it. If the room for answers is used up, the oldest are dropped but their keys are not:
//! a request whose answer is gone is refused, never paid for a second time.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use moka::{policy::EvictionPolicy, sync::Cache};
use prost::Message as _;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::resolve::TARGET;
use crate::{
    call::{Call, Reply},
    digest::{Framed, Images},
    error::{Error, ErrorKind, Result},
    fleet::{Claimed, Fleet, stored},
    pb::{self, BillingClass, RouteReport},
};

const HEADER: &str = "idempotency-key";

/// How long a key is known.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys known at once, about 200 bytes each.
const KEYS: u64 = 1_000_000;

/// As long as those of other services that have them.
const LONGEST_KEY: usize = 255;

/// When to ask again for what nobody knows now.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// An answer's own size beside its images, roughly.
const OVERHEAD: usize = 2048;

/// Headers that decide what a request does. With another of these it is another request.
const ROUTE: &[&str] = &[
    "x-portkey-config",
    TARGET,
    "x-portkey-virtual-key",
    "x-portkey-provider",
    "x-portkey-custom-host",
    "x-portkey-metadata",
    "x-portkey-forward-headers",
];

/// Answers by key.
#[derive(Debug)]
pub struct Replays {
    keys: Cache<Key, Arc<Entry>>,
    answers: Cache<Key, Arc<Answered>>,
    fleet: Option<Arc<Fleet>>,
}

/// A caller's key. Nobody meets the keys of another caller.
type Key = [u8; 32];

/// What a request is, and what became of it.
#[derive(Debug)]
struct Entry {
    digest: [u8; 32],
    since: Instant,
    /// Held while the request runs. True: it has been answered.
    answered: Mutex<bool>,
}

/// A finished request.
#[derive(Clone, Debug)]
pub struct Answered {
    /// What routing did.
    pub report: RouteReport,
    /// The images.
    pub reply: Reply,
}

/// The key of a request and what it asks for.
#[derive(Clone, Copy, Debug)]
pub struct Idempotency {
    key: Key,
    digest: [u8; 32],
}

impl Idempotency {
    /// Reads the header.
    ///
    /// # Errors
    /// It cannot be a key.
    pub fn read(headers: &HeaderMap, caller: &str, image: &pb::ImageRequest) -> Result<Option<Self>> {
        let Some(value) = headers.get(HEADER) else { return Ok(None) };
        let key = value.to_str().ok().map(str::trim);
        let key = key.filter(|key| (1..=LONGEST_KEY).contains(&key.len())).ok_or_else(|| {
            let allowed = format!("1 to {LONGEST_KEY} characters of ASCII");
            Error::invalid(HEADER, format!("{HEADER}: this value is not allowed; allowed: {allowed}"))
        })?;
        let route = ROUTE.iter().map(|name| headers.get(*name).map_or(&b""[..], |value| value.as_bytes()));
        let digest = route.chain([content(image).as_slice()]).collect::<Framed>().finish();
        let key = [caller, key].into_iter().collect::<Framed>().finish();
        Ok(Some(Self { key, digest }))
    }
}

impl Replays {
    /// No answers yet; room for `max_bytes` of them.
    pub fn new(max_bytes: usize, fleet: Option<Arc<Fleet>>) -> Self {
        let answers = Cache::builder()
            .weigher(|_, answered: &Arc<Answered>| u32::try_from(answered.bytes()).unwrap_or(u32::MAX))
            .max_capacity(max_bytes as u64)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(KEPT)
            .build();
        let keys =
            Cache::builder().max_capacity(KEYS).eviction_policy(EvictionPolicy::lru()).time_to_live(KEPT);
        Self { keys: keys.build(), answers, fleet }
    }

    /// Answers a request as it was answered before, or runs it. One that runs already is waited for; if it
    /// fails, the next one runs.
    ///
    /// # Errors
    /// Another request had the key, its answer is no longer kept, or the request itself failed.
    pub async fn once(
        &self,
        idempotency: Idempotency,
        call: &Call,
        run: impl Future<Output = Result<Answered>>,
    ) -> Result<Answered> {
        let Idempotency { key, digest } = idempotency;
        let mut entry = self.entry(key, digest);
        if entry.digest != digest {
            // A key whose request has failed is free again.
            if !entry.answered.try_lock().is_ok_and(|answered| !*answered) {
                return Err(another());
            }
            self.keys.invalidate(&key);
            entry = self.entry(key, digest);
            if entry.digest != digest {
                return Err(another());
            }
        }
        let Ok(mut answered) = timeout_at(call.deadline, entry.answered.lock()).await else {
            return Err(still_running());
        };
        if *answered {
            let known = self.answers.get(&key).ok_or_else(gone)?;
            return Ok(known.replayed(call));
        }
        let answer = match &self.fleet {
            Some(fleet) => once_in(fleet, idempotency, call, run).await?,
            None => run.await?,
        };
        self.answers.insert(key, Arc::new(answer.clone()));
        // Else it drops what is too much some writes later, and that may be a lot of images.
        self.answers.run_pending_tasks();
        *answered = true;
        Ok(answer)
    }

    fn entry(&self, key: Key, digest: [u8; 32]) -> Arc<Entry> {
        let new = || Arc::new(Entry { digest, since: Instant::now(), answered: Mutex::new(false) });
        let entry = self.keys.get_with(key, new);
        // The store's own clock does not know of paused ones.
        if entry.since.elapsed() < KEPT {
            return entry;
        }
        self.answers.invalidate(&key);
        self.keys.invalidate(&key);
        self.keys.get_with(key, new)
    }
}

impl Answered {
    fn bytes(&self) -> usize {
        self.reply.images.iter().map(|(_, pieces)| pieces.len()).sum::<usize>() + OVERHEAD
    }

    fn write(&self) -> Vec<u8> {
        let result = pb::ImageResult {
            applied: Some(self.reply.applied),
            usage: self.reply.usage,
            report: Some(self.report.clone()),
            ..Default::default()
        };
        stored::write(&result, &self.reply.images)
    }

    fn read(bytes: Bytes) -> Option<Self> {
        let (result, images) = stored::read(bytes)?;
        let report = result.report.unwrap_or_default();
        let reply = Reply {
            target: report.target.clone(),
            provider: report.provider.clone(),
            model: report.model.clone(),
            images,
            usage: result.usage,
            applied: result.applied.unwrap_or_default(),
            warnings: Vec::new(),
            retry_count: report.retry_count,
            cache_status: report.cache_status(),
            strict_open_ai_compliance: report.strict_open_ai_compliance,
        };
        Some(Self { report, reply })
    }

    /// The same answer to another request: nothing was tried for this one, and nothing paid.
    fn replayed(&self, call: &Call) -> Self {
        let report = RouteReport {
            request_id: call.ctx.request_id.clone(),
            trace_id: call.ctx.trace_id.clone(),
            // Of a replay it is the first one that was paid for.
            replay_of: match self.report.replay_of.as_str() {
                "" => self.report.request_id.clone(),
                first => first.to_owned(),
            },
            attempts: Vec::new(),
            cost_lines: Vec::new(),
            ..self.report.clone()
        };
        Self { report, reply: self.reply.clone() }
    }
}

/// The same among all routers.
async fn once_in(
    fleet: &Arc<Fleet>,
    Idempotency { key, digest }: Idempotency,
    call: &Call,
    run: impl Future<Output = Result<Answered>>,
) -> Result<Answered> {
    let mut only_here = false;
    let claim = match fleet.claim(&key, &digest, call.deadline).await {
        Claimed::Mine(claim) => Some(claim),
        Claimed::Answered(Some(answer)) => {
            return Ok(Answered::read(answer).ok_or_else(gone)?.replayed(call));
        }
        Claimed::Answered(None) => return Err(gone()),
        Claimed::Another => return Err(another()),
        Claimed::Running => return Err(still_running()),
        // Whoever runs it may yet be paid for.
        Claimed::Away(true) => return Err(nobody_knows()),
        Claimed::Away(false) => {
            only_here = true;
            None
        }
    };
    let mut answer = run.await?;
    if let Some(claim) = claim {
        let kept = (answer.bytes() <= fleet.max_answer_bytes()).then(|| answer.write());
        only_here = !claim.answered(kept).await;
    }
    if only_here {
        answer.report.warnings.push(pb::Warning {
            field: HEADER.into(),
            action: pb::warning::Action::Notice.into(),
            detail: "other routers could not be told: at them this key may pay again".into(),
            target: answer.report.target.clone(),
        });
    }
    Ok(answer)
}

fn another() -> Error {
    let message = format!("{HEADER}: this key was used for another request; use a new one");
    Error::invalid(HEADER, message).with_status(422).with_code("idempotency_key_reused")
}

fn still_running() -> Error {
    let message = "the request with this idempotency key is still running";
    Error::transport(ErrorKind::Timeout, BillingClass::NotSent, message).with_status(504)
}

fn nobody_knows() -> Error {
    let message =
        "another router has the request with this idempotency key, and cannot be asked what became of it";
    let mut error = Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, message);
    error.retry_after = Some(ASK_AGAIN);
    error
}

fn gone() -> Error {
    let message = format!(
        "{HEADER}: the request was answered, and its answer is no longer kept; use a new key to pay for another"
    );
    let mut error = Error::invalid(HEADER, message).with_status(409);
    error.code = Some("idempotency_answer_gone".into());
    error
}

/// What the request asks for.
fn content(image: &pb::ImageRequest) -> Vec<u8> {
    let mut image = image.clone();
    Images::default().replace_in(&mut image);
    image.encode_to_vec()
}
