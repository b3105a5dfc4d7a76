//! Registries on the loopback interface.
//!
//! [`DistributionRegistry`] is the real `docker-registry` with empty storage, to push to. [`CountingRegistry`] serves the
//! OCI layout it is given, keeps a [`Traffic`] record of every request, and breaks in the ways that a [`FaultSet`] names.

mod counting;
mod distribution;
mod fault;
mod traffic;

pub use counting::CountingRegistry;
pub use distribution::DistributionRegistry;
pub use fault::{Countdown, Expiry, Fault, FaultSet};
pub use traffic::{Class, Request, Traffic};
