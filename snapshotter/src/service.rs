//! The gRPC service: messages in, messages out, no decision.
//!
//! Every operation runs as a task of its own. tonic drops a handler whose caller went away or whose deadline passed; an
//! operation that was started still runs to its end, so that a mount is never left half accounted for. A panic costs one
//! answer, not the service.

use std::future::Future;
use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use crate::labels::LabelMap;
use crate::mounts::MountSpec;
use crate::operations;
use crate::proto::snapshots::snapshots_server::{Snapshots, SnapshotsServer};
use crate::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest,
    ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use crate::proto::types::Mount;
use crate::store::{Kind, Named, Record, Time};
use crate::{Error, Snapshotter};

/// Snapshots in one message of a list: what containerd itself sends.
const LIST_PAGE: usize = 100;

/// The gRPC metadata that names containerd's namespace.
const NAMESPACE: &str = "containerd-namespace";

/// The service of one snapshotter.
#[derive(Clone, Debug)]
pub struct SnapshotsService(Snapshotter);

impl SnapshotsService {
    /// The service as tonic serves it, alone or beside others on one socket.
    pub fn server(snapshotter: Snapshotter) -> SnapshotsServer<Self> {
        SnapshotsServer::new(Self(snapshotter))
    }

    /// Runs an operation to its end, even if the caller goes away.
    async fn run<T, F>(&self, operation: impl FnOnce(Snapshotter) -> F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        match tokio::spawn(operation(self.0.clone())).await {
            Ok(result) => result.map_err(Status::from),
            Err(error) => Err(Status::internal(format!(
                "the operation stopped before its end: {error}"
            ))),
        }
    }
}

type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    type ListStream = ListStream;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let namespace = namespace(&request);
        let PrepareSnapshotRequest {
            key, parent, labels, ..
        } = request.into_inner();
        let request = to_request(key, parent, labels, namespace);
        let mount = self
            .run(|snapshotter| async move { snapshotter.prepare(request).await })
            .await?;
        let mounts = vec![to_mount(mount)];
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let namespace = namespace(&request);
        let ViewSnapshotRequest {
            key, parent, labels, ..
        } = request.into_inner();
        let request = to_request(key, parent, labels, namespace);
        let mount = self
            .run(|snapshotter| async move { snapshotter.view(request).await })
            .await?;
        let mounts = vec![to_mount(mount)];
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mount = self
            .run(|snapshotter| async move { snapshotter.mounts(&key).await })
            .await?;
        let mounts = vec![to_mount(mount)];
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest {
            name,
            key,
            labels,
            parent,
            ..
        } = request.into_inner();
        self.run(|snapshotter| async move { snapshotter.commit(&name, &key, &parent, labels).await })
            .await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.run(|snapshotter| async move { snapshotter.remove(&key).await })
            .await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let name = request.into_inner().key;
        let key = name.clone();
        let record = self
            .run(|snapshotter| async move { snapshotter.stat(&key).await })
            .await?;
        let info = Some(to_info(name, record));
        Ok(Response::new(StatSnapshotResponse { info }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest {
            info, update_mask, ..
        } = request.into_inner();
        let Info { name, labels, .. } =
            info.ok_or_else(|| Status::invalid_argument("an update needs the snapshot's info"))?;
        let paths = update_mask.unwrap_or_default().paths;
        let key = name.clone();
        let update = self.run(|snapshotter| async move { snapshotter.update(&key, labels, &paths).await });
        let info = Some(to_info(name, update.await?));
        Ok(Response::new(UpdateSnapshotResponse { info }))
    }

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let found = self
            .run(|snapshotter| async move { snapshotter.list(&filters).await })
            .await?;
        let pages: Vec<_> = found.chunks(LIST_PAGE).map(to_page).collect();
        Ok(Response::new(Box::pin(stream::iter(pages))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self
            .run(|snapshotter| async move { snapshotter.usage(&key).await })
            .await?;
        let clamp = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse {
            size: clamp(usage.bytes),
            inodes: clamp(usage.inodes),
        }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.run(|snapshotter| async move { snapshotter.cleanup().await })
            .await?;
        Ok(Response::new(()))
    }
}

fn namespace<T>(request: &Request<T>) -> Option<String> {
    let value = request.metadata().get(NAMESPACE)?;
    value.to_str().ok().map(str::to_owned)
}

fn to_request(
    key: String,
    parent: String,
    labels: LabelMap,
    namespace: Option<String>,
) -> operations::Request {
    operations::Request {
        key,
        parent,
        labels,
        namespace,
    }
}

fn to_mount(spec: MountSpec) -> Mount {
    Mount {
        r#type: spec.fs_type.to_owned(),
        source: spec.source,
        target: String::new(),
        options: spec.options,
    }
}

fn to_page(page: &[Named]) -> Result<ListSnapshotsResponse, Status> {
    let infos = page
        .iter()
        .map(|named| to_info(named.name.clone(), named.record.clone()));
    Ok(ListSnapshotsResponse {
        info: infos.collect(),
    })
}

fn to_info(name: String, record: Record) -> Info {
    let kind = match record.kind {
        Kind::Active => WireKind::Active,
        Kind::View => WireKind::View,
        Kind::Committed => WireKind::Committed,
    };
    Info {
        name,
        parent: record.parent,
        kind: kind.into(),
        created_at: Some(to_timestamp(record.created)),
        updated_at: Some(to_timestamp(record.updated)),
        labels: record.labels,
    }
}

fn to_timestamp(time: Time) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.seconds,
        nanos: time.nanos,
    }
}
