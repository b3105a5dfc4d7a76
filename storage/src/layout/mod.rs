//! An OCI image layout: a directory that holds an image as files.
//!
//! `blobs/sha256/<hex>` are the blobs and manifests, `index.json` lists the manifests by tag, `oci-layout` says that the
//! directory is one. A blob is written to a temporary file beside the others and renamed when its digest is known, so
//! a blob that is there is whole. `catalog` changes `index.json`, `file_blob` reads and `writer` writes blobs. The same tree
//! may lie on a web server or in object storage: `remote` reads it there; what both have in common is in `objects`. Source:
//! OCI image spec 1.1, "image layout".

#[cfg(feature = "object-storage")]
mod bucket;
mod catalog;
mod file_blob;
mod objects;
mod place;
mod referrers;
mod remote;
mod writer;

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sluice_format::{BlobDigest, Digest, Limits};

pub use self::catalog::LayoutEntry;
use self::file_blob::FileBlob;
pub(crate) use self::objects::Objects;
use self::objects::{check_len, verify};
pub use self::place::{RemotePlace, Service};
pub use self::remote::RemoteLayout;
use self::writer::FileWriter;
use crate::referrers::Referrer;
use crate::{
    Blob, BlobWriter, Descriptor, Error, ErrorKind, Manifest, ManifestName, Repository, WritableRepository,
    blocking,
};

/// File that marks a layout, and the only version of it that there is.
const MARKER_FILE: &str = "oci-layout";
const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// An open layout directory.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: Arc<Path>,
    limits: Limits,
}

impl Layout {
    /// Opens a layout for reading and writing. Blocks on the disk for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for no such directory, [`ErrorKind::InvalidInput`] for one that is no layout.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        match std::fs::read_to_string(dir.join(MARKER_FILE)) {
            Ok(_) => Ok(Self::at(dir)),
            Err(error) if error.kind() == IoErrorKind::NotFound && dir.exists() => {
                let message = format!(
                    "{} is not an OCI image layout: it has no file {MARKER_FILE}",
                    dir.display()
                );
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
            Err(error) => Err(Error::io(format!("open OCI layout {}", dir.display()), error)),
        }
    }

    /// Opens a layout, or makes an empty one of a directory that is missing or empty, or where making one was interrupted.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a directory that holds something else; what hinders creating it.
    pub fn create(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        let what = |error| Error::io(format!("create OCI layout {}", dir.display()), error);
        std::fs::create_dir_all(&dir).map_err(what)?;
        let _locked = catalog::lock(&dir)?;
        for entry in std::fs::read_dir(&dir).map_err(what)? {
            let name = entry.map_err(what)?.file_name();
            if !name.to_str().is_some_and(catalog::is_unfinished) {
                return Self::open(dir);
            }
        }
        std::fs::create_dir_all(blob_dir(&dir)).map_err(what)?;
        catalog::create(&dir)?;
        // Last, because it is what makes the directory a layout.
        std::fs::write(dir.join(MARKER_FILE), MARKER).map_err(what)?;
        Ok(Self::at(dir))
    }

    fn at(dir: PathBuf) -> Self {
        Self {
            dir: dir.into(),
            limits: Limits::default(),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// What `index.json` lists, in its order. Blocks on the disk for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a file that is no image index; what hinders reading it.
    pub fn names(&self) -> Result<Vec<LayoutEntry>, Error> {
        catalog::load(&self.dir, &self.limits)
    }

    /// The name to ask for when the user gave `name`: that one, or without one the only manifest of the layout that is no
    /// artifact.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] listing the tags when there are several, [`ErrorKind::NotFound`] when there is none.
    pub fn manifest_name(&self, name: Option<&ManifestName>) -> Result<ManifestName, Error> {
        if let Some(name) = name {
            return Ok(name.clone());
        }
        let mut images = self.names()?;
        images.retain(|entry| entry.artifact_type.is_none());
        catalog::only(&images, &self.dir.display().to_string())
    }

    /// Lists a manifest that has been stored by digest in `index.json`, without a tag.
    ///
    /// # Errors
    /// Whatever hinders writing.
    pub async fn add_untagged(&self, digest: Digest, media_type: &str, len: u64) -> Result<(), Error> {
        let entry = LayoutEntry::new(None, media_type, digest, len);
        self.list(entry).await
    }

    async fn list(&self, entry: LayoutEntry) -> Result<(), Error> {
        let (dir, limits) = (self.dir.clone(), self.limits.clone());
        blocking::run("list a manifest", move || catalog::add(&dir, &entry, &limits)).await
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        blob_dir(&self.dir).join(digest.to_hex())
    }
}

impl Objects for Layout {
    fn location(&self) -> String {
        self.dir.display().to_string()
    }

    fn fetch<'a>(&'a self, path: &'a str, max_len: u64) -> BoxFuture<'a, Result<Bytes, Error>> {
        let path = self.dir.join(path);
        blocking::run("load a file", move || {
            let what = format!("read {}", path.display());
            Ok(load_bounded(&path, &what, max_len)?.into())
        })
        .boxed()
    }

    fn open(&self, path: &str, digest: BlobDigest, stored_len: u64) -> Arc<dyn Blob> {
        Arc::new(FileBlob::new(self.dir.join(path), digest, stored_len))
    }
}

impl Repository for Layout {
    fn location(&self) -> String {
        format!("oci:{}", self.dir.display())
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        objects::fetch_manifest(self, name, &self.limits).boxed()
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let path = objects::blob_path(&descriptor.digest.0);
        self.open(&path, descriptor.digest, descriptor.size)
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        objects::fetch_blob(self, descriptor, max_len).boxed()
    }

    fn fetch_referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Referrer>, Error>> {
        referrers::load(self, subject, artifact_type).boxed()
    }
}

impl WritableRepository for Layout {
    fn has_blob<'a>(&'a self, digest: &'a BlobDigest) -> BoxFuture<'a, Result<bool, Error>> {
        let path = self.blob_path(&digest.0);
        blocking::run("look for a blob", move || {
            path.try_exists()
                .map_err(|error| Error::io(format!("look for {}", path.display()), error))
        })
        .boxed()
    }

    fn begin_blob(&self) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, Error>> {
        let dir = self.dir.clone();
        blocking::run("begin a blob", move || {
            let writer = FileWriter::create(&dir)?;
            Ok(Box::new(writer) as Box<dyn BlobWriter>)
        })
        .boxed()
    }

    fn put_manifest<'a>(
        &'a self,
        name: &'a ManifestName,
        media_type: &'a str,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let digest = Digest::of(&bytes);
            if let ManifestName::Digest(expected) = name {
                verify("the manifest to store", &bytes, expected)?;
            }
            let len = bytes.len() as u64;
            let mut writer = self.begin_blob().await?;
            writer.write(bytes).await?;
            writer.finish(BlobDigest(digest)).await?;
            match name {
                ManifestName::Digest(_) => Ok(()),
                ManifestName::Tag(tag) => {
                    let entry = LayoutEntry::new(Some(tag.clone()), media_type, digest, len);
                    self.list(entry).await
                }
            }
        }
        .boxed()
    }

    fn put_referrer<'a>(
        &'a self,
        _subject: &'a Digest,
        referrer: &'a Referrer,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let name = ManifestName::Digest(referrer.descriptor.digest.0);
            let media_type = &referrer.descriptor.media_type;
            self.put_manifest(&name, media_type, bytes).await?;
            self.list(LayoutEntry::of_artifact(referrer)).await
        }
        .boxed()
    }
}

fn blob_dir(dir: &Path) -> PathBuf {
    dir.join("blobs").join("sha256")
}

/// All bytes of a file that should have at most `max_len`.
fn load_bounded(path: &Path, what: &str, max_len: u64) -> Result<Vec<u8>, Error> {
    let refuse = |error| Error::io(what, error);
    let file = File::open(path).map_err(refuse)?;
    let len = file.metadata().map_err(refuse)?.len();
    check_len(what, len, max_len)?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes).map_err(refuse)?;
    Ok(bytes)
}
