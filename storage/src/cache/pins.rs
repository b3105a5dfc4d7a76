//! What is never evicted.
//!
//! `pins/<digest of the text>` holds a line of text each: `layer sha256:…` or `image NAME`. An image stands for what its name meant
//! when it was loaded last, so a pinned tag that moves takes its pin along. Whoever evicts reads the pins first.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use sluice_format::{DiffId, Digest};

use super::documents::{Documents, ImageRecord, write};
use super::files::remove_if_there;
use crate::Error;

/// Something that is not evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pin {
    /// A layer.
    Layer(DiffId),
    /// All layers and documents of an image, by the name under which it was loaded.
    Image(String),
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(diff_id) => write!(f, "layer {diff_id}"),
            Self::Image(name) => write!(f, "image {name}"),
        }
    }
}

impl Pin {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once(' ')? {
            ("layer", diff_id) => Some(Self::Layer(diff_id.parse().ok()?)),
            ("image", name) => Some(Self::Image(name.to_owned())),
            _ => None,
        }
    }

    fn path(&self, dir: &Path) -> PathBuf {
        let name = Digest::of(self.to_string().as_bytes()).to_hex();
        dir.join("pins").join(name)
    }

    pub(super) fn put(&self, dir: &Path) -> Result<(), Error> {
        let path = self.path(dir);
        write(&path, self.to_string().as_bytes())
            .map_err(|error| Error::io(format!("write pin {}", path.display()), error))
    }

    pub(super) fn exists(&self, dir: &Path) -> bool {
        self.path(dir).exists()
    }

    pub(super) fn remove(&self, dir: &Path) -> Result<(), Error> {
        let path = self.path(dir);
        remove_if_there(&path).map_err(|error| Error::io(format!("remove pin {}", path.display()), error))
    }
}

/// All pins, with what they stand for.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    pub(super) images: HashSet<String>,
    pub(super) layers: HashSet<DiffId>,
    /// Documents and records that stay.
    files: HashSet<PathBuf>,
}

impl Pinned {
    pub(super) fn load(dir: &Path, documents: &Documents) -> Self {
        let mut pinned = Self::default();
        let entries = std::fs::read_dir(dir.join("pins"))
            .into_iter()
            .flatten()
            .flatten();
        for text in entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()) {
            match Pin::parse(&text) {
                Some(Pin::Layer(diff_id)) => drop(pinned.layers.insert(diff_id)),
                Some(Pin::Image(name)) => drop(pinned.images.insert(name)),
                None => {}
            }
        }
        for (path, image) in documents.images() {
            if pinned.images.contains(&image.name) {
                pinned.layers.extend(image.diff_ids());
                pinned.add_files(dir, documents, &image, path);
            }
        }
        pinned
    }

    /// Keeps the documents of images with a layer that `in_use` holds for: whoever reads the layer may have to start again.
    pub(super) fn hold_images(
        &mut self,
        dir: &Path,
        documents: &Documents,
        in_use: impl Fn(&DiffId) -> bool,
    ) {
        for (path, image) in documents.images() {
            if image.diff_ids().iter().any(&in_use) {
                self.add_files(dir, documents, &image, path);
            }
        }
    }

    fn add_files(&mut self, dir: &Path, documents: &Documents, image: &ImageRecord, record: PathBuf) {
        let files = image.files(documents.tag(&image.name).as_ref());
        self.files.extend(files.into_iter().map(|file| dir.join(file)));
        self.files.insert(record);
    }

    /// Whether a document or record stays.
    pub(super) fn has_file(&self, path: &Path) -> bool {
        self.files.contains(path)
    }
}
