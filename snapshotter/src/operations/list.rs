//! Stat and List.

use crate::filter::Filter;
use crate::store::{Named, Record};
use crate::{Error, Snapshotter};

impl Snapshotter {
    /// The record of a snapshot.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub async fn stat(&self, key: &str) -> Result<Record, Error> {
        self.parts.store.get(key).await
    }

    /// The snapshots that any of `filters` means, or all when there are none, in the order of their names.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidArgument`] for a malformed filter.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<Named>, Error> {
        self.parts.store.list(Filter::parse(filters)?).await
    }
}
