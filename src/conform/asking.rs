//! One provider of the worker under test, and calls to it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::timeout;
use tonic::{Code, Request, Status};

use super::{CALL_LIMIT, answer::Answer, samples, trigger::Trigger};
use crate::{
    pb::{self, credential::Credential},
    pool::Pool,
};

/// The longest text of a worker that is shown, in characters.
const SHOWN: usize = 160;

/// A provider that is asked.
pub struct Subject {
    /// Where the worker is.
    pub uri: String,
    /// What the worker says of the provider.
    pub record: pb::Provider,
    /// As whom it is asked.
    pub credential: Option<Credential>,
    pool: Pool,
    calls: AtomicUsize,
}

/// A call that is known to work, and how long it took.
#[derive(Clone, Debug)]
pub struct Usual {
    /// What was asked.
    pub request: pb::ImageRequest,
    /// The model's entry.
    pub capability: pb::ModelCapability,
    /// From the call to its end.
    pub took: Duration,
}

impl Subject {
    /// Nothing is asked yet.
    pub fn new(pool: Pool, uri: &str, record: pb::Provider, credential: Option<Credential>) -> Self {
        Self { uri: uri.to_owned(), record, credential, pool, calls: AtomicUsize::new(0) }
    }

    /// As the worker calls the provider.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// A call's message, as the router would send it.
    pub fn message(&self, image: pb::ImageRequest) -> pb::GenerateRequest {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let credential =
            self.credential.clone().map(|credential| pb::Credential { credential: Some(credential) });
        pb::GenerateRequest {
            provider: self.name().to_owned(),
            image: Some(image),
            upstream: Some(pb::Upstream { credential, ..Default::default() }),
            request_id: "imagegate-conform".to_owned(),
            announce_answer: false,
            chunks_first: false,
        }
    }

    /// One call to its end.
    pub async fn ask(&self, image: pb::ImageRequest) -> Result<Answer, Status> {
        self.send(self.message(image)).await
    }

    /// One call to its end, with a message of one's own.
    pub async fn send(&self, message: pb::GenerateRequest) -> Result<Answer, Status> {
        let wanted = message.image.as_ref().map_or(1, pb::ImageRequest::wanted);
        let mut request = Request::new(message);
        request.set_timeout(CALL_LIMIT);
        let answered = async {
            let events = self.pool.clone().worker().generate(request).await?;
            Answer::read(events.into_inner(), wanted).await
        };
        let nothing = |_| Err(Status::deadline_exceeded(format!("no end within {} s", CALL_LIMIT.as_secs())));
        timeout(CALL_LIMIT, answered).await.unwrap_or_else(nothing)
    }

    /// A failure in a few words, without the key: some providers quote it.
    pub fn told(&self, status: &Status) -> String {
        match &self.credential {
            Some(Credential::ApiKey(key)) => {
                told(&Status::new(status.code(), status.message().replace(key.as_str(), "[key]")))
            }
            _ => told(status),
        }
    }

    /// An ordinary call, but to a model that was made for tests.
    pub fn triggering(&self, trigger: Trigger, usual: &Usual) -> Option<pb::ImageRequest> {
        let model = trigger.model(&self.record)?;
        Some(pb::ImageRequest { model, prompt: samples::PROMPT.to_owned(), ..usual.request.clone() })
    }
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("uri", &self.uri).field("name", &self.name()).finish_non_exhaustive()
    }
}

/// A failure in a few words.
pub fn told(status: &Status) -> String {
    let message: String = status.message().chars().take(SHOWN).collect();
    if message.is_empty() { name(status.code()) } else { format!("{} ({message})", name(status.code())) }
}

/// A code as gRPC spells it: `NOT_FOUND`.
pub fn name(code: Code) -> String {
    let mut spelled = String::new();
    for (i, letter) in format!("{code:?}").chars().enumerate() {
        if i > 0 && letter.is_ascii_uppercase() {
            spelled.push('_');
        }
        spelled.push(letter.to_ascii_uppercase());
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_spelled_as_in_grpc() {
        assert_eq!(told(&Status::deadline_exceeded("")), "DEADLINE_EXCEEDED");
        assert_eq!(told(&Status::internal("odd")), "INTERNAL (odd)");
    }
}
