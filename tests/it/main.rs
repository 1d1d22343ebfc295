//! The router and its strategies, driven through the generated services with a scripted worker.
//!
//! Every test holds in one process and across connections; no network, no sleeping, no fixed ports.

#[cfg(test)]
mod answers;
#[cfg(test)]
mod balance;
#[cfg(test)]
mod caching;
#[cfg(test)]
mod callers;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod compat;
#[cfg(test)]
mod connections;
#[cfg(test)]
mod costs;
#[cfg(test)]
mod dry_run;
#[cfg(test)]
mod examples;
#[cfg(test)]
mod explaining;
#[cfg(test)]
mod health;
#[cfg(test)]
mod hedging;
#[cfg(test)]
mod idempotency;
#[cfg(test)]
#[path = "../../benches/month/invoice.rs"]
mod invoice;
#[cfg(test)]
mod leavers;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod logging;
#[cfg(test)]
mod month;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod pool;
#[cfg(test)]
mod promises;
#[cfg(test)]
mod quotas;
#[cfg(test)]
mod random;
#[cfg(test)]
mod routing;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod semantic;
#[cfg(test)]
mod shares;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod spend;
#[cfg(test)]
mod squeeze;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tenants;
#[cfg(test)]
mod timing;
#[cfg(test)]
#[path = "../../benches/month/traffic.rs"]
mod traffic;
#[cfg(test)]
#[path = "../../examples/simulate/world/mod.rs"]
mod world;
