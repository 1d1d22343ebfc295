//! Pages for a browser: what the gateway does, and what it remembers.
//!
//! They hold the router and its memory as any other caller does, and ask with the credential of whoever is signed in: who may
//! see or change something is decided there, and nowhere here.

mod assets;
mod chart;
mod configs;
mod failure;
mod filter;
mod guard;
mod keys;
mod layout;
mod live;
mod logs;
mod openid;
mod overview;
mod playground;
mod range;
mod replay;
mod request;
mod session;
mod sign_in;
mod targets;
mod waterfall;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, Uri},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};

pub use self::session::Sessions;
use self::{failure::Failure, session::Visitor};
use crate::{
    admin::SharedAdmin,
    config::Settings,
    error::{Error, ErrorKind},
    issuers::Issuers,
    router::SharedRouter,
};

/// Settings and issuers as they are now: a reload changes them.
pub type Known = Arc<dyn Fn() -> (Arc<Settings>, Arc<Issuers>) + Send + Sync>;

/// What the pages share.
#[derive(Clone)]
pub struct Dashboard {
    router: SharedRouter,
    admin: SharedAdmin,
    sessions: Arc<Sessions>,
    known: Known,
    /// The pages can be reached from other machines.
    is_exposed: bool,
    /// Where the shim of this process listens.
    http: Option<SocketAddr>,
}

impl Dashboard {
    /// Pages in front of a router and its memory, at the first of these addresses, beside a shim at the other.
    pub fn new(
        router: SharedRouter,
        admin: SharedAdmin,
        sessions: Sessions,
        known: Known,
        address: SocketAddr,
        http: Option<SocketAddr>,
    ) -> Self {
        let is_exposed = !address.ip().is_loopback();
        Self { router, admin, sessions: Arc::new(sessions), known, is_exposed, http }
    }

    fn known(&self) -> (Arc<Settings>, Arc<Issuers>) {
        (self.known)()
    }

    /// All routes.
    pub fn routes(self) -> Router {
        let pages = Router::new()
            .route("/", get(overview::show))
            .route("/overview/answerers", get(overview::answerers))
            .route("/logs", get(logs::list))
            .route("/logs/live", get(logs::live))
            .route("/logs/{id}", get(request::show))
            .route("/logs/{id}/images/{index}", get(request::image))
            .route("/logs/{id}/replay", post(replay::replay))
            .route("/logs/{id}/feedback", post(request::feedback))
            .merge(configs::routes())
            .merge(playground::routes())
            .route("/targets", get(targets::list))
            .route("/targets/live", get(targets::live))
            .merge(keys::routes())
            .fallback(not_found)
            .layer(middleware::from_fn_with_state(self.clone(), session::enter));
        Router::new()
            .route("/assets/{name}", get(assets::get))
            .route("/sign-in", get(sign_in::form).post(sign_in::sign_in))
            .route("/sign-in/issuer", get(openid::begin))
            .route("/sign-in/callback", get(openid::end))
            .route("/sign-out", post(sign_in::sign_out))
            .merge(pages)
            .layer(middleware::from_fn(guard::guard))
            .layer(middleware::from_fn_with_state(self.clone(), only_if_enabled))
            .with_state(self)
    }
}

async fn only_if_enabled(State(dashboard): State<Dashboard>, request: Request, next: Next) -> Response {
    if dashboard.known().0.dashboard.enabled {
        return next.run(request).await;
    }
    (StatusCode::NOT_FOUND, "the dashboard is switched off\n").into_response()
}

async fn not_found(_: Visitor, uri: Uri) -> Failure {
    Error::new(ErrorKind::NotFound, format!("there is no page {}", uri.path())).into()
}

impl std::fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dashboard").finish_non_exhaustive()
    }
}
