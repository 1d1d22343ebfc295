//! Several workers of this process as one: a call goes to the provider it names.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status};

use super::{EventStream, SharedWorker};
use crate::{
    error::Error,
    pb::{self, worker_service_server::WorkerService},
};

/// Workers by the provider they serve.
#[derive(Default)]
pub struct Local(BTreeMap<String, SharedWorker>);

impl Local {
    /// Puts workers together.
    pub fn new(workers: impl IntoIterator<Item = (String, SharedWorker)>) -> Self {
        Self(workers.into_iter().collect())
    }
}

#[tonic::async_trait]
impl WorkerService for Local {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        let mut all = pb::DescribeResponse::default();
        for worker in self.0.values() {
            let described = worker.describe(Request::new(pb::DescribeRequest {})).await?;
            all.providers.extend(described.into_inner().providers);
        }
        Ok(Response::new(all))
    }

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<EventStream>, Status> {
        let provider = &request.get_ref().provider;
        match self.0.get(provider) {
            Some(worker) => worker.generate(request).await,
            None => {
                let served = self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let message = format!("this worker does not serve \"{provider}\"; it serves {served}");
                Err(Error::unsupported("provider", message).into())
            }
        }
    }
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
