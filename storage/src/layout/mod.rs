//! An OCI image layout: a directory that holds an image as files.
//!
//! `blobs/sha256/<hex>` are the blobs and manifests, `index.json` lists the manifests by tag, `oci-layout` says that the
//! directory is one. A blob is written to a temporary file beside the others and renamed when its digest is known, so
//! a blob that is there is whole. `catalog` changes `index.json`, `file_blob` reads and `writer` writes blobs. Source:
//! OCI image spec 1.1, "image layout".

mod catalog;
mod file_blob;
mod referrers;
mod writer;

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sluice_format::{BlobDigest, Digest, FormatError, Limits};

pub use self::catalog::LayoutEntry;
use self::file_blob::FileBlob;
use self::writer::FileWriter;
use crate::referrers::Referrer;
use crate::{
    Blob, BlobWriter, Descriptor, Error, ErrorKind, Manifest, ManifestName, Repository, WritableRepository,
    blocking, documents,
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
        match &images[..] {
            [only] => Ok(ManifestName::Digest(only.descriptor.digest.0)),
            [] => Err(Error::new(
                ErrorKind::NotFound,
                format!("OCI layout {} holds no image", self.dir.display()),
            )),
            several => {
                let message = format!(
                    "OCI layout {} holds {} images; name one of them: {}",
                    self.dir.display(),
                    several.len(),
                    catalog::listed(several)
                );
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
        }
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

    fn load_manifest(&self, name: &ManifestName) -> Result<Manifest, Error> {
        let (digest, listed_type) = match name {
            ManifestName::Digest(digest) => (*digest, None),
            ManifestName::Tag(tag) => {
                let entry = catalog::find(&self.dir, tag, &self.limits)?;
                (entry.descriptor.digest.0, Some(entry.descriptor.media_type))
            }
        };
        let what = format!("manifest {digest} of OCI layout {}", self.dir.display());
        let bytes = self.load_verified(&what, &digest, self.limits.manifest_len)?;
        let media_type = match listed_type.filter(|media_type| !media_type.is_empty()) {
            Some(media_type) => media_type,
            None => documents::manifest_media_type(&bytes, &self.limits)?,
        };
        Ok(Manifest {
            media_type,
            digest,
            bytes,
        })
    }

    fn load_verified(&self, what: &str, digest: &Digest, max_len: u64) -> Result<Bytes, Error> {
        let bytes = load_bounded(&self.blob_path(digest), what, max_len)?;
        verify(what, &bytes, digest)?;
        Ok(bytes.into())
    }
}

impl Repository for Layout {
    fn location(&self) -> String {
        format!("oci:{}", self.dir.display())
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        let (layout, name) = (self.clone(), name.clone());
        blocking::run("load a manifest", move || layout.load_manifest(&name)).boxed()
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let path = self.blob_path(&descriptor.digest.0);
        Arc::new(FileBlob::new(path, descriptor.digest, descriptor.size))
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        let (layout, digest, size) = (self.clone(), descriptor.digest.0, descriptor.size);
        blocking::run("load a blob", move || {
            let what = format!("blob {digest} of OCI layout {}", layout.dir.display());
            check_len(&what, size, max_len)?;
            layout.load_verified(&what, &digest, size)
        })
        .boxed()
    }

    fn fetch_referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Referrer>, Error>> {
        let (layout, subject, artifact_type) = (self.clone(), *subject, artifact_type.to_owned());
        blocking::run("look for referrers", move || {
            referrers::load(&layout, &subject, &artifact_type)
        })
        .boxed()
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

    fn mount_blob<'a>(
        &'a self,
        _digest: &'a BlobDigest,
        _from_repository: &'a str,
    ) -> BoxFuture<'a, Result<bool, Error>> {
        futures_util::future::ready(Ok(false)).boxed()
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

fn check_len(what: &str, len: u64, max_len: u64) -> Result<(), Error> {
    if len <= max_len {
        return Ok(());
    }
    let message = format!("{what} has {len} bytes, over the limit of {max_len}");
    Err(Error::new(ErrorKind::InvalidInput, message))
}

/// Compares the digest of a document with the expected one.
fn verify(what: &str, bytes: &[u8], expected: &Digest) -> Result<(), Error> {
    let found = Digest::of(bytes);
    if found == *expected {
        return Ok(());
    }
    Err(FormatError::Corrupt {
        what: what.to_owned(),
        expected: *expected,
        found,
    }
    .into())
}
