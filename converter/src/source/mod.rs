//! Where images come from.
//!
//! A [`Source`] is a repository and the name of one image in it. Registries and layout directories are implemented by
//! `sluice-storage`; tars ([`oci_archive`], [`docker_archive`]) are indexed once by their headers ([`tar_file`]) and read in
//! place as an [`archive`].

mod archive;
mod docker_archive;
mod oci_archive;
mod spool;
mod tar_file;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use sluice_format::Limits;
use sluice_storage::{
    Cache, ImageName, Layout, ManifestName, Reference, RegistryClient, RemoteLayout, Repository, remembering,
};
use tokio::task::spawn_blocking;

use self::tar_file::TarFile;
use crate::Error;
use crate::error::joined;

/// An image to read.
#[derive(Clone, Debug)]
pub struct Source {
    shown: String,
    repository: Arc<dyn Repository>,
    name: ManifestName,
    reference: Option<Reference>,
}

impl Source {
    /// Opens the place that `name` names. Archives are indexed; one on standard input, or a compressed one, is copied to a
    /// temporary file first, in `TMPDIR` or else `/var/tmp`.
    ///
    /// # Errors
    /// What hinders opening it; [`Error::Refused`] when it holds several images and the name chooses none.
    pub async fn open(name: &ImageName, registries: &Arc<RegistryClient>) -> Result<Self, Error> {
        let shown = name.to_string();
        let (repository, manifest): (Arc<dyn Repository>, _) = match name {
            ImageName::Registry(reference) => (registries.repository(reference)?, reference.manifest_name()),
            ImageName::Layout { path, name } => open_layout(path, name.as_ref()).await?,
            ImageName::RemoteLayout { place, name } => {
                let layout = RemoteLayout::open(place, registries)?;
                let manifest = layout.manifest_name(name.as_ref()).await?;
                (Arc::new(layout), manifest)
            }
            ImageName::OciArchive { .. } | ImageName::DockerArchive { .. } => open_archive(name).await?,
        };
        let reference = match name {
            ImageName::Registry(reference) => Some(reference.clone()),
            _ => None,
        };
        Ok(Self {
            shown,
            repository,
            name: manifest,
            reference,
        })
    }

    /// An image in any repository; `shown` is its name in reports.
    pub fn new(shown: impl Into<String>, repository: Arc<dyn Repository>, name: ManifestName) -> Self {
        Self {
            shown: shown.into(),
            repository,
            name,
            reference: None,
        }
    }

    /// The same image, with manifests and configs kept in `cache`: it can be told what it is also when its repository is gone.
    #[must_use]
    pub fn remembering(self, cache: &Arc<Cache>) -> Self {
        Self {
            repository: remembering(&self.repository, cache),
            ..self
        }
    }

    /// Another image in the same place.
    #[must_use]
    pub fn named(self, name: ManifestName) -> Self {
        Self { name, ..self }
    }

    /// Where the image is.
    pub fn repository(&self) -> &dyn Repository {
        &*self.repository
    }

    /// Where the image is, to be kept.
    pub fn shared_repository(&self) -> &Arc<dyn Repository> {
        &self.repository
    }

    /// What the image is called there.
    pub fn name(&self) -> &ManifestName {
        &self.name
    }

    /// Registry and repository, for an image in a registry.
    pub(crate) fn reference(&self) -> Option<&Reference> {
        self.reference.as_ref()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

async fn open_layout(
    path: &Path,
    name: Option<&ManifestName>,
) -> Result<(Arc<dyn Repository>, ManifestName), Error> {
    let (path, name) = (path.to_owned(), name.cloned());
    let opening = spawn_blocking(move || {
        let layout = Layout::open(path)?;
        let name = layout.manifest_name(name.as_ref())?;
        Ok((Arc::new(layout) as Arc<dyn Repository>, name))
    });
    joined(opening.await)
}

async fn open_archive(name: &ImageName) -> Result<(Arc<dyn Repository>, ManifestName), Error> {
    let name = name.clone();
    let opening = spawn_blocking(move || {
        let path = match &name {
            ImageName::OciArchive { path, .. } | ImageName::DockerArchive { path, .. } => path,
            _ => return Err(Error::Refused(format!("{name} is not an archive"))),
        };
        let path = (!name.is_stdin()).then_some(path.as_path());
        let tar = TarFile::open(spool::open(path)?)?;
        let (location, limits) = (name.to_string(), Limits::default());
        let (repository, manifest) = match &name {
            ImageName::DockerArchive { reference, .. } => {
                docker_archive::open(location, &tar, reference.as_deref(), &limits)?
            }
            ImageName::OciArchive { name, .. } => oci_archive::open(location, &tar, name.as_ref(), &limits)?,
            _ => return Err(Error::Refused(format!("{name} is not an archive"))),
        };
        Ok((Arc::new(repository) as Arc<dyn Repository>, manifest))
    });
    joined(opening.await)
}
