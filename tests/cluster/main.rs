//! The real binary in several processes on several hosts, under load: balance, restarts, partitions, mTLS.
//!
//! Hosts are network namespaces where the machine allows them, else loopback addresses; what needs the former says
//! that it could not run. No packet leaves the machine.
//!
//! One scenario at a time (`scenario`), since they share the machine's cores.

#![cfg(target_os = "linux")]

#[cfg(test)]
mod admin;
#[cfg(test)]
mod balance;
#[cfg(test)]
mod deploy;
#[cfg(test)]
mod dns;
#[cfg(test)]
mod draining;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod hosts;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod load;
#[cfg(test)]
mod partition;
#[cfg(test)]
mod picture;
#[cfg(test)]
mod pki;
#[cfg(test)]
mod probes;
#[cfg(test)]
mod process;
#[cfg(test)]
mod rolling;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod service;
#[cfg(test)]
mod site;
#[cfg(test)]
mod upstream;
