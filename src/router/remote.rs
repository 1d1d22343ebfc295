//! A router elsewhere, as if it were here; and this one, as others see it through a connection.

use futures::{StreamExt as _, stream};
use tonic::{Request, Response, Status};

use super::{EventStream, SharedRouter};
use crate::{
    error::Error,
    framing,
    jobs::JobStream,
    pb::{
        self, router_service_server::RouterService, stream_image_response::Event,
        watch_job_response::Event as JobEvent,
    },
    pool::Pool,
    transport,
};

/// The adapter of a router in another process.
#[derive(Clone, Debug)]
pub struct Remote(Pool);

impl Remote {
    /// At the endpoints of a pool.
    pub fn new(pool: Pool) -> Self {
        Self(pool)
    }
}

#[tonic::async_trait]
impl RouterService for Remote {
    type StreamImageStream = EventStream;
    type WatchJobStream = JobStream;

    async fn generate_image(
        &self,
        request: Request<pb::GenerateImageRequest>,
    ) -> Result<Response<pb::GenerateImageResponse>, Status> {
        self.0.clone().router().generate_image(request).await
    }

    async fn edit_image(
        &self,
        request: Request<pb::EditImageRequest>,
    ) -> Result<Response<pb::EditImageResponse>, Status> {
        self.0.clone().router().edit_image(request).await
    }

    async fn vary_image(
        &self,
        request: Request<pb::VaryImageRequest>,
    ) -> Result<Response<pb::VaryImageResponse>, Status> {
        self.0.clone().router().vary_image(request).await
    }

    async fn stream_image(
        &self,
        request: Request<pb::StreamImageRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let answer = framing::ask(&self.0, transport::STREAM_IMAGE, request).await?;
        Ok(answer.map(|events| Box::pin(events) as _))
    }

    async fn submit_image(
        &self,
        request: Request<pb::SubmitImageRequest>,
    ) -> Result<Response<pb::SubmitImageResponse>, Status> {
        self.0.clone().router().submit_image(request).await
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::GetJobResponse>, Status> {
        self.0.clone().router().get_job(request).await
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::CancelJobResponse>, Status> {
        self.0.clone().router().cancel_job(request).await
    }

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Result<Response<JobStream>, Status> {
        Ok(self.0.clone().router().watch_job(request).await?.map(|events| Box::pin(events) as _))
    }

    async fn explain_route(
        &self,
        request: Request<pb::ExplainRouteRequest>,
    ) -> Result<Response<pb::ExplainRouteResponse>, Status> {
        self.0.clone().router().explain_route(request).await
    }

    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        self.0.clone().router().list_models(request).await
    }
}

/// A router as it is served: images leave in chunks, so that no message holds a whole one.
pub struct Served(pub SharedRouter);

#[tonic::async_trait]
impl RouterService for Served {
    type StreamImageStream = EventStream;
    type WatchJobStream = JobStream;

    async fn generate_image(
        &self,
        request: Request<pb::GenerateImageRequest>,
    ) -> Result<Response<pb::GenerateImageResponse>, Status> {
        self.0.generate_image(request).await.map_err(short)
    }

    async fn edit_image(
        &self,
        request: Request<pb::EditImageRequest>,
    ) -> Result<Response<pb::EditImageResponse>, Status> {
        self.0.edit_image(request).await.map_err(short)
    }

    async fn vary_image(
        &self,
        request: Request<pb::VaryImageRequest>,
    ) -> Result<Response<pb::VaryImageResponse>, Status> {
        self.0.vary_image(request).await.map_err(short)
    }

    async fn stream_image(
        &self,
        request: Request<pb::StreamImageRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let events = self.0.stream_image(request).await.map_err(short)?;
        Ok(events.map(|events| {
            let cut = events.flat_map(|event| match event {
                Ok(pb::StreamImageResponse { event: Some(Event::ImageChunk(chunk)) }) => {
                    let message = |chunk| pb::StreamImageResponse { event: Some(Event::ImageChunk(chunk)) };
                    transport::cut(chunk, message).left_stream()
                }
                other => stream::iter([other.map_err(short)]).right_stream(),
            });
            Box::pin(cut) as _
        }))
    }

    async fn submit_image(
        &self,
        request: Request<pb::SubmitImageRequest>,
    ) -> Result<Response<pb::SubmitImageResponse>, Status> {
        self.0.submit_image(request).await.map_err(short)
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::GetJobResponse>, Status> {
        self.0.get_job(request).await.map_err(short)
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::CancelJobResponse>, Status> {
        self.0.cancel_job(request).await.map_err(short)
    }

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Result<Response<JobStream>, Status> {
        let events = self.0.watch_job(request).await.map_err(short)?;
        Ok(events.map(|events| {
            let cut = events.flat_map(|event| match event {
                Ok(pb::WatchJobResponse { event: Some(JobEvent::ImageChunk(chunk)) }) => {
                    let message = |chunk| pb::WatchJobResponse { event: Some(JobEvent::ImageChunk(chunk)) };
                    transport::cut(chunk, message).left_stream()
                }
                other => stream::iter([other.map_err(short)]).right_stream(),
            });
            Box::pin(cut) as _
        }))
    }

    async fn explain_route(
        &self,
        request: Request<pb::ExplainRouteRequest>,
    ) -> Result<Response<pb::ExplainRouteResponse>, Status> {
        self.0.explain_route(request).await.map_err(short)
    }

    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        self.0.list_models(request).await.map_err(short)
    }
}

fn short(status: Status) -> Status {
    Error::from_status(&status).within_metadata_limits().into()
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Served(..)")
    }
}
