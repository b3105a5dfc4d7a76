//! Mounts: the mount of a snapshot that exists.
//!
//! Also the way back to life: a tree that was not mounted again at the start, or that stopped answering, is mounted here.

use std::sync::Arc;

use super::lower_trees;
use super::prepare::mount_spec;
use crate::chain;
use crate::labels::Labels;
use crate::mounts::MountSpec;
use crate::store::Kind;
use crate::{Error, ErrorKind, Snapshotter};

impl Snapshotter {
    /// What a client mounts to see an active snapshot or a view.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] for a committed snapshot; [`ErrorKind::Unavailable`] when
    /// an image tree below cannot be mounted.
    pub async fn mounts(&self, key: &str) -> Result<MountSpec, Error> {
        let parts = &self.parts;
        let (record, stack) = parts.store.get_with_chain(key).await?;
        if record.kind == Kind::Committed {
            let message = format!("snapshot \"{key}\" is neither active nor a view");
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        let labels = Labels::parse(&record.labels)?;
        let (lowers, leases) = lower_trees(parts, &stack).await?;
        let lowers = chain::paths(&lowers, &leases, &parts.directories);
        parts.keep(record.id, Arc::new(leases));
        // Removed or committed since the record was read: nobody would give the leases back.
        let is_same = |now: &crate::Record| now.id == record.id;
        let still_there = parts.store.get(key).await;
        if !still_there.as_ref().is_ok_and(is_same) {
            parts.release(record.id);
            return Err(still_there.err().unwrap_or_else(|| Error::no_snapshot(key)));
        }
        Ok(mount_spec(parts, record.kind, record.id, &lowers, &labels))
    }
}
