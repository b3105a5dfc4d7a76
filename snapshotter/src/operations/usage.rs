//! Usage: what a snapshot takes on this host's disk.
//!
//! | snapshot | what is reported |
//! |---|---|
//! | active | its upper directory, counted now |
//! | view | nothing: it has no files of its own |
//! | committed | its directory, counted at the first question and kept in the record: it never changes |
//! | remote layer | what the engine has cached of it by now |
//!
//! containerd's overlayfs snapshotter counts while it commits, inside containerd's transaction; here a commit stays short
//! however many files there are.

use crate::error::Chain;
use crate::mounts::Usage;
use crate::store::{Kind, Record};
use crate::{Error, ErrorKind, Snapshotter, disk_usage};

impl Snapshotter {
    /// What a snapshot takes, without what lies below it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Unavailable`] when the engine cannot tell.
    pub async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let parts = &self.parts;
        let record = parts.store.get(key).await?;
        if let Some(claim) = &record.remote {
            let usage = parts.engine.usage(&claim.layer).await;
            return usage.map_err(|error| {
                let message = format!("usage of snapshot \"{key}\" is not known");
                Error::new(ErrorKind::Unavailable, message).with_source(error)
            });
        }
        match record.kind {
            Kind::View => Ok(Usage::default()),
            Kind::Active => self.count(key, &record).await,
            Kind::Committed => self.committed_usage(key, &record).await,
        }
    }

    async fn count(&self, key: &str, record: &Record) -> Result<Usage, Error> {
        let counted = disk_usage::count(self.parts.directories.files(record.id)).await;
        if counted.is_err() {
            // Removed meanwhile: that is the answer, not a failing disk.
            self.parts.store.get(key).await?;
        }
        counted
    }

    async fn committed_usage(&self, key: &str, record: &Record) -> Result<Usage, Error> {
        if let Some(usage) = record.usage {
            return Ok(usage);
        }
        let usage = self.count(key, record).await?;
        if let Err(error) = self.parts.store.set_usage(key, record.id, usage).await {
            tracing::warn!(snapshot = key, error = %Chain(&error), "usage is counted again next time");
        }
        Ok(usage)
    }
}
