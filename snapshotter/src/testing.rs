//! An engine for tests: images are plain directories, and trees are real mounts of merged copies.
//!
//! ```text
//! <home>/images/<reference, with "/" as "%">    DiffIDs, lowest first, one a line
//! <home>/layers/<hex of a DiffID>/              a layer in overlayfs form, without opaque directories; missing:
//!                                               the layer cannot be served
//! <home>/merged/<name of a tree>/               what is mounted
//! <home>/broken                                 while it exists, nothing can be mounted
//! ```
//!
//! Everything is on disk, so a restarted process serves what the one before did, and two of them agree.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sluice_format::{BlobDigest, ChainId, DiffId, Digest};

use crate::images::{ContainerStart, EngineError, IdleTree, Images, LayerRequest, RemoteLayer, TreeRequest};
use crate::mounts::Usage;

/// What [`DirectoryImages::usage`] reports for every layer.
pub const LAYER_USAGE: Usage = Usage {
    bytes: 4096,
    inodes: 3,
};

/// The engine.
#[derive(Debug)]
pub struct DirectoryImages {
    home: PathBuf,
    calls: Mutex<Calls>,
    idle_trees: Mutex<IdleTree>,
}

/// What was asked of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Targets of the layers asked for.
    pub resolved: Vec<ChainId>,
    /// Trees mounted anew, by name.
    pub mounted: Vec<String>,
    /// Trees that were mounted already, by name.
    pub adopted: Vec<String>,
    /// Directories unmounted.
    pub unmounted: Vec<PathBuf>,
    /// Layers forgotten.
    pub forgotten: Vec<DiffId>,
    /// Keys of prepared containers.
    pub prepared: Vec<String>,
}

impl DirectoryImages {
    /// The engine whose images are under `home`.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(home: &Path) -> io::Result<Self> {
        for name in ["images", "layers", "merged"] {
            fs::create_dir_all(home.join(name))?;
        }
        Ok(Self {
            home: home.canonicalize()?,
            calls: Mutex::default(),
            idle_trees: Mutex::new(IdleTree::GiveUp),
        })
    }

    /// Adds an image of these layers, lowest first.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_image(&self, reference: &str, layers: &[DiffId]) -> io::Result<()> {
        let lines: String = layers.iter().map(|layer| format!("{layer}\n")).collect();
        fs::write(self.image(reference), lines)
    }

    /// The directory of a layer that can be served from now on; `fill` it with entries in overlayfs form.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn add_layer(&self, layer: DiffId) -> io::Result<PathBuf> {
        let directory = self.layer(layer);
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        Ok(directory)
    }

    /// Whether mounting fails from now on.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub fn break_mounts(&self, broken: bool) -> io::Result<()> {
        let mark = self.home.join("broken");
        if broken {
            fs::write(mark, "")
        } else {
            fs::remove_file(mark)
        }
    }

    /// What is to become of trees that no snapshot uses. In the beginning they are given up.
    pub fn advise(&self, advice: IdleTree) {
        *self.idle_trees.lock().unwrap_or_else(PoisonError::into_inner) = advice;
    }

    /// What was asked so far.
    pub fn calls(&self) -> Calls {
        self.note(|calls| calls.clone())
    }

    fn note<T>(&self, change: impl FnOnce(&mut Calls) -> T) -> T {
        change(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn image(&self, reference: &str) -> PathBuf {
        self.home.join("images").join(reference.replace('/', "%"))
    }

    fn layer(&self, layer: DiffId) -> PathBuf {
        self.home.join("layers").join(layer.0.to_hex())
    }

    fn find(&self, request: &LayerRequest) -> Result<Option<RemoteLayer>, EngineError> {
        let image = fs::read_to_string(self.image(&request.reference))?;
        let mut chain = None;
        for line in image.lines() {
            let layer: DiffId = line.parse()?;
            chain = Some(ChainId::extend(chain, layer));
            if chain == Some(request.target) {
                return Ok(self.layer(layer).is_dir().then(|| RemoteLayer {
                    reference: request.reference.clone(),
                    manifest_digest: request.manifest_digest.unwrap_or(Digest::of(image.as_bytes())),
                    layer_digest: request.layer_digest.unwrap_or(BlobDigest(layer.0)),
                    plain_layer: layer,
                }));
            }
        }
        Err(format!("{} has no layer {}", request.reference, request.target).into())
    }

    fn show(&self, tree: &TreeRequest, target: &Path) -> Result<(), EngineError> {
        if self.home.join("broken").exists() {
            return Err("the engine is broken".into());
        }
        let merged = self.home.join("merged").join(tree.name());
        if !merged.exists() {
            let partial = merged.with_extension("partial");
            let _ = fs::remove_dir_all(&partial);
            for layer in &tree.layers {
                merge(&self.layer(layer.plain_layer), &partial, tree.keeps_whiteouts)?;
            }
            fs::rename(&partial, &merged)?;
        }
        if is_same_directory(&merged, target)? {
            self.note(|calls| calls.adopted.push(tree.name()));
            return Ok(());
        }
        mount(
            Some(&merged),
            target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, target, None::<&str>, read_only, None::<&str>)?;
        self.note(|calls| calls.mounted.push(tree.name()));
        Ok(())
    }

    fn hide(&self, target: &Path) -> Result<(), EngineError> {
        match umount2(target, MntFlags::empty()) {
            Ok(()) => self.note(|calls| calls.unmounted.push(target.to_path_buf())),
            Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Images for DirectoryImages {
    fn resolve<'a>(
        &'a self,
        request: &'a LayerRequest,
    ) -> BoxFuture<'a, Result<Option<RemoteLayer>, EngineError>> {
        self.note(|calls| calls.resolved.push(request.target));
        Box::pin(async { self.find(request) })
    }

    fn mount_tree<'a>(
        &'a self,
        tree: &'a TreeRequest,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(async move { tokio::task::block_in_place(|| self.show(tree, target)) })
    }

    fn check_tree<'a>(
        &'a self,
        tree: &'a TreeRequest,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        let merged = self.home.join("merged").join(tree.name());
        Box::pin(async move {
            if is_same_directory(&merged, target)? {
                Ok(())
            } else {
                Err("not mounted".into())
            }
        })
    }

    fn unmount_tree<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(async move { self.hide(target) })
    }

    fn idle_tree<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, IdleTree> {
        let advice = *self.idle_trees.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(async move { advice })
    }

    fn usage<'a>(&'a self, _: &'a RemoteLayer) -> BoxFuture<'a, Result<Usage, EngineError>> {
        Box::pin(async { Ok(LAYER_USAGE) })
    }

    fn container_prepared(&self, start: &ContainerStart) {
        self.note(|calls| calls.prepared.push(start.key.clone()));
    }

    fn forget(&self, layer: &RemoteLayer) {
        self.note(|calls| calls.forgotten.push(layer.plain_layer));
    }

    fn can_map_ids(&self) -> bool {
        false
    }
}

/// A bind mount shows the very directory it was made of.
fn is_same_directory(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (fs::metadata(one)?, fs::metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Puts a layer on what is in `merged`.
fn merge(layer: &Path, merged: &Path, keeps_whiteouts: bool) -> io::Result<()> {
    let metadata = fs::symlink_metadata(layer)?;
    let is_directory = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if !metadata.is_dir() {
        remove_any(merged)?;
        let is_whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
        if is_whiteout && !keeps_whiteouts {
            return Ok(());
        }
        return copy(layer, merged);
    }
    if !is_directory(merged) {
        remove_any(merged)?;
        fs::create_dir(merged)?;
    }
    fs::set_permissions(merged, metadata.permissions())?;
    lchown(merged, Some(metadata.uid()), Some(metadata.gid()))?;
    for entry in fs::read_dir(layer)? {
        let entry = entry?;
        merge(&entry.path(), &merged.join(entry.file_name()), keeps_whiteouts)?;
    }
    Ok(())
}

fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("cp of {} failed", from.display())))
    }
}
