//! One image tree: an EROFS metadata image, mapped into memory, with the plain layers that it points into.
//!
//! Operations are named by nid; `trees` gives them node numbers. Metadata answers come from the map. A read is cut into
//! runs: holes and literals are answered from memory, runs in plain layers become futures.
//!
//! A file that is mapped must never get shorter, or its readers die of SIGBUS. Therefore only files without any write
//! bit, owned by root or by this user, are taken; [`write_tree_file`] makes such files.

use std::fmt::Debug;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use memmap2::Mmap;
use nix::errno::Errno;
use sluice_format::Limits;
use sluice_format::erofs::{BLOCK_SIZE, Image, Inode, InodeKind, MappedRun, RunSource};

use crate::errno::{self, ReadFailures};
use crate::filesystem::Answer;
use crate::plain::read_layer;
use crate::{Error, Layer, kernel};

/// Permissions of an image tree file.
const TREE_FILE_MODE: u32 = 0o400;

/// One image tree and its plain layers, bottom first.
#[derive(Debug)]
pub struct ImageTree {
    image: Image<Mmap>,
    layers: Vec<Layer>,
    failures: Arc<ReadFailures>,
}

impl ImageTree {
    /// Maps an image tree file and checks that `layers` are the devices it was written for.
    ///
    /// # Errors
    /// [`Error::TreeFile`] for a file that somebody could change, [`Error::Tree`] for one that is no image tree,
    /// [`Error::Layers`] for other layers.
    pub fn open(path: &Path, layers: Vec<Layer>, limits: &Limits) -> Result<Self, Error> {
        let file = open_private(path)?;
        let map = kernel::map_read_only(&file).map_err(|e| Error::path("mapping image tree", path, e))?;
        let image = Image::open(map, limits).map_err(|source| Error::Tree {
            path: path.to_owned(),
            source,
        })?;
        check_layers(path, &image, &layers)?;
        Ok(Self {
            image,
            layers,
            failures: Arc::default(),
        })
    }

    pub(crate) fn root(&self) -> u64 {
        self.image.root()
    }

    pub(crate) fn inode(&self, nid: u64) -> Result<Inode, Errno> {
        self.image
            .inode(nid)
            .map_err(|error| errno::of_format(nid, &error))
    }

    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<u64>, Errno> {
        if self.inode(parent)?.kind != InodeKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let found = self.image.lookup(parent, name);
        found.map_err(|error| errno::of_format(parent, &error))
    }

    pub(crate) fn read_link(&self, nid: u64) -> Result<Vec<u8>, Errno> {
        if self.inode(nid)?.kind != InodeKind::Symlink {
            return Err(Errno::EINVAL);
        }
        let target = self
            .image
            .read_link(nid)
            .map_err(|error| errno::of_format(nid, &error))?;
        Ok(target.to_vec())
    }

    pub(crate) fn xattr(&self, nid: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let value = self
            .image
            .xattr(nid, name)
            .map_err(|error| errno::of_format(nid, &error))?;
        value.map(<[u8]>::to_vec).ok_or(Errno::ENODATA)
    }

    pub(crate) fn xattr_names(&self, nid: u64) -> Result<Vec<u8>, Errno> {
        let xattrs = self
            .image
            .xattrs(nid)
            .map_err(|error| errno::of_format(nid, &error))?;
        let mut list = Vec::new();
        for name in xattrs.keys() {
            list.extend_from_slice(name);
            list.push(0);
        }
        Ok(list)
    }

    pub(crate) fn read(&self, nid: u64, file: Range<u64>) -> Result<Answer, Errno> {
        let inode = self.inode(nid)?;
        match inode.kind {
            InodeKind::Regular => {}
            InodeKind::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        let file = file.start..file.end.min(inode.size);
        if file.is_empty() {
            return Ok(Answer::Ready(Bytes::new()));
        }
        let runs = self.image.map(nid, file.start, file.end - file.start);
        let runs = runs.map_err(|error| errno::of_format(nid, &error))?;
        self.gather(&file, &runs)
    }

    /// Builds the answer to a read from its runs. What no run covers is zero.
    fn gather(&self, file: &Range<u64>, runs: &[MappedRun]) -> Result<Answer, Errno> {
        let len = usize::try_from(file.end - file.start).map_err(|_| Errno::EINVAL)?;
        if let [run] = runs
            && run.file_off == file.start
            && run.len == len as u64
            && let RunSource::Plain { device, plain_off } = run.source
        {
            return self.read_plain(device, plain_off, run.len);
        }
        let mut buffer = BytesMut::zeroed(len);
        let mut parts = Vec::new();
        for run in runs {
            let place = place_in(file, run).ok_or(Errno::EIO)?;
            match run.source {
                RunSource::Hole => {}
                RunSource::Image { image_off } => {
                    buffer[place].copy_from_slice(self.literal(image_off, run.len)?);
                }
                RunSource::Plain { device, plain_off } => {
                    match self.read_plain(device, plain_off, run.len)? {
                        Answer::Ready(bytes) => buffer[place].copy_from_slice(&bytes),
                        Answer::Later(bytes) => parts.push(bytes.map(|bytes| Ok((place, bytes?)))),
                    }
                }
            }
        }
        if parts.is_empty() {
            return Ok(Answer::Ready(buffer.freeze()));
        }
        let whole = async move {
            for (place, bytes) in try_join_all(parts).await? {
                buffer[place].copy_from_slice(&bytes);
            }
            Ok(buffer.freeze())
        };
        Ok(Answer::Later(whole.boxed()))
    }

    pub(crate) fn read_dir(
        &self,
        nid: u64,
        cookie: u64,
        each: &mut dyn FnMut(u64, sluice_format::erofs::DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        if self.inode(nid)?.kind != InodeKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let fed = self.image.read_dir(nid, cookie, each);
        fed.map_err(|error| errno::of_format(nid, &error))
    }

    fn literal(&self, image_off: u64, len: u64) -> Result<&[u8], Errno> {
        let start = usize::try_from(image_off).map_err(|_| Errno::EIO)?;
        let len = usize::try_from(len).map_err(|_| Errno::EIO)?;
        let end = start.checked_add(len).ok_or(Errno::EIO)?;
        self.image.bytes().get(start..end).ok_or(Errno::EIO)
    }

    fn read_plain(&self, device: u16, plain_off: u64, len: u64) -> Result<Answer, Errno> {
        let layer = usize::from(device)
            .checked_sub(1)
            .and_then(|at| self.layers.get(at));
        let layer = layer.ok_or(Errno::EIO)?;
        let end = plain_off
            .checked_add(len)
            .filter(|end| *end <= layer.source.plain_len());
        Ok(read_layer(
            layer,
            plain_off..end.ok_or(Errno::EIO)?,
            &self.failures,
        ))
    }

    pub(crate) fn content_len(&self) -> u64 {
        self.layers.iter().map(|layer| layer.source.plain_len()).sum()
    }
}

/// Where in the buffer for `file` the bytes of `run` belong, or `None` when they lie outside.
fn place_in(file: &Range<u64>, run: &MappedRun) -> Option<Range<usize>> {
    let start = run.file_off.checked_sub(file.start)?;
    let end = start.checked_add(run.len)?;
    let fits = end <= file.end - file.start;
    fits.then_some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

fn open_private(path: &Path) -> Result<File, Error> {
    let refuse = |reason| Error::TreeFile {
        path: path.to_owned(),
        reason,
    };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|e| Error::path("opening image tree", path, e))?;
    let metadata = file
        .metadata()
        .map_err(|e| Error::path("examining image tree", path, e))?;
    let user = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() {
        return Err(refuse("is no regular file"));
    }
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(refuse("belongs to another user"));
    }
    if metadata.mode() & 0o222 != 0 {
        return Err(refuse(
            "is writable: write it aside, make it read-only, then rename it into place",
        ));
    }
    Ok(file)
}

/// Writes an image tree file that [`ImageTree::open`] takes: complete or not there at all, and read-only.
///
/// # Errors
/// [`Error::Io`] from the file system.
pub fn write_tree_file(path: &Path, image: &[u8]) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::path("writing image tree", path, e);
    let mut aside = PathBuf::from(path).into_os_string();
    aside.push(format!(".{}", std::process::id()));
    let write = || {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(image)?;
        file.set_permissions(PermissionsExt::from_mode(TREE_FILE_MODE))?;
        file.sync_data()?;
        std::fs::rename(&aside, path)
    };
    write().map_err(|error| {
        // Whatever is left of the file aside is of no use; the error that matters is the first one.
        let _ = std::fs::remove_file(&aside);
        failed(error)
    })
}

fn check_layers(path: &Path, image: &Image<Mmap>, layers: &[Layer]) -> Result<(), Error> {
    let refuse = |reason: String| {
        Err(Error::Layers {
            path: path.to_owned(),
            reason,
        })
    };
    let devices = image.devices();
    if devices.len() != layers.len() {
        return refuse(format!(
            "it has {} devices, {} layers were given",
            devices.len(),
            layers.len()
        ));
    }
    for (at, ((diff_id, plain_len), layer)) in (1..).zip(devices.iter().zip(layers)) {
        if *diff_id != layer.diff_id {
            return refuse(format!(
                "device {at} is {diff_id}, layer {at} is {}",
                layer.diff_id
            ));
        }
        let found = layer.source.plain_len();
        // A device is counted in blocks.
        if *plain_len != found.next_multiple_of(BLOCK_SIZE) {
            return refuse(format!(
                "device {at} has {plain_len} bytes, layer {at} has {found}"
            ));
        }
    }
    Ok(())
}
