//! How targets and the workers elsewhere stand.

use tonic::Request;

use super::Admin;
use crate::{
    config::{callers::Scope, saved::DEFAULT_TENANT},
    error::Result,
    pb,
};

impl Admin {
    pub(super) async fn list_targets(
        &self,
        request: Request<pb::ListTargetsRequest>,
    ) -> Result<pb::ListTargetsResponse> {
        let caller = self.reader(&request, Scope::Logs)?;
        let targets = self.router.targets(&caller.tenant, &request.get_ref().config).await?;
        let is_operator = caller.tenant == DEFAULT_TENANT;
        let endpoints = if is_operator { self.gateway.endpoints() } else { Vec::new() };
        Ok(pb::ListTargetsResponse { targets, endpoints })
    }
}
