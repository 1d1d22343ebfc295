//! The memory of a router elsewhere, as if it were here.

use tonic::{Request, Response, Status};

use crate::{
    pb::{self, admin_service_client::AdminServiceClient, admin_service_server::AdminService},
    pool::Pool,
};

/// The adapter of the `AdminService` in another process.
#[derive(Clone, Debug)]
pub struct Remote(AdminServiceClient<Pool>);

impl Remote {
    /// At the endpoints of a pool.
    pub fn new(pool: Pool) -> Self {
        Self(pool.admin())
    }
}

/// Every call goes on as it is.
macro_rules! pass_on {
    ($($call:ident: $request:ident => $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl AdminService for Remote {
            $(async fn $call(
                &self,
                request: Request<pb::$request>,
            ) -> Result<Response<pb::$response>, Status> {
                self.0.clone().$call(request).await
            })*
        }
    };
}

pass_on! {
    list_configs: ListConfigsRequest => ListConfigsResponse,
    get_config: GetConfigRequest => GetConfigResponse,
    create_config: CreateConfigRequest => CreateConfigResponse,
    update_config: UpdateConfigRequest => UpdateConfigResponse,
    delete_config: DeleteConfigRequest => DeleteConfigResponse,
    list_config_versions: ListConfigVersionsRequest => ListConfigVersionsResponse,
    list_virtual_keys: ListVirtualKeysRequest => ListVirtualKeysResponse,
    get_virtual_key: GetVirtualKeyRequest => GetVirtualKeyResponse,
    create_virtual_key: CreateVirtualKeyRequest => CreateVirtualKeyResponse,
    update_virtual_key: UpdateVirtualKeyRequest => UpdateVirtualKeyResponse,
    delete_virtual_key: DeleteVirtualKeyRequest => DeleteVirtualKeyResponse,
    list_api_keys: ListApiKeysRequest => ListApiKeysResponse,
    get_api_key: GetApiKeyRequest => GetApiKeyResponse,
    create_api_key: CreateApiKeyRequest => CreateApiKeyResponse,
    update_api_key: UpdateApiKeyRequest => UpdateApiKeyResponse,
    delete_api_key: DeleteApiKeyRequest => DeleteApiKeyResponse,
    rotate_api_key: RotateApiKeyRequest => RotateApiKeyResponse,
    list_requests: ListRequestsRequest => ListRequestsResponse,
    get_request: GetRequestRequest => GetRequestResponse,
    get_usage: GetUsageRequest => GetUsageResponse,
    create_feedback: CreateFeedbackRequest => CreateFeedbackResponse,
    update_feedback: UpdateFeedbackRequest => UpdateFeedbackResponse,
}
