//! The files of an image, for its programs and modules to be looked for in all its layers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use sluice_format::startup::{FilePlace, ImageFiles, Module};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::loader::{Met, Opened};
use super::{Lane, Source};

/// Plain bytes of code that the programs of an image's start may have fetched whole: Node.js with its libraries has 38 MB.
const MOST_CODE: u64 = 48 << 20;
/// The same of constants, all together and of each program: interpreters read all of theirs, larger ones are tables of which little is read.
const MOST_CONSTANTS: u64 = 8 << 20;
const LONGEST_CONSTANTS: u64 = 2 << 20;
/// Plain bytes of modules that are looked into: an import of PyTorch reads 18 MB.
const MOST_MODULES: u64 = 64 << 20;
/// What a module counts for at least: looking into many small ones takes time too.
const LEAST_MODULE: u64 = 8 << 10;
/// Modules that are looked into at the same time. Readers need the threads that block as well.
const LOOKS: usize = 2;

/// One layer of an image, as far as its files are looked into. A layer that several images share knows those of one of them, and must not keep
/// the other layers of that alive.
#[derive(Debug)]
pub(crate) struct FileLayer {
    pub(crate) source: Weak<Source>,
    pub(crate) met: Arc<Met>,
}

/// What is known of the files of an image.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) places: ImageFiles,
    /// Lowest first.
    layers: Vec<FileLayer>,
    code_left: AtomicU64,
    constants_left: AtomicU64,
    modules_left: AtomicU64,
    looks: Semaphore,
    closed: AtomicBool,
}

impl Files {
    /// `places` names layers by their position in `layers`, from 1.
    pub(crate) fn new(places: ImageFiles, layers: Vec<FileLayer>) -> Self {
        Self {
            places,
            layers,
            code_left: AtomicU64::new(MOST_CODE),
            constants_left: AtomicU64::new(MOST_CONSTANTS),
            modules_left: AtomicU64::new(MOST_MODULES),
            looks: Semaphore::new(LOOKS),
            closed: AtomicBool::new(false),
        }
    }

    /// Has no more files looked into.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// A file to be looked into, and what was met in its layer.
    pub(crate) fn open(&self, place: FilePlace, lane: Lane) -> Option<(Opened, Arc<Met>)> {
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        let layer = self.layers.get(usize::from(place.device).checked_sub(1)?)?;
        let opened = Opened {
            source: layer.source.upgrade()?,
            plain_off: place.plain_off,
            lane,
        };
        Some((opened, layer.met.clone()))
    }

    /// The modules that a module leads to, by the content of its file.
    pub(crate) async fn imports(self: &Arc<Self>, module: Module, file: BytesMut) -> Option<Vec<Module>> {
        let _look = self.looks.acquire().await.ok()?;
        let files = self.clone();
        let imports = spawn_blocking(move || files.places.imports(&module, &file));
        imports.await.ok()
    }

    /// Whether so many bytes of code may be fetched as well.
    pub(crate) fn spend_on_code(&self, len: u64) -> bool {
        spend(&self.code_left, len)
    }

    /// Whether so many bytes of constants may be fetched as well.
    pub(crate) fn spend_on_constants(&self, len: u64) -> bool {
        len <= LONGEST_CONSTANTS && spend(&self.constants_left, len)
    }

    /// Whether so many bytes of modules may be looked into as well.
    pub(crate) fn spend_on_modules(&self, len: u64) -> bool {
        spend(&self.modules_left, len.max(LEAST_MODULE))
    }
}

/// The files of the image that a layer was mounted with last, and which layer of it that is.
#[derive(Clone, Debug)]
pub(crate) struct InImage {
    pub(crate) files: Arc<Files>,
    pub(crate) device: u16,
}

impl InImage {
    /// The module that begins there.
    pub(crate) fn module_at(&self, plain_off: u64) -> Option<Module> {
        self.files.places.module_at(self.device, plain_off)
    }
}

fn spend(left: &AtomicU64, len: u64) -> bool {
    let spent = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(len));
    spent.is_ok()
}
