//! The socket that containerd connects to.
//!
//! Whoever can connect can mount and read every image, so the socket is made for its owner alone, under another name, and
//! gets its name when nobody else can connect any more. A socket that a crashed process left is replaced; one that
//! somebody listens on is not, and neither is a file that is no socket.

use std::fs::{self, DirBuilder, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process;

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::{Error, ErrorKind, SnapshotsService, Snapshotter};

/// Read and write for the owner.
const OWNER_ONLY: u32 = 0o600;
/// Directories on the way to the socket.
const DIRECTORY: u32 = 0o711;

/// Listens on a new socket at `path`, whose directory is made if it is missing.
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`] when somebody listens there, or when something else than a socket is there.
pub async fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |error: io::Error| Error::internal(format!("socket {}", path.display()), error);
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY)
            .create(parent)
            .map_err(failed)?;
    }
    refuse_used(path).await?;
    let unnamed = unnamed(path);
    remove_if_there(&unnamed).map_err(failed)?;
    let listener = UnixListener::bind(&unnamed).map_err(failed)?;
    let named = fs::set_permissions(&unnamed, Permissions::from_mode(OWNER_ONLY))
        .and_then(|()| fs::rename(&unnamed, path))
        .map_err(failed);
    if named.is_err() {
        // The error that is returned says more than this one would.
        let _ = fs::remove_file(&unnamed);
    }
    named.map(|()| listener)
}

/// Serves the snapshotter on `listener`, which [`bind`] made or the service manager handed over, until `shutdown` is
/// ready and the requests under way are answered. The socket file stays; the next start replaces it.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: UnixListener,
    snapshotter: Snapshotter,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    serve_with(listener, snapshotter, Routes::default(), shutdown).await
}

/// As [`serve`], with other services on the same socket.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    listener: UnixListener,
    snapshotter: Snapshotter,
    others: Routes,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    Server::builder()
        .add_routes(others.add_service(SnapshotsService::server(snapshotter)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
        .map_err(|error| Error::internal("the snapshots service stopped", error))
}

async fn refuse_used(path: &Path) -> Result<(), Error> {
    let file_type = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::internal(format!("socket {}", path.display()), error)),
    };
    let refuse = |reason: &str| {
        let message = format!("socket {}: {reason}", path.display());
        Err(Error::new(ErrorKind::FailedPrecondition, message))
    };
    if !file_type.is_socket() {
        return refuse("something else is there; remove it or choose another path");
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        _ => refuse("another process listens on it"),
    }
}

/// The name of the socket until it has its permissions.
fn unnamed(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", process::id()));
    path.with_file_name(name)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
