//! A layout that is read over the network: from a static web server or from object storage.
//!
//! It is the same directory tree as on disk, so whatever copies directories publishes an image. Nothing is listed and nothing is
//! written: `index.json` leads to the manifests, and blobs are read by ranges under their names.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sluice_format::Limits;

use super::objects::{self, Objects};
use super::{LayoutEntry, RemotePlace, catalog};
use crate::{Blob, Descriptor, Error, Manifest, ManifestName, RegistryClient, Repository};

/// A layout that is not on this host, read-only.
#[derive(Clone, Debug)]
pub struct RemoteLayout {
    objects: Arc<dyn Objects>,
    limits: Limits,
}

impl RemoteLayout {
    /// A layout at `place`, which is reached with the connections and options of `client`. Moves no byte.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for object storage in a build without it;
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when the environment lacks what the service needs.
    pub fn open(place: &RemotePlace, client: &Arc<RegistryClient>) -> Result<Self, Error> {
        let objects: Arc<dyn Objects> = match place.service().is_web() {
            true => client.web_directory(place)?,
            false => open_bucket(place, client)?,
        };
        Ok(Self {
            objects,
            limits: client.options().limits.clone(),
        })
    }

    /// A layout in object storage behind any operator of opendal; `location` is for messages.
    #[cfg(feature = "object-storage")]
    pub fn of_operator(
        operator: opendal::Operator,
        location: impl Into<String>,
        client: &Arc<RegistryClient>,
    ) -> Self {
        Self {
            objects: Arc::new(super::bucket::Bucket::new(operator, location.into(), client)),
            limits: client.options().limits.clone(),
        }
    }

    /// What `index.json` lists, in its order.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for a file that is no image index; what hinders reading it.
    pub async fn names(&self) -> Result<Vec<LayoutEntry>, Error> {
        let bytes = self
            .objects
            .fetch(catalog::FILE, self.limits.manifest_len)
            .await?;
        catalog::parse(&self.objects.location(), &bytes)
    }

    /// The name to ask for when the user gave `name`: that one, or without one the only manifest of the layout.
    ///
    /// # Errors
    /// As [`Layout::manifest_name`](crate::Layout::manifest_name).
    pub async fn manifest_name(&self, name: Option<&ManifestName>) -> Result<ManifestName, Error> {
        match name {
            Some(name) => Ok(name.clone()),
            None => catalog::only(&self.names().await?, &self.objects.location()),
        }
    }
}

#[cfg(feature = "object-storage")]
fn open_bucket(place: &RemotePlace, client: &Arc<RegistryClient>) -> Result<Arc<dyn Objects>, Error> {
    Ok(Arc::new(super::bucket::Bucket::open(place, client)?))
}

#[cfg(not(feature = "object-storage"))]
fn open_bucket(place: &RemotePlace, _client: &Arc<RegistryClient>) -> Result<Arc<dyn Objects>, Error> {
    let message =
        format!("{place}: this build has no object storage; build it with the feature object-storage");
    Err(Error::new(crate::ErrorKind::Unsupported, message))
}

impl Repository for RemoteLayout {
    fn location(&self) -> String {
        self.objects.location()
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        objects::fetch_manifest(&*self.objects, name, &self.limits).boxed()
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let path = objects::blob_path(&descriptor.digest.0);
        self.objects.open(&path, descriptor.digest, descriptor.size)
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        objects::fetch_blob(&*self.objects, descriptor, max_len).boxed()
    }
}
