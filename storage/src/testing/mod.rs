//! What tests of this crate and of those above it share. Not part of the product: cargo feature `testing`.
//!
//! [`memory`] keeps images in memory, [`faulty`] makes a blob misbehave in named ways, [`sample`] makes layers with real
//! indexes, and [`conformance`] and [`attached`] hold every implementation of a contract to the same promises.

pub mod attached;
pub mod conformance;
pub mod faulty;
pub mod memory;
pub mod sample;

pub use faulty::{Fault, FaultyBlob, Times};
pub use memory::{MemoryBlob, MemoryRepository};
pub use sample::SampleLayer;
