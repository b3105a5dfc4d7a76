//! Calls to containerd, each in one namespace and under one lease.
//!
//! What is made under a lease is not collected as garbage until the lease is gone, so that a pull can put things in place
//! before something refers to them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use prost_types::FieldMask;
use sluice_snapshotter::proto::snapshots::snapshots_client::SnapshotsClient;
use sluice_snapshotter::proto::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use sluice_snapshotter::proto::types::Mount;
use sluice_storage::{ByteStream, Descriptor};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::proto::content::v1::content_client::ContentClient;
use super::proto::content::v1::{Info, InfoRequest, UpdateRequest, WriteAction, WriteContentRequest};
use super::proto::diff::v1::ApplyRequest;
use super::proto::diff::v1::diff_client::DiffClient;
use super::proto::images::v1::images_client::ImagesClient;
use super::proto::images::v1::{CreateImageRequest, GetImageRequest, Image, UpdateImageRequest};
use super::proto::leases::v1::leases_client::LeasesClient;
use super::proto::leases::v1::{CreateRequest, DeleteRequest};
use super::proto::types;

/// Labels of anything in containerd.
pub(crate) type Labels = BTreeMap<String, String>;

/// Messages on their way to the content store.
const MESSAGES_AHEAD: usize = 4;

/// A connection to containerd.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    namespace: AsciiMetadataValue,
    lease: Option<AsciiMetadataValue>,
}

impl Client {
    /// Connects to `socket`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub(crate) async fn connect(socket: &Path, namespace: &str) -> anyhow::Result<Self> {
        let path = socket
            .to_str()
            .context("the path of containerd's socket is not UTF-8")?;
        let channel = Endpoint::try_from(format!("unix:{path}"))?.connect().await;
        let channel =
            channel.with_context(|| format!("cannot connect to containerd at {path}; does it run?"))?;
        Ok(Self {
            channel,
            namespace: namespace.parse().context("the namespace is not plain text")?,
            lease: None,
        })
    }

    /// Makes a lease; everything made through the client that is returned belongs to it.
    ///
    /// # Errors
    /// As containerd answers; likewise everywhere below.
    pub(crate) async fn with_lease(&self, id: &str, labels: Labels) -> anyhow::Result<Self> {
        let id = id.to_owned();
        let request = self.request(CreateRequest { id, labels });
        let created = LeasesClient::new(self.channel.clone()).create(request).await?;
        let lease = created.into_inner().lease.context("containerd made no lease")?;
        Ok(Self {
            lease: Some(lease.id.parse()?),
            ..self.clone()
        })
    }

    /// Ends the lease.
    pub(crate) async fn end_lease(&self) -> Result<(), Status> {
        let Some(lease) = self.lease.as_ref().and_then(|lease| lease.to_str().ok()) else {
            return Ok(());
        };
        let request = self.request(DeleteRequest {
            id: lease.to_owned(),
            sync: false,
        });
        LeasesClient::new(self.channel.clone()).delete(request).await?;
        Ok(())
    }

    /// The connection, for calls that belong to no namespace.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The content service.
    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    /// A call in the namespace, and under the lease.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        request
    }

    /// Whether the content store has a blob in this namespace.
    pub(crate) async fn has_blob(&self, digest: &str) -> Result<bool, Status> {
        let digest = digest.to_owned();
        let request = self.request(InfoRequest { digest });
        match self.content().info(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// Length of a blob of the content store.
    pub(crate) async fn blob_len(&self, digest: &str) -> Result<u64, Status> {
        let digest = digest.to_owned();
        let answer = self.content().info(self.request(InfoRequest { digest })).await?;
        let info = answer.into_inner().info.unwrap_or_default();
        u64::try_from(info.size).map_err(|_| Status::internal("a blob has a negative length"))
    }

    /// Puts a blob into the content store; its labels are set also when it is there already.
    pub(crate) async fn put_blob(
        &self,
        blob: &Descriptor,
        bytes: ByteStream,
        labels: Labels,
    ) -> anyhow::Result<()> {
        if !self.has_blob(&blob.digest.to_string()).await? {
            match self.write(blob, bytes, labels.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if is_there(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.label_blob(&blob.digest.to_string(), labels).await?)
    }

    async fn write(&self, blob: &Descriptor, bytes: ByteStream, labels: Labels) -> anyhow::Result<()> {
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
        let template = WriteContentRequest {
            r#ref: format!("sluice-pull-{}-{}", std::process::id(), blob.digest),
            total: i64::try_from(blob.size)?,
            expected: blob.digest.to_string(),
            ..WriteContentRequest::default()
        };
        let sending = send(sender, template, bytes, labels);
        let request = self.request(ReceiverStream::new(receiver));
        let receiving = async {
            let mut client = self.content();
            let mut answers = client.write(request).await?.into_inner();
            while let Some(answer) = answers.next().await {
                if answer?.action() == WriteAction::Commit {
                    return Ok(());
                }
            }
            Err(Status::aborted("the content store ended the upload early"))
        };
        let (sent, received) = tokio::join!(sending, receiving);
        // A source that fails ends the upload: that is the cause.
        sent?;
        Ok(received?)
    }

    /// Sets labels of a blob, and leaves its others as they are.
    async fn label_blob(&self, digest: &str, labels: Labels) -> Result<(), Status> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = self.request(UpdateRequest {
            info: Some(Info {
                digest: digest.to_owned(),
                labels,
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        });
        self.content().update(request).await?;
        Ok(())
    }

    /// Digest of what the image `name` means; `None` when there is no such image.
    pub(crate) async fn image_target(&self, name: &str) -> Result<Option<String>, Status> {
        let name = name.to_owned();
        let request = self.request(GetImageRequest { name });
        match ImagesClient::new(self.channel.clone()).get(request).await {
            Ok(answer) => {
                let target = answer.into_inner().image.and_then(|image| image.target);
                Ok(target.map(|target| target.digest))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Lets `name` mean `target`.
    pub(crate) async fn name_image(&self, name: &str, target: &Descriptor) -> anyhow::Result<()> {
        let image = Some(Image {
            name: name.to_owned(),
            labels: Labels::new(),
            target: Some(descriptor(target)?),
        });
        let mut client = ImagesClient::new(self.channel.clone());
        let create = self.request(CreateImageRequest { image: image.clone() });
        match client.create(create).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            created => return Ok(created.map(drop)?),
        }
        let paths = vec!["target".to_owned()];
        let update = self.request(UpdateImageRequest {
            image,
            update_mask: Some(FieldMask { paths }),
        });
        Ok(client.update(update).await.map(drop)?)
    }

    /// Whether a snapshotter has a snapshot.
    pub(crate) async fn has_snapshot(&self, snapshotter: &str, key: &str) -> Result<bool, Status> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        });
        match SnapshotsClient::new(self.channel.clone()).stat(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// Asks for a directory to unpack into; `None` when the layer is there already.
    pub(crate) async fn prepare(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Option<Vec<Mount>>, Status> {
        let request = self.request(PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        });
        match SnapshotsClient::new(self.channel.clone()).prepare(request).await {
            Ok(prepared) => Ok(Some(prepared.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Unpacks a blob of the content store; gives the digest of its plain bytes.
    pub(crate) async fn apply(&self, blob: &Descriptor, mounts: Vec<Mount>) -> anyhow::Result<String> {
        let request = self.request(ApplyRequest {
            diff: Some(descriptor(blob)?),
            mounts,
        });
        let applied = DiffClient::new(self.channel.clone()).apply(request).await?;
        Ok(applied.into_inner().applied.unwrap_or_default().digest)
    }

    /// Makes an unpacked layer the snapshot `name`. That somebody else did is as good.
    pub(crate) async fn commit(&self, snapshotter: &str, key: &str, name: &str) -> Result<(), Status> {
        let request = self.request(CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            ..CommitSnapshotRequest::default()
        });
        match SnapshotsClient::new(self.channel.clone()).commit(request).await {
            Err(status) if status.code() == Code::AlreadyExists => self.remove(snapshotter, key).await,
            committed => committed.map(drop),
        }
    }

    /// Removes a snapshot.
    pub(crate) async fn remove(&self, snapshotter: &str, key: &str) -> Result<(), Status> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        });
        SnapshotsClient::new(self.channel.clone())
            .remove(request)
            .await
            .map(drop)
    }
}

/// Sends a blob in pieces and then the wish to keep it. Whoever receives may stop early.
async fn send(
    sender: mpsc::Sender<WriteContentRequest>,
    template: WriteContentRequest,
    mut bytes: ByteStream,
    labels: Labels,
) -> anyhow::Result<()> {
    let mut offset = 0;
    while let Some(piece) = bytes.next().await {
        let piece: Bytes = piece?;
        let len = i64::try_from(piece.len())?;
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset,
            data: piece.into(),
            ..template.clone()
        };
        offset += len;
        if sender.send(message).await.is_err() {
            return Ok(());
        }
    }
    let commit = WriteContentRequest {
        action: WriteAction::Commit.into(),
        offset,
        labels,
        ..template
    };
    // Nobody receives it when the upload was refused; the refusal is the answer.
    let _ = sender.send(commit).await;
    Ok(())
}

fn is_there(error: &anyhow::Error) -> bool {
    let status = error.downcast_ref::<Status>();
    status.is_some_and(|status| status.code() == Code::AlreadyExists)
}

fn descriptor(of: &Descriptor) -> anyhow::Result<types::Descriptor> {
    Ok(types::Descriptor {
        media_type: of.media_type.clone(),
        digest: of.digest.to_string(),
        size: i64::try_from(of.size)?,
        annotations: of.annotations.clone(),
    })
}
