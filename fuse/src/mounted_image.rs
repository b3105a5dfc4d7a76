//! One mounted image: everything that belongs to it, undone in the right order.
//!
//! `erofs`: a hidden FUSE session serves the plain layers that are not complete yet, the kernel mounts the image tree over
//! them on the target. When every layer is complete there is no session, and no process in the path at all. `fuse`: a
//! session serves the image tree on the target.
//!
//! The order is: record, guard, session, mount on the target; undone backwards. Only the last of them is visible to
//! others, and the record and the guard know of it before it is made.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_format::Limits;
use tokio::runtime::Handle;

use crate::erofs_mount::{self, ErofsMount};
use crate::mount_record::{MountRecord, OwnRecord};
use crate::mountinfo::{self, MountEntry};
use crate::plain::{LayerDirectory, device_len};
use crate::trees::{ImageTree, OnlyTree};
use crate::{Error, Guard, Layer, MountHelper, Session, SessionOptions, probe, session};

/// How an image is shown to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Front {
    /// `erofs` where this host can do it, else `fuse`.
    Auto,
    /// The kernel's EROFS over flat files of plain layers.
    Erofs,
    /// The image tree served through FUSE.
    Fuse,
}

/// What to mount where.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// How.
    pub front: Front,
    /// The image tree, written by [`crate::trees::write_tree_file`]. It must stay as long as the mount.
    pub tree_file: PathBuf,
    /// The plain layers, bottom first.
    pub layers: Vec<Layer>,
    /// The directory to mount on.
    pub target: PathBuf,
    /// Where the record of the mount is kept.
    pub run_dir: PathBuf,
    /// The image, as its user named it.
    pub image: String,
    /// Readahead window of the mount in KiB; `None` keeps the kernel's.
    pub read_ahead_kib: Option<u32>,
    /// Threads and access of the FUSE session.
    pub session: SessionOptions,
    /// Waits for that session when the kernel asks it during a mount; needed to be ended by SIGKILL at that moment.
    pub helper: Option<Arc<MountHelper>>,
}

/// A mounted image. Dropping it unmounts it, lazily when it is busy.
#[derive(Debug)]
pub struct MountedImage {
    // Dropped in this order.
    erofs: Option<ErofsMount>,
    session: Option<Session>,
    record: Option<OwnRecord>,
    /// Complete layers are files that their source keeps.
    _layers: Vec<Layer>,
    front: Front,
    entry: MountEntry,
}

impl MountedImage {
    /// Mounts an image. Blocks for some milliseconds and, for `erofs`, on answers of the session's own threads.
    ///
    /// With a guard, the mount cannot outlive this process.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the host cannot do what `front` asks for; [`Error::Layers`] when the layers are not
    /// those of the tree; [`Error::AlreadyMounted`]; otherwise whatever hinders the mount. Nothing is left behind then.
    pub fn mount(
        request: MountRequest,
        mut guard: Option<&mut Guard>,
        runtime: &Handle,
    ) -> Result<Self, Error> {
        let target = fs::canonicalize(&request.target);
        let target = target.map_err(|e| Error::path("finding mount target", &request.target, e))?;
        let tree = ImageTree::open(&request.tree_file, request.layers.clone(), &Limits::default())?;
        let tree_file = fs::canonicalize(&request.tree_file)
            .map_err(|e| Error::path("finding image tree", &request.tree_file, e))?;
        let front = choose(request.front, &tree_file);
        let record = describe(&request, front, &target, &tree_file);
        let record = OwnRecord::create(&request.run_dir, &record, &mut |directory| match &mut guard {
            Some(guard) => guard.watch(directory),
            None => Ok(()),
        })?;
        let (erofs, session) = match front {
            Front::Fuse => (None, Some(mount_fuse(tree, &request, &target, runtime)?)),
            Front::Erofs | Front::Auto => mount_erofs(&request, &tree_file, &target, runtime)?,
        };
        let entry = erofs.as_ref().and_then(ErofsMount::entry);
        let entry = entry
            .or_else(|| session.as_ref().and_then(Session::entry))
            .cloned();
        Ok(Self {
            entry: entry.ok_or(Error::NotMounted { target })?,
            erofs,
            session,
            record: Some(record),
            _layers: request.layers,
            front,
        })
    }

    /// How it is shown; never [`Front::Auto`].
    pub fn front(&self) -> Front {
        self.front
    }

    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.entry.target
    }

    /// Whether reads go through this process. Without it, the mount works on when the process ends.
    pub fn is_served(&self) -> bool {
        self.session.is_some()
    }

    /// Sets the readahead window in KiB, for instance when all layers are complete.
    ///
    /// # Errors
    /// As [`ErofsMount::set_readahead`].
    pub fn set_readahead(&self, kib: u32) -> Result<(), Error> {
        match &self.erofs {
            Some(erofs) => erofs.set_readahead(kib),
            None => crate::readahead::set(&self.entry.device, kib)
                .map_err(|e| Error::io("setting the readahead window", e)),
        }
    }

    /// Waits until the image is no longer mounted on its target, whoever unmounted it.
    ///
    /// # Errors
    /// [`Error::Io`] when the mount table cannot be watched.
    pub fn wait_unmounted(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let entry = self.entry.clone();
        async move {
            let gone = mountinfo::wait_unmounted(entry).await;
            gone.map_err(|e| Error::io("watching the mount table", e))
        }
    }

    /// Unmounts and cleans up. What somebody else unmounted is just cleaned up. Reads that are still in flight are waited
    /// for, so this must not block the only worker of the runtime that answers them.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody uses it; it goes on then, unless `lazy`.
    pub fn unmount(&mut self, lazy: bool) -> Result<(), Error> {
        if let Some(erofs) = &mut self.erofs {
            erofs.unmount(lazy)?;
        }
        self.erofs = None;
        if let Some(session) = &mut self.session {
            session.unmount(lazy)?;
        }
        self.session = None;
        self.record = None;
        Ok(())
    }
}

fn choose(front: Front, tree_file: &Path) -> Front {
    if front != Front::Auto {
        return front;
    }
    let directory = tree_file.parent().unwrap_or(Path::new("/"));
    let support = probe(directory);
    if support.file_backed {
        Front::Erofs
    } else {
        tracing::info!(
            reason = support.reason,
            "this host cannot mount image trees with EROFS; using FUSE"
        );
        Front::Fuse
    }
}

fn describe(request: &MountRequest, front: Front, target: &Path, tree_file: &Path) -> MountRecord {
    let (fs_type, source) = match front {
        Front::Fuse => (session::FS_TYPE, Path::new(session::SOURCE)),
        Front::Erofs | Front::Auto => (erofs_mount::FS_TYPE, tree_file),
    };
    MountRecord {
        target: target.to_owned(),
        front,
        pid: std::process::id(),
        image: request.image.clone(),
        fs_type: fs_type.to_owned(),
        source: source.to_owned(),
    }
}

fn mount_fuse(
    tree: ImageTree,
    request: &MountRequest,
    target: &Path,
    runtime: &Handle,
) -> Result<Session, Error> {
    let options = SessionOptions {
        read_ahead_kib: request.read_ahead_kib,
        ..request.session.clone()
    };
    Session::mount(Arc::new(OnlyTree::new(Arc::new(tree))), target, &options, runtime)
}

/// The local file of a layer, when EROFS can read it as a device: it must end with a whole block.
///
/// May block on the disk. The source keeps the file as long as it lives.
pub fn complete_device(layer: &Layer) -> Option<PathBuf> {
    let plain_len = layer.source.plain_len();
    let whole = plain_len == device_len(plain_len);
    whole.then(|| layer.source.complete_file()).flatten()
}

fn mount_erofs(
    request: &MountRequest,
    tree_file: &Path,
    target: &Path,
    runtime: &Handle,
) -> Result<(Option<ErofsMount>, Option<Session>), Error> {
    let directory = Arc::new(LayerDirectory::new());
    let complete: Vec<_> = request.layers.iter().map(complete_device).collect();
    let session = if complete.iter().all(Option::is_some) {
        None
    } else {
        Some(Session::hidden(directory.clone(), &request.session, runtime)?)
    };
    let root = session.as_ref().map(Session::root).unwrap_or_default();
    let mut devices = Vec::with_capacity(request.layers.len());
    for (layer, complete) in request.layers.iter().zip(complete) {
        devices.push(match complete {
            Some(file) => file,
            None => {
                directory.insert(layer.clone())?;
                root.join(LayerDirectory::path_of(layer.diff_id))
            }
        });
    }
    let helper = request.helper.as_deref();
    let erofs = ErofsMount::mount(tree_file, &devices, target, request.read_ahead_kib, helper)?;
    Ok((Some(erofs), session))
}
