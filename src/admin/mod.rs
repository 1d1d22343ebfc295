//! What the gateway remembers, managed: saved configs, virtual keys, API keys, the request log.
//!
//! Callers hold it as [`SharedAdmin`], whether it is here or behind a connection.

pub mod remote;

use std::sync::Arc;

use crate::pb::admin_service_server::AdminService;

/// The memory of this process, or the adapter of one elsewhere: the same to its callers.
pub type SharedAdmin = Arc<dyn AdminService>;
