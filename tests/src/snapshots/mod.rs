//! The snapshots service, and a client that speaks to it as containerd does.
//!
//! [`Service`] runs it inside the test, where the engine can be watched and broken; [`Process`] runs it as a process that
//! can be killed. [`mounting`] does what containerd does with the answers, [`changes`] and [`suite`] make layers and compare
//! them.

pub mod changes;
mod client;
pub mod images;
pub mod mounting;
mod process;
mod service;
pub mod suite;

pub use client::{Client, Labels, labels};
pub use process::Process;
pub use service::Service;
