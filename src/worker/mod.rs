//! Workers: providers behind the generated `WorkerService` trait, in this process or in another.

pub mod drive;
pub mod http;
mod incoming;
pub mod local;
mod relay;
pub mod remote;
pub mod retry_after;
pub mod scan;
mod scrub;
mod sse;
mod tokens;
mod upstream;
mod workers;

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use tonic::Status;

pub use self::workers::Workers;
use crate::pb::{self, worker_service_server::WorkerService};

/// What a worker answers to `Generate`.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<pb::GenerateResponse, Status>> + Send>>;

/// A worker in this process, or the adapter of one elsewhere: the same to its callers.
pub type SharedWorker = Arc<dyn WorkerService<GenerateStream = EventStream>>;
