//! Profiles kept on this host.
//!
//! ```text
//! profiles/sha256/<image ID>     the profile document
//! ```
//!
//! A file is replaced by rename, so readers see the old profile or the new one; of two processes that save at the same time
//! one loses what its start taught, which the next start makes good. A document carries its checksum, and a file that does
//! not match it, or that is something else, counts as absent: it is named once in the log and replaced by the next start.
//! Nothing is synced, since a power cut costs a hint at worst.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind as IoErrorKind, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_format::{Digest, Limits, Profile};

use crate::{Error, ErrorKind};

/// Mode of directories made here: what a private image reads is as private as the image.
const DIR_MODE: u32 = 0o700;

/// The profiles of one cache directory. All calls block on the disk for a moment.
#[derive(Clone, Debug)]
pub struct ProfileStore {
    dir: PathBuf,
    limits: Limits,
    said_damaged: Arc<AtomicBool>,
}

/// A profile of the store and its file.
#[derive(Clone, Debug)]
pub struct StoredProfile {
    /// The profile.
    pub profile: Profile,
    /// The file that holds it.
    pub path: PathBuf,
    /// Length of the file in bytes.
    pub stored_len: u64,
}

impl ProfileStore {
    /// The store in a cache directory, which need not exist yet.
    pub fn new(cache_dir: &Path) -> Self {
        Self {
            dir: cache_dir.join("profiles").join("sha256"),
            limits: Limits::default(),
            said_damaged: Arc::default(),
        }
    }

    /// The profile of an image. `None` when there is none that can be used.
    pub fn load(&self, image_id: &Digest) -> Option<Profile> {
        self.load_file(&self.path(image_id), image_id)
            .map(|stored| stored.profile)
    }

    /// Keeps a profile in place of the one that its image has. Atomic.
    ///
    /// # Errors
    /// What hinders writing.
    pub fn save(&self, profile: &Profile) -> Result<(), Error> {
        let path = self.path(&profile.image_id());
        let bytes = profile.encode()?;
        let what = |error| Error::io(format!("write profile {}", path.display()), error);
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(&self.dir)
            .map_err(what)?;
        let mut file = tempfile::Builder::new()
            .prefix(".profile-")
            .tempfile_in(&self.dir)
            .map_err(what)?;
        file.write_all(&bytes).map_err(what)?;
        file.persist(&path).map_err(|error| what(error.error))?;
        Ok(())
    }

    /// Removes the profile of an image, damaged or not; whether there was one.
    ///
    /// # Errors
    /// What hinders removing it.
    pub fn remove(&self, image_id: &Digest) -> Result<bool, Error> {
        let path = self.path(image_id);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format!("remove profile {}", path.display()), error)),
        }
    }

    /// All profiles that can be used, by image ID.
    ///
    /// # Errors
    /// What hinders reading the directory. A directory that is missing holds nothing.
    pub fn list(&self) -> Result<Vec<StoredProfile>, Error> {
        let what = |error| Error::io(format!("list {}", self.dir.display()), error);
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(what(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(what)?;
            // Unfinished files and what somebody else put here.
            let named = entry.file_name().to_str().map(Digest::from_hex);
            if let Some(Ok(image_id)) = named {
                found.extend(self.load_file(&entry.path(), &image_id));
            }
        }
        found.sort_by_key(|stored| stored.profile.image_id());
        Ok(found)
    }

    fn path(&self, image_id: &Digest) -> PathBuf {
        self.dir.join(image_id.to_hex())
    }

    fn load_file(&self, path: &Path, image_id: &Digest) -> Option<StoredProfile> {
        match self.try_load(path, image_id) {
            Ok(stored) => stored,
            Err(error) => {
                if !self.said_damaged.swap(true, Ordering::Relaxed) {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(file = %path.display(), error, "a start-up profile cannot be used; starts go on without it");
                }
                None
            }
        }
    }

    fn try_load(&self, path: &Path, image_id: &Digest) -> Result<Option<StoredProfile>, Error> {
        let what = |error| Error::io(format!("read profile {}", path.display()), error);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(what(error)),
        };
        let mut bytes = Vec::new();
        file.take(self.limits.profile_stored_len + 1)
            .read_to_end(&mut bytes)
            .map_err(what)?;
        let profile = Profile::parse(&bytes, &self.limits)?;
        if profile.image_id() != *image_id {
            let message = format!("it is the profile of image {}", profile.image_id());
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(Some(StoredProfile {
            profile,
            path: path.to_owned(),
            stored_len: bytes.len() as u64,
        }))
    }
}

#[cfg(test)]
mod tests;
