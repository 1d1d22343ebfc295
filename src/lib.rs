//! imagegate: the image-generation gateway. OpenAI's Images API in, any provider out, gRPC inside.
//!
//! The map, along the way of a request (docs/architecture.md has the whole of it):
//!
//! - [`cli`]: the commands, one file each
//! - [`gateway`]: puts a process together from its configuration, and again when that changes
//! - [`config`]: what a person configures, read and checked: the file, routing configs, secrets
//! - [`serve`]: listening, health, probes, draining
//! - [`pool`]: a service in other processes, at all the endpoints that answer for it
//! - [`tls`]: certificates between the roles
//! - [`quota`]: rate limits and budgets: what is used, and held for calls in flight
//! - [`fleet`]: what routers share through Redis
//! - [`shim`]: OpenAI's HTTP format, and the reference's for management, in front of a router
//! - [`dashboard`]: pages for a browser, in front of a router and its memory
//! - [`router`]: `RouterService`: who calls, which plan, what happened
//! - [`issuers`]: callers with tokens (JWT): issuers' keys, signatures, claims
//! - [`admin`]: `AdminService`: saved configs, keys and the request log, managed
//! - [`route`]: executes a plan: strategies, the target, fitting, retries, cost
//! - [`health`]: what past calls tell about targets and strategies: breakers, latency, budgets
//! - [`cache`]: answers that are given again, and requests that wait for the same answer
//! - [`store`]: what is remembered, in SQLite or PostgreSQL, and sealed where it is secret
//! - [`usage`]: sums over the request log: groups added up, and quantiles
//! - [`objects`]: images that can be fetched later, in a folder or in a bucket
//! - [`jobs`]: requests that run whether or not somebody waits, and webhooks
//! - [`call`]: what one request carries down the tree, and what is recorded on the way
//! - [`phases`]: where a request's time goes
//! - [`worker`]: `WorkerService`: drives a provider over HTTP, here or in another process
//! - [`provider`]: the providers' wire formats as pure functions, and their model data
//! - [`prices`]: what providers charge: the embedded price book, and how an operator's own is read
//! - [`conform`]: asks a worker what it promises: the conformance kit
//! - [`images`]: pieces, format and completeness, conversion, masks
//! - [`params`]: request parameters by name, the only table of them
//! - [`error`]: the one error type and every mapping of it
//! - [`digest`]: by what targets and requests are known again
//! - `disk`: files that are there as a whole or not at all, and only for so long
//! - [`egress`]: what hosts that come with a request may reach
//! - [`transport`]: gRPC connections and their limits
//! - `framing`: the calls whose answers carry images, without copies of these
//! - [`otlp`]: spans and metrics of requests that have ended, for a collector
//! - [`telemetry`]: logs and metrics, the only list of their names
//! - [`trace`]: where a request stands in a trace of several services
//! - `moment`: moments as texts
//! - `merge`: what is said on the way and then the answer, as one stream
//! - [`pb`]: the generated messages and services
//!
//! Invariants:
//!
//! - `provider` does no IO. `worker::drive` is the only upstream caller, through `worker::http`. The embeddings
//!   endpoint of `cache`, the webhooks of `jobs`, the keys of `issuers` and the collector of `otlp` are the only other
//!   hosts that are called, through the same; a collector that speaks gRPC through `pool`.
//! - `config` is the only reader of configuration files and of the environment behind them.
//! - `shim` knows nothing about strategies: it only calls the `RouterService` and `AdminService` traits. Nor does
//!   `dashboard`, which asks in the name of whoever is signed in.
//! - A deadline never grows. After the first preview of an image there is no retry and no fallback.
//! - Prompts, images and keys never reach a log, an error message or a metric label; a prompt reaches a span only where
//!   the operator wants it.
//! - Only `serve`, for jobs `jobs`, and for connections `pool` spawn tasks: dropping a request's future stops
//!   everything below it.
//! - `pool` repeats a call only if it was not sent or its endpoint has not begun; nothing waits long for Redis.

/// A data file of providers or prices, which the build has made JSON of.
macro_rules! data {
    ($name:literal) => {
        include_str!(concat!(env!("OUT_DIR"), "/", $name, ".json"))
    };
}

pub mod admin;
mod admission;
pub mod cache;
pub mod call;
pub mod cli;
pub mod config;
pub mod conform;
pub mod dashboard;
pub mod digest;
mod disk;
pub mod egress;
pub mod error;
pub mod fleet;
mod framing;
pub mod gateway;
mod guarded;
pub mod health;
pub mod images;
pub mod issuers;
pub mod jobs;
mod merge;
mod moment;
pub mod objects;
pub mod otlp;
pub mod params;
pub mod pb;
pub mod phases;
pub mod pool;
pub mod prices;
pub mod provider;
pub mod quota;
pub mod route;
pub mod router;
pub mod serve;
pub mod shim;
mod sized_body;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod transport;
pub mod usage;
pub mod worker;
