//! What went wrong, as a page.

use axum::response::{IntoResponse, Response};
use maud::html;
use tonic::{Code, Status};

use super::{layout, session::Visitor};
use crate::error::Error;

/// What a page could not show or do. [`super::session::enter`] puts the page around it.
#[derive(Clone, Debug)]
pub struct Failure {
    code: Code,
    error: Error,
}

impl Failure {
    /// As gRPC calls it.
    pub fn code(&self) -> Code {
        self.code
    }

    /// All that is known of it.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// The page.
    pub fn page(&self, visitor: Option<&Visitor>) -> Response {
        let status = self.error.status_code();
        let title = status.canonical_reason().unwrap_or("Error");
        let body = html! {
            h1 { (title) }
            (layout::problem(&self.error))
            p { a href="/" { "Back to the beginning" } }
        };
        (status, layout::page(visitor, None, title, &body)).into_response()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self { code: status.code(), error: Error::from_status(&status) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Status::from(error).into()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.error.status_code();
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
