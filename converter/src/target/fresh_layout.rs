//! A layout that did not exist before.
//!
//! Its directory is made before the source is read, so that a target that cannot be written shows at once. When nothing is
//! stored in it after all, it is taken away again. Only what making it made is removed, and only while it is empty: a
//! layout that holds a blob stays, whoever wrote that.

use std::fs;
use std::path::{Path, PathBuf};

use sluice_storage::Layout;

/// Removes the layout on drop when it is still empty.
#[derive(Debug)]
pub(super) struct FreshLayout(PathBuf);

impl FreshLayout {
    /// Remembers `path` when nothing is there yet.
    pub(super) fn watch(path: &Path) -> Option<Self> {
        (!path.exists()).then(|| Self(path.to_owned()))
    }
}

impl Drop for FreshLayout {
    fn drop(&mut self) {
        let lists_nothing = Layout::open(&self.0)
            .and_then(|layout| layout.names())
            .is_ok_and(|names| names.is_empty());
        // The first removal fails when there is a blob.
        if lists_nothing && fs::remove_dir(self.0.join("blobs/sha256")).is_ok() {
            let removed = fs::remove_dir(self.0.join("blobs"))
                .and_then(|()| fs::remove_file(self.0.join("index.json")))
                .and_then(|()| fs::remove_file(self.0.join("oci-layout")))
                .and_then(|()| fs::remove_dir(&self.0));
            if let Err(error) = removed {
                tracing::warn!(%error, "an empty layout was left at {}", self.0.display());
            }
        }
    }
}
