//! Writing a blob into a layout.
//!
//! Bytes go to a temporary file in `blobs/`; [`BlobWriter::finish`] compares the digest, makes the file durable and renames
//! it to its name. A writer that is dropped removes its file. Disk calls and hashing run on the blocking pool, so the file and
//! the hasher travel there and back with every write.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sluice_format::{BlobDigest, FormatError, Hasher};
use tempfile::NamedTempFile;

use super::blob_dir;
use super::catalog::FILE_MODE;
use crate::{BlobWriter, Error, ErrorKind, blocking};

/// A blob on its way into a layout.
#[derive(Debug)]
pub(super) struct FileWriter {
    dir: PathBuf,
    /// `None` after a write failed: what is in the file then is unknown.
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: NamedTempFile,
    hasher: Hasher,
}

impl FileWriter {
    /// Opens a temporary file in the layout `dir`.
    pub(super) fn create(dir: &Path) -> Result<Self, Error> {
        let dir = blob_dir(dir);
        let what = |error| Error::io(format!("create a blob in {}", dir.display()), error);
        std::fs::create_dir_all(&dir).map_err(what)?;
        let file = tempfile::Builder::new()
            .prefix(".blob-")
            .permissions(Permissions::from_mode(FILE_MODE))
            .tempfile_in(dir.parent().unwrap_or(&dir))
            .map_err(what)?;
        let open = OpenFile {
            file,
            hasher: Hasher::new(),
        };
        Ok(Self {
            dir,
            open: Some(open),
        })
    }

    fn take(&mut self) -> Result<OpenFile, Error> {
        self.open.take().ok_or_else(|| {
            let message = format!("a write to a blob in {} failed before", self.dir.display());
            Error::new(ErrorKind::Io, message)
        })
    }
}

impl OpenFile {
    fn append(mut self, bytes: &[u8]) -> Result<Self, Error> {
        self.file
            .write_all(bytes)
            .map_err(|error| Error::io(format!("write blob {}", self.file.path().display()), error))?;
        self.hasher.update(bytes);
        Ok(self)
    }

    fn finish(self, dir: &Path, digest: BlobDigest) -> Result<(), Error> {
        let found = self.hasher.finish();
        if found != digest.0 {
            return Err(FormatError::Corrupt {
                what: format!("blob written to {}", dir.display()),
                expected: digest.0,
                found,
            }
            .into());
        }
        let path = dir.join(digest.0.to_hex());
        let what = |error| Error::io(format!("store blob {}", path.display()), error);
        if path.try_exists().map_err(what)? {
            return Ok(());
        }
        self.file.as_file().sync_all().map_err(what)?;
        self.file.persist(&path).map_err(|error| what(error.error))?;
        Ok(())
    }
}

impl BlobWriter for FileWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let open = self.take()?;
            let open = blocking::run("write a blob", move || open.append(&bytes)).await?;
            self.open = Some(open);
            Ok(())
        }
        .boxed()
    }

    fn finish(mut self: Box<Self>, digest: BlobDigest) -> BoxFuture<'static, Result<(), Error>> {
        async move {
            let open = self.take()?;
            let dir = std::mem::take(&mut self.dir);
            blocking::run("finish a blob", move || open.finish(&dir, digest)).await
        }
        .boxed()
    }
}
