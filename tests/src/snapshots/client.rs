//! A client of `containerd.services.snapshots.v1`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use prost_types::FieldMask;
use sluice_snapshotter::proto::snapshots::snapshots_client::SnapshotsClient;
use sluice_snapshotter::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, UsageResponse,
    ViewSnapshotRequest,
};
use sluice_snapshotter::proto::types::Mount;
use tokio_stream::StreamExt as _;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// Labels from pairs.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// A connection to a snapshots service, our own or the one that containerd itself offers.
#[derive(Clone, Debug)]
pub struct Client {
    inner: SnapshotsClient<Channel>,
    /// The snapshotter's name, which only containerd looks at.
    snapshotter: String,
    namespace: AsciiMetadataValue,
    lease: Option<AsciiMetadataValue>,
}

impl Client {
    /// Connects to `socket`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(socket: &Path, snapshotter: &str, namespace: &str) -> Result<Self> {
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let channel = Endpoint::try_from(format!("unix:{path}"))?.connect().await;
        let channel = channel.with_context(|| format!("cannot connect to {path}"))?;
        Ok(Self {
            inner: SnapshotsClient::new(channel),
            snapshotter: snapshotter.to_owned(),
            namespace: namespace.parse()?,
            lease: None,
        })
    }

    /// Everything made from now on belongs to this lease of containerd.
    ///
    /// # Errors
    /// When the name cannot stand in metadata.
    pub fn with_lease(mut self, lease: &str) -> Result<Self> {
        self.lease = Some(lease.parse()?);
        Ok(self)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        request
    }

    /// Prepares an active snapshot.
    ///
    /// # Errors
    /// As the service answers; likewise everywhere below.
    pub async fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>, Status> {
        let request = self.request(PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels.clone(),
        });
        Ok(self.inner.clone().prepare(request).await?.into_inner().mounts)
    }

    /// Makes a view.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn view(&self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>, Status> {
        let request = self.request(ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels.clone(),
        });
        Ok(self.inner.clone().view(request).await?.into_inner().mounts)
    }

    /// The mounts of a snapshot that exists.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(MountsRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        Ok(self.inner.clone().mounts(request).await?.into_inner().mounts)
    }

    /// Commits an active snapshot.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn commit(&self, name: &str, key: &str, labels: &Labels) -> Result<(), Status> {
        self.commit_on(name, key, "", labels).await
    }

    /// Commits an active snapshot on top of `parent`.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn commit_on(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<(), Status> {
        let request = self.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels.clone(),
            parent: parent.to_owned(),
        });
        self.inner.clone().commit(request).await.map(|_| ())
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        self.inner.clone().remove(request).await.map(|_| ())
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        Ok(self
            .inner
            .clone()
            .stat(request)
            .await?
            .into_inner()
            .info
            .unwrap_or_default())
    }

    /// Changes a snapshot to what `info` says, in the fields that `paths` name, or in all.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn update(&self, info: Info, paths: &[&str]) -> Result<Info, Status> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let request = self.request(UpdateSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
        });
        Ok(self
            .inner
            .clone()
            .update(request)
            .await?
            .into_inner()
            .info
            .unwrap_or_default())
    }

    /// The pages of a list, as they are sent.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn list_pages(&self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
        let request = self.request(ListSnapshotsRequest {
            snapshotter: self.snapshotter.clone(),
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
        });
        let pages = self.inner.clone().list(request).await?.into_inner();
        pages.map(|page| page.map(|page| page.info)).collect().await
    }

    /// The snapshots that any filter means.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        Ok(self.list_pages(filters).await?.concat())
    }

    /// The names of all snapshots.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn names(&self) -> Result<Vec<String>, Status> {
        Ok(self.list(&[]).await?.into_iter().map(|info| info.name).collect())
    }

    /// What a snapshot takes.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn usage(&self, key: &str) -> Result<UsageResponse, Status> {
        let request = self.request(UsageRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        Ok(self.inner.clone().usage(request).await?.into_inner())
    }

    /// Frees what nobody uses.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn cleanup(&self) -> Result<(), Status> {
        let request = self.request(CleanupRequest {
            snapshotter: self.snapshotter.clone(),
        });
        self.inner.clone().cleanup(request).await.map(|_| ())
    }
}
