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

super::for_each_call!(pass_on);
