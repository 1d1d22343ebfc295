//! A worker elsewhere, as if it were here; and this one, as others see it through a connection.

use futures::{StreamExt as _, stream};
use tonic::{Request, Response, Status, transport::Channel};

use super::{EventStream, SharedWorker};
use crate::{
    pb::{
        self, generate_response::Event, worker_service_client::WorkerServiceClient,
        worker_service_server::WorkerService,
    },
    transport,
};

/// The adapter of a worker in another process.
#[derive(Clone, Debug)]
pub struct Remote(WorkerServiceClient<Channel>);

impl Remote {
    /// Connects when it is first used.
    pub fn new(channel: Channel) -> Self {
        Self(transport::worker_client(channel))
    }
}

#[tonic::async_trait]
impl WorkerService for Remote {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        self.0.clone().describe(request).await
    }

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<EventStream>, Status> {
        Ok(self.0.clone().generate(request).await?.map(|events| Box::pin(events) as _))
    }
}

/// A worker as it is served: images leave in chunks, so that no message holds a whole one.
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
        let events = self.0.generate(request).await?;
        Ok(events.map(|events| {
            let cut = events.flat_map(|event| match event {
                Ok(pb::GenerateResponse { event: Some(Event::ImageChunk(chunk)) }) => {
                    let message = |chunk| pb::GenerateResponse { event: Some(Event::ImageChunk(chunk)) };
                    transport::cut(chunk, message).left_stream()
                }
                other => stream::iter([other]).right_stream(),
            });
            Box::pin(cut) as _
        }))
    }
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Served(..)")
    }
}
