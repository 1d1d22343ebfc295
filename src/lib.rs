//! imagegate: the image-generation gateway.
pub mod call;
pub mod cli;
pub mod config;
pub mod egress;
pub mod error;
pub mod gateway;
pub mod images;
mod merge;
pub mod params;
pub mod pb;
pub mod provider;
pub mod route;
pub mod router;
pub mod serve;
pub mod shim;
pub mod telemetry;
pub mod transport;
pub mod worker;
