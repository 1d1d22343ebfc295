//! A worker elsewhere, as if it were here; and this one, as others see it through a connection.

use futures::{StreamExt as _, stream};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use super::{EventStream, SharedWorker};
use crate::{
    admission::Held,
    framing,
    pb::{self, generate_response::Event, worker_service_server::WorkerService},
    pool::Pool,
    telemetry, transport,
};

/// The adapter of a worker in another process.
#[derive(Clone, Debug)]
pub struct Remote(Pool);

impl Remote {
    /// At the endpoints of a pool.
    pub fn new(pool: Pool) -> Self {
        Self(pool)
    }
}

#[tonic::async_trait]
impl WorkerService for Remote {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        self.0.clone().worker().describe(request).await
    }

    async fn generate(
        &self,
        mut request: Request<pb::GenerateRequest>,
    ) -> Result<Response<EventStream>, Status> {
        request.get_mut().chunks_first = true;
        let answer = framing::ask(&self.0, transport::GENERATE, request).await?;
        Ok(answer.map(|events| Box::pin(events) as _))
    }
}

/// A worker as it is served: images leave in chunks, so that no message holds a whole one, and a call ends at
/// its deadline, which tonic watches only until the stream begins.
pub struct Served(pub SharedWorker);

#[tonic::async_trait]
impl WorkerService for Served {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        self.0.describe(request).await
    }

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<EventStream>, Status> {
        let mut working = Working::begin(request.get_ref().encoded_len());
        let limit = transport::grpc_timeout(request.metadata().as_ref());
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let events = match deadline {
            Some(deadline) => {
                let answered = timeout_at(deadline, self.0.generate(request)).await;
                answered.map_err(|_| too_late())??.map(|events| until(deadline, events))
            }
            None => self.0.generate(request).await?,
        };
        Ok(events.map(|events| {
            let cut = events.flat_map(move |event| match event {
                Ok(pb::GenerateResponse { event: Some(Event::ImageChunk(chunk)) }) => {
                    working.sends(chunk.data.len());
                    let message = |chunk| pb::GenerateResponse { event: Some(Event::ImageChunk(chunk)) };
                    transport::cut(chunk, message).left_stream()
                }
                other => stream::iter([other]).right_stream(),
            });
            Box::pin(cut) as _
        }))
    }
}

/// Counts a call as long as it is worked on.
struct Working {
    held: Held,
    /// Of that, the chunk on its way.
    sending: usize,
}

impl Working {
    fn begin(bytes: usize) -> Self {
        telemetry::call_begins();
        Self { held: Held::new(bytes), sending: 0 }
    }

    /// The chunk before has left by now.
    fn sends(&mut self, bytes: usize) {
        self.held.release(std::mem::replace(&mut self.sending, bytes));
        self.held.add(bytes);
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        telemetry::call_ends();
    }
}

/// The events up to a deadline. Then the work is dropped.
fn until(deadline: Instant, events: EventStream) -> EventStream {
    Box::pin(stream::unfold(Some(events), move |events| async move {
        let mut events = events?;
        match timeout_at(deadline, events.next()).await {
            Ok(event) => Some((event?, Some(events))),
            Err(_) => Some((Err(too_late()), None)),
        }
    }))
}

fn too_late() -> Status {
    Status::deadline_exceeded("the call's deadline has passed")
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Served(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tonic::Code;

    use super::*;
    use crate::provider::sandbox::Sandbox;

    async fn last_of(model: &str) -> Option<Result<pb::GenerateResponse, Status>> {
        let image = pb::ImageRequest {
            model: model.into(),
            size: Some(pb::Size::pixels(16, 16)),
            ..Default::default()
        };
        let mut request = Request::new(pb::GenerateRequest { image: Some(image), ..Default::default() });
        request.set_timeout(Duration::from_secs(2));
        let events = Served(Arc::new(Sandbox::new())).generate(request).await.unwrap().into_inner();
        events.collect::<Vec<_>>().await.pop()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline_after_its_stream_has_begun() {
        let begun = Instant::now();
        let status = last_of("sandbox-stall").await.unwrap().unwrap_err();
        assert_eq!((status.code(), begun.elapsed()), (Code::DeadlineExceeded, Duration::from_secs(2)));
        assert!(last_of("sandbox-1").await.unwrap().is_ok());
    }
}
