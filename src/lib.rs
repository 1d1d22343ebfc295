//! imagegate: the image-generation gateway.
pub mod config;
pub mod egress;
pub mod error;
pub mod images;
pub mod params;
pub mod pb;
pub mod provider;
pub mod worker;
