//! Remove: takes a record away and leaves the rest for the cleanup, because containerd may hold its garbage collector's
//! lock meanwhile.

use crate::{Error, Snapshotter};

impl Snapshotter {
    /// Removes a snapshot. Its key or name is free at once; its files and mounts go away in the background or with the
    /// next [`Snapshotter::cleanup`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; [`crate::ErrorKind::FailedPrecondition`] while others lie on it.
    pub async fn remove(&self, key: &str) -> Result<(), Error> {
        let record = self.parts.store.remove(key).await?;
        self.parts.release(record.id);
        self.parts.work.notify_one();
        Ok(())
    }
}
