//! Plain layers, image trees and documents kept on disk.
//!
//! ```text
//! layers/sha256/<DiffID>/data      sparse file with the plain bytes of the layer
//! layers/sha256/<DiffID>/present   which chunks of it are there (see the presence module)
//! layers/sha256/<DiffID>/cuts      where it is cut (see the cuts module)
//! layers/sha256/<DiffID>/used      when chunks were used (see the stamps module)
//! layers/sha256/<DiffID>/whole     the whole layer was verified (see the whole module)
//! image-trees/sha256/<ChainID>     the merged tree of a stack of layers
//! documents/, locations/, tags/, attached/, streamed/, images/   see the documents module
//! streams/                         layers that are being streamed (see the streamed module)
//! partial/<blob digest>            what has come of blobs that are being streamed (see the partial module)
//! pins/                            see the pins module
//! ```
//!
//! The key is the DiffID, so every stored form of a layer shares one copy. A bit reaches the disk after the bytes that it stands
//! for, and leaves it before they do. Even so it is a hint: a process verifies a chunk by digest before it uses it for the first
//! time, so a crash, a power cut or another program never shows wrong bytes, and a chunk that does not match is forgotten and
//! fetched again. A disk that is full, read-only or failing makes the cache pass-through for a while, with one warning; a reader
//! never sees an error from it.
//!
//! Several processes may use one directory at a time: all read and add; one at a time evicts, and only from layers that no other
//! process has open. The byte tables and the rules for processes are in `docs/cache.md`.

mod cached;
mod cuts;
mod dedup;
mod disk;
mod documents;
mod evict;
mod files;
mod inventory;
mod layer;
mod locks;
mod partial;
mod pins;
mod plain_blob;
mod presence;
mod primitives;
mod ranges;
mod recover;
mod space;
mod stamps;
mod states;
mod streamed;
mod upkeep;
mod whole;

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};

use sluice_format::{BlobDigest, ChainId, DiffId, Digest, LayerIndex};

pub use self::cached::CachedLayer;
use self::cuts::Cuts;
use self::dedup::Copies;
pub use self::disk::DiskObserver;
pub(crate) use self::documents::{Documents, TocRecord};
pub use self::documents::{ImageRecord, LayerRecord};
pub use self::evict::{Evicted, Goal};
pub use self::inventory::{Checked, ImageEntry, Inventory, LayerEntry, PartialEntry};
use self::layer::LayerFiles;
pub(crate) use self::partial::PartialBlob;
pub use self::pins::Pin;
use self::space::{Errands, Outage, Shared, Space};
use self::stamps::Clock;
pub(crate) use self::streamed::StreamedFile;
use self::streamed::Streams;
pub use self::whole::CompleteFile;
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// The cache directory of a system-wide Sluice.
const SYSTEM_DIR: &str = "/var/cache/sluice";

/// Mode of a cache directory that is made here: images may be private, and their bytes are in there in the clear.
const DIR_MODE: u32 = 0o700;

/// Directory of layers below the cache directory.
const LAYERS: &str = "layers/sha256";

/// Directory of image trees below the cache directory.
const IMAGE_TREES: &str = "image-trees/sha256";

/// How a cache directory is used.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Bytes that the directory may take on the disk. `None` for four fifths of what is free plus what it has.
    pub quota: Option<u64>,
    /// Whether a thread flushes and evicts. Without it [`Cache::tend`] does, and what is stored is flushed when its layer is
    /// closed.
    pub upkeep: bool,
    /// Is told of what reaches the disk, for the simulation of faults.
    pub observer: Option<Arc<dyn DiskObserver>>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            quota: None,
            upkeep: true,
            observer: None,
        }
    }
}

/// A cache directory.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    shared: Arc<Shared>,
    /// Layers in use, so that two users of one layer share what has been verified. The digest is that of the cuts.
    open: Mutex<HashMap<(DiffId, Digest), Weak<LayerFiles>>>,
    copies: Copies,
    documents: Documents,
    said_full: AtomicBool,
    streams: Streams,
}

impl Cache {
    /// Opens a cache directory with the usual options; it is made if it is missing.
    ///
    /// # Errors
    /// As [`Cache::open_with`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Arc<Self>, Error> {
        Self::open_with(dir, CacheOptions::default())
    }

    /// Opens a cache directory, which is made if it is missing.
    ///
    /// # Errors
    /// What hinders creating it. A directory that cannot be written to is no error: what is in it is used.
    pub fn open_with(dir: impl Into<PathBuf>, options: CacheOptions) -> Result<Arc<Self>, Error> {
        let dir = dir.into();
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(&dir)
            .map_err(|error| Error::io(format!("create cache directory {}", dir.display()), error))?;
        let shared = Arc::new(Shared {
            dir: dir.clone(),
            clock: Clock::new(),
            space: Space::new(options.quota),
            outage: Outage::default(),
            observer: options.observer,
            errands: Errands::default(),
        });
        streamed::remove_leftovers(&dir);
        partial::remove_abandoned(&dir, shared.clock.now().into());
        shared.space.measure(&dir);
        let cache = Arc::new(Self {
            dir,
            documents: Documents::new(&shared),
            shared,
            open: Mutex::default(),
            copies: Copies::default(),
            said_full: AtomicBool::new(false),
            streams: Streams::new(),
        });
        if options.upkeep {
            upkeep::start(&cache);
        }
        Ok(cache)
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

    /// Bytes that the directory takes on the disk, as far as this process knows.
    pub fn used_bytes(&self) -> u64 {
        self.shared.space.used()
    }

    /// Bytes that it may take.
    pub fn quota(&self) -> u64 {
        self.shared.space.limit()
    }

    /// Whether so much of it is taken that something has to be evicted before long: more than an eviction would leave.
    pub fn is_nearly_full(&self) -> bool {
        self.shared.space.used() > self.shared.space.low()
    }

    /// Lets time pass, as far as the cache is concerned. For tests of what is older than something else.
    #[cfg(any(test, feature = "testing"))]
    pub fn advance_clock(&self, seconds: u32) {
        self.shared.clock.advance(seconds);
    }

    /// Manifests, configs and layer indexes.
    pub(crate) fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The cached bytes of a layer that is cut as `index` says. Chunks that were cached under other cuts are not found. Never
    /// fails: without usable files the layer is pass-through. Blocks on the disk for a moment.
    pub fn layer(self: &Arc<Self>, index: &Arc<LayerIndex>) -> CachedLayer {
        let cuts = Cuts::of_table(&index.chunks);
        self.copies.add(index.diff_id, &cuts);
        let files = self.open_layer(index.diff_id, cuts);
        CachedLayer {
            files,
            cache: self.clone(),
            is_synthetic: index.is_synthetic(),
        }
    }

    /// A layer as it lies in the directory, whoever stored it; `None` when there is none that can be read.
    fn stored_layer(&self, diff_id: &DiffId) -> Option<Arc<LayerFiles>> {
        let cuts = self.stored_cuts(diff_id)?;
        let layer = self.open_layer(*diff_id, cuts);
        layer.files().is_some().then_some(layer)
    }

    fn open_layer(&self, diff_id: DiffId, cuts: Cuts) -> Arc<LayerFiles> {
        let mut open = lock(&self.open);
        open.retain(|_, files| files.strong_count() > 0);
        let key = (diff_id, cuts.digest());
        if let Some(files) = open.get(&key).and_then(Weak::upgrade) {
            return files;
        }
        let files = Arc::new(LayerFiles::open(
            diff_id,
            self.layer_dir(&diff_id),
            cuts,
            &self.shared,
        ));
        open.insert(key, Arc::downgrade(&files));
        files
    }

    /// Bytes on the disk and number of files of a layer, whoever stored it: as the DiffID names it, or as a synthetic plain layer of the blob.
    /// Blocks on the disk for a moment.
    pub fn layer_usage(&self, diff_id: &DiffId, blob: &BlobDigest) -> (u64, u64) {
        let synthetic = self.documents.toc(blob).map(|toc| toc.plain_layer.parse());
        let names = [Some(*diff_id), synthetic.and_then(Result::ok)];
        let directories = names.iter().flatten().map(|name| self.layer_dir(name));
        let files = directories
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flatten();
        let sizes = files
            .flatten()
            .filter_map(|file| Some(disk::allocated(&file.metadata().ok()?)));
        sizes.fold((0, 0), |(bytes, count), size| (bytes + size, count + 1))
    }

    fn layer_dir(&self, diff_id: &DiffId) -> PathBuf {
        self.dir.join(LAYERS).join(diff_id.0.to_hex())
    }

    /// Where the image tree of a stack of layers is kept, whether it is there or not.
    pub fn tree_path(&self, chain_id: &ChainId) -> PathBuf {
        self.dir.join(IMAGE_TREES).join(chain_id.0.to_hex())
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

impl Drop for Cache {
    fn drop(&mut self) {
        self.shared.errands.add(|list| list.stop = true);
    }
}
