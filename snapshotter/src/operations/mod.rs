//! What a client can ask for, one file per operation, in plain types.
//!
//! Everything is a method of [`crate::Snapshotter`]. A method that was started runs to its end even if its caller stops
//! waiting; the service takes care of that.

pub(crate) mod cleanup;
mod commit;
mod list;
mod mounts;
mod prepare;
mod remove;
mod update;
mod usage;

pub use prepare::Request;

use crate::Error;
use crate::chain::{self, Lower};
use crate::snapshotter::Parts;
use crate::store::Named;
use crate::trees::TreeLease;

/// The directories of a stack, and leases of the trees among them, mounted.
pub(crate) async fn lower_trees(
    parts: &Parts,
    stack: &[Named],
) -> Result<(Vec<Lower>, Vec<TreeLease>), Error> {
    let lowers = chain::lowers(stack);
    let mut leases = Vec::new();
    for lower in &lowers {
        if let Lower::Tree { request, top } = lower {
            leases.push(parts.trees.acquire(request.clone(), top).await?);
        }
    }
    Ok((lowers, leases))
}
