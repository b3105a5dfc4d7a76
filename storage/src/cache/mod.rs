//! Plain layers and image trees kept on disk.
//!
//! ```text
//! layers/sha256/<DiffID>/data      sparse file with the plain bytes of the layer
//! layers/sha256/<DiffID>/present   which chunks of it are there (see the presence module)
//! image-trees/sha256/<ChainID>     the merged tree of a stack of layers
//! ```
//!
//! The key is the DiffID, so every stored form of a layer shares one copy. What the disk says is a hint: a process verifies
//! a chunk by digest before it uses it for the first time, so a crash, a power cut or another program never shows wrong
//! bytes, and a chunk that does not match is forgotten and fetched again. Nothing needs to be synced for that. A disk that is
//! full, read-only or failing makes the cache pass-through, with one warning; a reader never sees an error from it.
//!
//! Several processes may use one directory at a time. Nothing is evicted here.

mod layer;
mod presence;

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use sluice_format::{ChainId, DiffId, Digest, LayerIndex};

pub use self::layer::CachedLayer;
use self::layer::LayerFiles;
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// The cache directory of a system-wide Sluice.
const SYSTEM_DIR: &str = "/var/cache/sluice";

/// Mode of a cache directory that is made here: images may be private, and their bytes are in there in the clear.
const DIR_MODE: u32 = 0o700;

/// A cache directory.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    /// Layers in use, so that two users of one layer share what has been verified. The digest is that of the cuts.
    open: Mutex<HashMap<(DiffId, Digest), Weak<LayerFiles>>>,
    warned: Arc<WarnOnce>,
}

impl Cache {
    /// Opens a cache directory, which is made if it is missing.
    ///
    /// # Errors
    /// What hinders creating it. A directory that cannot be written to is no error: what is in it is used.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Arc<Self>, Error> {
        let dir = dir.into();
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(&dir)
            .map_err(|error| Error::io(format!("create cache directory {}", dir.display()), error))?;
        let warned = WarnOnce::new(dir.clone());
        Ok(Arc::new(Self {
            dir,
            open: Mutex::default(),
            warned: Arc::new(warned),
        }))
    }

    /// The directory of this user: `/var/cache/sluice` for root, else `$XDG_CACHE_HOME/sluice` or `~/.cache/sluice`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the environment names no home.
    pub fn default_dir() -> Result<PathBuf, Error> {
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from(SYSTEM_DIR));
        }
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = match (variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => Path::new(&home).join(".cache"),
            (None, None) => {
                let message = "no cache directory: neither XDG_CACHE_HOME nor HOME is set";
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
        };
        Ok(base.join("sluice"))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The cached bytes of a layer that is cut as `index` says. Chunks that were cached under other cuts are not found. Never
    /// fails: without usable files the layer is pass-through. Blocks on the disk for a moment.
    pub fn layer(&self, index: &Arc<LayerIndex>) -> CachedLayer {
        let cuts = presence::cuts_digest(&index.chunks);
        let mut open = lock(&self.open);
        open.retain(|_, files| files.strong_count() > 0);
        let key = (index.diff_id, cuts);
        let shared = open.get(&key).and_then(Weak::upgrade);
        let files = shared.unwrap_or_else(|| {
            let files = Arc::new(LayerFiles::open(
                &self.layer_dir(&index.diff_id),
                &index.chunks,
                cuts,
                &self.warned,
            ));
            open.insert(key, Arc::downgrade(&files));
            files
        });
        CachedLayer::new(files, index.clone())
    }

    fn layer_dir(&self, diff_id: &DiffId) -> PathBuf {
        self.dir.join("layers").join("sha256").join(diff_id.0.to_hex())
    }

    /// Where the image tree of a stack of layers is kept, whether it is there or not.
    pub fn tree_path(&self, chain_id: &ChainId) -> PathBuf {
        self.dir
            .join("image-trees")
            .join("sha256")
            .join(chain_id.0.to_hex())
    }

    /// Keeps an image tree, read-only, and returns where. Atomic: a running mount keeps the file that it has. Not synced, as
    /// a mount writes its tree anew and never trusts one that it finds. Blocks on the disk.
    ///
    /// # Errors
    /// What hinders writing.
    pub fn put_tree(&self, chain_id: &ChainId, bytes: &[u8]) -> Result<PathBuf, Error> {
        let path = self.tree_path(chain_id);
        let what = |error| Error::io(format!("write image tree {}", path.display()), error);
        let dir = path.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(dir).map_err(what)?;
        let mut file = tempfile::Builder::new()
            .prefix(".tree-")
            .tempfile_in(dir)
            .map_err(what)?;
        file.write_all(bytes).map_err(what)?;
        let sealed = std::fs::Permissions::from_mode(TREE_MODE);
        file.as_file().set_permissions(sealed).map_err(what)?;
        file.persist(&path).map_err(|error| what(error.error))?;
        Ok(path)
    }
}

/// Mode of image trees: they are memory-mapped, so nobody may write or cut them.
const TREE_MODE: u32 = 0o400;

/// Says once per cache that it does not keep what it is given.
#[derive(Debug)]
struct WarnOnce {
    dir: PathBuf,
    said: AtomicBool,
}

impl WarnOnce {
    fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            said: AtomicBool::new(false),
        }
    }

    fn pass_through(&self, error: &std::io::Error) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                dir = %self.dir.display(),
                %error,
                "the cache cannot keep what is fetched; reads go on without it"
            );
        }
    }
}
