//! `RouterService` of this process.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::HeaderMap;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{
    EVENTS_WAITING, EventStream, REQUEST_ID, Router, TRACE_ID, resolve,
    start::{Ids, asked_for, result},
};
use crate::{
    config::{callers::Scope, saved::DEFAULT_TENANT},
    error::Result,
    images::Pieces,
    jobs::{self, JobStream, Made, Webhook},
    merge::merge,
    pb::{self, Job, Operation, planned_target::Decision, router_service_server::RouterService},
    route,
};

impl Router {
    async fn answer<T>(
        &self,
        request: Request<T>,
        image: Option<pb::ImageRequest>,
        operation: Operation,
    ) -> Result<pb::ImageResult> {
        self.prepare(request.metadata().as_ref()).await;
        let started = self.start(request.metadata().as_ref(), image, operation, None)?.admit().await?;
        let mut result = result(started.run().await?);
        for (image, pieces) in &mut result.1 {
            image.data = std::mem::take(pieces).into_bytes();
        }
        result.0.images = result.1.into_iter().map(|(image, _)| image).collect();
        Ok(result.0)
    }

    /// Who asks about jobs.
    async fn caller<T>(&self, request: &Request<T>) -> Result<String> {
        let headers = request.metadata().as_ref();
        self.prepare(headers).await;
        let state = self.state.load();
        let caller = resolve::authenticate(headers, &state.settings, &state.issuers, &[Scope::Generate])?;
        Ok(caller.map_or_else(String::new, |caller| caller.id.clone()))
    }

    async fn submit(&self, headers: &HeaderMap, request: pb::SubmitImageRequest) -> Result<Job> {
        let pb::SubmitImageRequest { image, wait_ms } = request;
        let wait = Duration::from_millis(wait_ms);
        let mut headers = headers.clone();
        self.prepare(&headers).await;
        // How long this call may take says nothing of the job.
        headers.remove("grpc-timeout");
        // Previews nobody can be shown would be paid for.
        let image = pb::ImageRequest { partial_images: None, ..image.unwrap_or_default() };
        let state = self.state.load_full();
        let key = state.settings.webhook_key.as_ref();
        let webhook = Webhook::read(&headers, key, state.http.as_ref())
            .and_then(|webhook| self.shared.jobs.admit(state.settings.limits.jobs).map(|()| webhook))
            .map_err(|error| self.refuse(&Ids::new(&headers), &headers, &image, error))?;
        let (sender, progress) = mpsc::channel(EVENTS_WAITING);
        let started = self
            .start(&headers, Some(image), Operation::Unspecified, Some(sender))?
            .admit()
            .await?
            .afford()?;
        let ctx = Arc::clone(&started.call.ctx);
        let new = jobs::New {
            operation: started.call.request.effective_operation(),
            model: started.call.request.model.clone(),
            request_id: ctx.request_id.clone(),
            caller: ctx.caller.clone(),
            webhook,
        };
        let is_quick = !wait.is_zero() && started.usual_time().await.is_none_or(|usual| usual < wait);
        let run = Box::pin(async move {
            let (mut result, images) = result(started.run().await?);
            let images = images.into_iter().map(|(image, pieces)| {
                result.images.push(image);
                pieces
            });
            Ok(Made { images: images.collect(), result })
        });
        let job = self.shared.jobs.submit(new, progress, run);
        Ok(if is_quick { self.shared.jobs.wait(job, wait).await } else { job })
    }
}

#[tonic::async_trait]
impl RouterService for Router {
    type StreamImageStream = EventStream;
    type WatchJobStream = JobStream;

    async fn generate_image(
        &self,
        mut request: Request<pb::GenerateImageRequest>,
    ) -> Result<Response<pb::GenerateImageResponse>, Status> {
        let image = request.get_mut().image.take();
        let result = self.answer(request, image, Operation::Generate).await?;
        Ok(Response::new(pb::GenerateImageResponse { result: Some(result) }))
    }

    async fn edit_image(
        &self,
        mut request: Request<pb::EditImageRequest>,
    ) -> Result<Response<pb::EditImageResponse>, Status> {
        let image = request.get_mut().image.take();
        let result = self.answer(request, image, Operation::Edit).await?;
        Ok(Response::new(pb::EditImageResponse { result: Some(result) }))
    }

    async fn vary_image(
        &self,
        mut request: Request<pb::VaryImageRequest>,
    ) -> Result<Response<pb::VaryImageResponse>, Status> {
        let image = request.get_mut().image.take();
        let result = self.answer(request, image, Operation::Variation).await?;
        Ok(Response::new(pb::VaryImageResponse { result: Some(result) }))
    }

    async fn stream_image(
        &self,
        mut request: Request<pb::StreamImageRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let image = request.get_mut().image.take();
        let (sender, receiver) = mpsc::channel(EVENTS_WAITING);
        self.prepare(request.metadata().as_ref()).await;
        let started = self.start(request.metadata().as_ref(), image, Operation::Unspecified, Some(sender))?;
        let started = started.admit().await?;
        let ctx = Arc::clone(&started.call.ctx);
        // Its bytes are held until the last of them is on its way.
        let until_the_end = Arc::clone(&ctx);
        let events = merge(receiver, started.run_to_events()).map(move |event| {
            _ = &until_the_end;
            Ok(pb::StreamImageResponse { event: Some(event?) })
        });
        let mut response: Response<EventStream> = Response::new(Box::pin(events));
        // Known at once, for those who have to send headers before the first preview.
        for (name, id) in [(REQUEST_ID, &ctx.request_id), (TRACE_ID, &ctx.trace_id)] {
            if let Ok(id) = id.parse() {
                response.metadata_mut().insert(name, id);
            }
        }
        Ok(response)
    }

    async fn submit_image(
        &self,
        mut request: Request<pb::SubmitImageRequest>,
    ) -> Result<Response<pb::SubmitImageResponse>, Status> {
        let message = std::mem::take(request.get_mut());
        let job = self.submit(request.metadata().as_ref(), message).await?;
        Ok(Response::new(pb::SubmitImageResponse { job: Some(job) }))
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::GetJobResponse>, Status> {
        let caller = self.caller(&request).await?;
        let pb::GetJobRequest { id, omit_result } = request.into_inner();
        let (job, mut result) = self.shared.jobs.get(&id, &caller).await?;
        if omit_result {
            result = None;
        }
        for (i, image) in result.iter_mut().flat_map(|result| &mut result.images).enumerate() {
            let pieces: Vec<Bytes> = self.shared.jobs.image(&id, i).await?.try_collect().await?;
            image.data = pieces.into_iter().collect::<Pieces>().into_bytes();
        }
        Ok(Response::new(pb::GetJobResponse { job: Some(job), result }))
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::CancelJobResponse>, Status> {
        let caller = self.caller(&request).await?;
        let job = self.shared.jobs.cancel(&request.get_ref().id, &caller).await?;
        Ok(Response::new(pb::CancelJobResponse { job: Some(job) }))
    }

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Result<Response<JobStream>, Status> {
        let caller = self.caller(&request).await?;
        Ok(Response::new(self.shared.jobs.watch(&request.get_ref().id, &caller).await?))
    }

    async fn explain_route(
        &self,
        mut request: Request<pb::ExplainRouteRequest>,
    ) -> Result<Response<pb::ExplainRouteResponse>, Status> {
        let image = request.get_mut().image.take();
        let headers = request.metadata().as_ref();
        self.prepare(headers).await;
        let (call, resolved) =
            self.resolve(headers, &asked_for(image, Operation::Unspecified), None, &Ids::new(headers))?;
        let targets = route::explain(&resolved.route.plan, &call).await;
        let tried = targets.iter().filter(|target| target.decision() == Decision::Tried);
        let prices: Option<Vec<f64>> = tried.map(|target| target.price_usd).collect();
        Ok(Response::new(pb::ExplainRouteResponse {
            route: resolved.route.name,
            min_cost_usd: prices.iter().flatten().copied().reduce(f64::min),
            max_cost_usd: prices.iter().flatten().copied().reduce(f64::max),
            targets,
        }))
    }

    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        let headers = request.metadata().as_ref();
        self.prepare(headers).await;
        let state = self.state.load_full();
        let caller = resolve::authenticate(headers, &state.settings, &state.issuers, &[Scope::Generate])?;
        let tenant = caller.as_ref().map_or(DEFAULT_TENANT, |caller| &caller.tenant);
        let granted = |id: &str| {
            let granted = caller.as_ref().and_then(|caller| caller.virtual_keys.as_ref());
            granted.is_none_or(|granted| granted.contains(id))
        };
        let mut models = Vec::new();
        for record in state.workers.records().await {
            let keys = state.settings.virtual_keys_of(tenant).iter();
            let keys = keys.filter(|(id, key)| key.provider == record.name && granted(id));
            let keys: Vec<_> = keys.collect();
            if keys.is_empty() && !state.providers.is_keyless(&record.name) {
                continue;
            }
            let listed = |id: String, model: &pb::ModelCapability| pb::ListedModel {
                id,
                provider: record.name.clone(),
                capability: Some(model.clone()),
            };
            let is_id = |model: &&pb::ModelCapability| !model.model.ends_with('*');
            for model in record.models.iter().filter(is_id) {
                models.push(listed(model.model.clone(), model));
            }
            for (key, upstream) in keys {
                let is_described = |id: &str| upstream.models.iter().any(|model| model.model == id);
                let others = record.models.iter().filter(|model| !is_described(&model.model));
                for model in upstream.models.iter().chain(others).filter(is_id) {
                    models.push(listed(format!("@{key}/{}", model.model), model));
                }
            }
        }
        Ok(Response::new(pb::ListModelsResponse { models }))
    }
}
