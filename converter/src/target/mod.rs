//! Where images go.
//!
//! A [`Target`] is a repository that takes an image and the name that the image gets. [`Target::seal`] ends the work; an
//! [`oci_archive`] comes into being only then.

mod fresh_layout;
mod oci_archive;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sluice_format::Digest;
use sluice_storage::{ImageName, Layout, ManifestName, Reference, RegistryClient, WritableRepository};
use tokio::task::spawn_blocking;

use self::fresh_layout::FreshLayout;
use self::oci_archive::UnsealedArchive;
use crate::error::joined;
use crate::{Error, Source};

/// A place for a new image.
#[derive(Debug)]
pub struct Target {
    shown: String,
    repository: Arc<dyn WritableRepository>,
    tag: Option<String>,
    reference: Option<Reference>,
    /// For a target that lists untagged manifests.
    layout: Option<Layout>,
    archive: Mutex<Option<UnsealedArchive>>,
    _fresh: Option<FreshLayout>,
}

impl Target {
    /// Prepares the place that `name` names.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that cannot be written to; what hinders creating it.
    pub async fn create(name: &ImageName, registries: &Arc<RegistryClient>) -> Result<Self, Error> {
        match name {
            ImageName::Registry(reference) => Self::in_registry(name, reference, registries),
            ImageName::Layout { path, name: tag } => {
                let tag = tag_of(name, tag.as_ref())?;
                let path = path.clone();
                let creating = spawn_blocking(move || {
                    let fresh = FreshLayout::watch(&path);
                    Ok((Layout::create(path)?, fresh))
                });
                let (layout, fresh) = joined(creating.await)?;
                Ok(Self {
                    _fresh: fresh,
                    ..Self::in_layout(name, layout, tag, None)
                })
            }
            ImageName::OciArchive { path, name: tag } => {
                if name.is_stdin() {
                    return Err(Error::Refused("an archive cannot be written to standard output".to_owned()));
                }
                let tag = tag_of(name, tag.as_ref())?;
                let path = path.clone();
                let creating = spawn_blocking(move || UnsealedArchive::create(Path::new(&path)));
                let (archive, layout) = joined(creating.await)?;
                Ok(Self::in_layout(name, layout, tag, Some(archive)))
            }
            ImageName::RemoteLayout { .. } => Err(Error::Refused(format!(
                "{name} can only be read; write oci: and copy the directory there"
            ))),
            ImageName::DockerArchive { .. } => Err(Error::Refused(
                "a docker-archive cannot hold zstd layers; write an oci-archive instead, which podman load and \
                 docker load (from 25 on) read as well"
                    .to_owned(),
            )),
        }
    }

    fn in_registry(
        name: &ImageName,
        reference: &Reference,
        registries: &Arc<RegistryClient>,
    ) -> Result<Self, Error> {
        let ManifestName::Tag(tag) = reference.manifest_name() else {
            return Err(digest_refused(name));
        };
        Ok(Self {
            shown: name.to_string(),
            repository: registries.repository(reference)?,
            tag: Some(tag),
            reference: Some(reference.clone()),
            layout: None,
            archive: Mutex::new(None),
            _fresh: None,
        })
    }

    fn in_layout(
        name: &ImageName,
        layout: Layout,
        tag: Option<String>,
        archive: Option<UnsealedArchive>,
    ) -> Self {
        Self {
            shown: name.to_string(),
            repository: Arc::new(layout.clone()),
            tag,
            reference: None,
            layout: Some(layout),
            archive: Mutex::new(archive),
            _fresh: None,
        }
    }

    /// A tag in any repository; `shown` is its name in reports.
    pub fn new(
        shown: impl Into<String>,
        repository: Arc<dyn WritableRepository>,
        tag: impl Into<String>,
    ) -> Self {
        Self {
            shown: shown.into(),
            repository,
            tag: Some(tag.into()),
            reference: None,
            layout: None,
            archive: Mutex::new(None),
            _fresh: None,
        }
    }

    /// Where the image goes.
    pub fn repository(&self) -> &dyn WritableRepository {
        &*self.repository
    }

    /// The repository of `source` when blobs can be taken over from it: another one of the same registry.
    pub(crate) fn neighbour<'a>(&self, source: &'a Source) -> Option<&'a str> {
        let (own, other) = (self.reference.as_ref()?, source.reference()?);
        (own.registry() == other.registry()).then(|| other.repository())
    }

    /// Stores the manifest or image index that the image's name leads to.
    ///
    /// # Errors
    /// What hinders writing.
    pub(crate) async fn put_root(&self, media_type: &str, bytes: Bytes) -> Result<(), Error> {
        let (digest, len) = (Digest::of(&bytes), bytes.len() as u64);
        let name = self
            .tag
            .clone()
            .map_or(ManifestName::Digest(digest), ManifestName::Tag);
        self.repository.put_manifest(&name, media_type, bytes).await?;
        if let (None, Some(layout)) = (&self.tag, &self.layout) {
            layout.add_untagged(digest, media_type, len).await?;
        }
        Ok(())
    }

    /// Ends the work: an archive is written now. Later calls do nothing.
    ///
    /// # Errors
    /// What hinders writing.
    pub(crate) async fn seal(&self) -> Result<(), Error> {
        let archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner).take();
        match archive {
            Some(archive) => joined(spawn_blocking(move || archive.seal()).await),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn tag_of(name: &ImageName, tag: Option<&ManifestName>) -> Result<Option<String>, Error> {
    match tag {
        None => Ok(None),
        Some(ManifestName::Tag(tag)) => Ok(Some(tag.clone())),
        Some(ManifestName::Digest(_)) => Err(digest_refused(name)),
    }
}

fn digest_refused(name: &ImageName) -> Error {
    Error::Refused(format!(
        "{name}: the digest of a new image is not known beforehand; name a tag"
    ))
}
