//! A client of containerd: what `sluice pull` asks of it.

pub(crate) mod client;
mod proto;
pub(crate) mod pull;
