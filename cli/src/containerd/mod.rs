//! containerd as seen from outside: a client of its services, its release, and what has to stand in its configuration.

pub(crate) mod client;
pub(crate) mod content;
pub(crate) mod lease;
pub(crate) mod plugins;
mod proto;
pub(crate) mod pull;
pub(crate) mod release;
pub(crate) mod settings;
