//! containerd's snapshots service over images that are mounted instead of unpacked.
//!
//! containerd asks a snapshotter for directories: an empty one to unpack each layer into, and one per container with all
//! its layers below. When a pull names the image, the engine behind [`Images`] may serve a layer by mounting it, and the
//! client neither fetches nor unpacks it. Everything else behaves like containerd's own overlayfs snapshotter, so layers
//! of both kinds can lie on each other in any order.
//!
//! From the outside in: [`socket`] and `service` speak the protocol and decide nothing; `operations` has one file per
//! operation; `store` keeps the records, one transaction per operation; `chain` says which directories lie below a
//! snapshot, `trees` mounts the ones that are image trees, `directories` has the others; [`mounts`] turns the result
//! into what the client mounts. `restore` puts all of that back after a restart or a reboot.
//!
//! Rule of the house: containerd commits and removes inside its own transactions, so these two only change records.
//! Whatever takes time happens in `operations`' cleanup, on request or in a background task.

mod blocking;
mod chain;
mod directories;
mod disk_usage;
mod error;
pub mod filter;
mod idmap;
pub mod images;
mod kernel;
pub mod labels;
pub mod mounts;
mod operations;
pub mod proto;
mod restore;
mod service;
mod snapshotter;
pub mod socket;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod text_form;
mod trees;

pub use error::{Error, ErrorKind};
pub use idmap::IdMapping;
pub use images::{Images, NoImages};
pub use mounts::{MountSpec, Usage};
pub use operations::Request;
pub use service::SnapshotsService;
pub use snapshotter::{Options, Snapshotter};
pub use socket::{serve, serve_with};
pub use store::{Claim, Kind, Named, Record, Time};
