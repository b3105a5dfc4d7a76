//! Commit: an active snapshot becomes one that others can lie on. Changes one record and nothing else, because containerd
//! waits inside its own transaction.

use crate::labels::LabelMap;
use crate::store::NewCommit;
use crate::{Error, Snapshotter};

impl Snapshotter {
    /// Makes the active snapshot `key` the committed snapshot `name`. `labels` replace its labels. `parent`, if not empty,
    /// is what it lies on from now on; only a snapshot without a parent can get one.
    ///
    /// # Errors
    /// [`crate::ErrorKind::AlreadyExists`] for a name in use, [`crate::ErrorKind::NotFound`] for an unknown key or parent,
    /// [`crate::ErrorKind::FailedPrecondition`] when it is not active or the parent not committed,
    /// [`crate::ErrorKind::InvalidArgument`] for another parent than it has.
    pub async fn commit(&self, name: &str, key: &str, parent: &str, labels: LabelMap) -> Result<(), Error> {
        if name.is_empty() {
            let message = "a committed snapshot needs a name";
            return Err(Error::new(crate::ErrorKind::InvalidArgument, message));
        }
        let new = NewCommit {
            name: name.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        let record = self.parts.store.commit(new).await?;
        // Nobody mounts a committed snapshot.
        self.parts.release(record.id);
        Ok(())
    }
}
