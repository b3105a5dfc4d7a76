//! The promises of the engine, from wishes to landed chunks, on a blob that is slow or fails in named ways. Time stands still
//! except where everybody waits, so that nothing here depends on how fast the machine is.

mod ahead;
mod bench;
mod ending;
mod filling;
mod lanes;
mod policy;
mod profile;
mod start;
mod streaming;
