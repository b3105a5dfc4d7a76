//! Flat files of plain layers: what the `erofs` front end mounts image trees over.
//!
//! ```text
//! /plain/<64 hex digits of the DiffID>      read-only, direct I/O, as long as the plain layer
//! ```
//!
//! Layers come and go while the session lives. Removing one takes its name away at once; a mount that holds its file open
//! gets `ESTALE` for reads from then on, so a layer is removed after the last mount over it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use bytes::Bytes;
use futures_util::FutureExt;
use nix::errno::Errno;
use sluice_format::erofs::InodeKind;
use sluice_format::inode::Timestamp;
use sluice_format::{DiffId, Digest};

use crate::errno::ReadFailures;
use crate::filesystem::{
    Answer, Attributes, DirEntry, Entry, Lifetime, Namespace, OpenMode, Statistics, dots, fixed_root,
};
use crate::node;
use crate::{Error, Layer};

/// Name of the directory that holds the layer files.
const DIRECTORY: &str = "plain";

/// All plain layers that a session serves.
#[derive(Debug, Default)]
pub struct LayerDirectory {
    layers: RwLock<BTreeMap<u64, Layer>>,
    failures: Arc<ReadFailures>,
}

impl LayerDirectory {
    /// A directory without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a layer. One that is served already keeps its first source.
    ///
    /// # Errors
    /// [`Error::Collision`] when another layer has the same node number, which takes 2^-60 bad luck.
    pub fn insert(&self, layer: Layer) -> Result<(), Error> {
        let number = node::of_layer(&layer.diff_id.0);
        let mut layers = self
            .layers
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let served = layers.entry(number).or_insert_with(|| layer.clone());
        if served.diff_id == layer.diff_id {
            Ok(())
        } else {
            let what = format!("plain layer {}", layer.diff_id);
            Err(Error::Collision { what })
        }
    }

    /// Stops serving a layer.
    pub fn remove(&self, diff_id: DiffId) {
        let number = node::of_layer(&diff_id.0);
        let mut layers = self
            .layers
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        layers.remove(&number);
    }

    /// Path of a layer's file below the root of the session.
    pub fn path_of(diff_id: DiffId) -> String {
        format!("{DIRECTORY}/{}", diff_id.0.to_hex())
    }

    // A panic cannot leave the map half changed, so a poisoned lock is as good as any.
    fn layers(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Layer>> {
        self.layers
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn layer(&self, number: u64) -> Result<Layer, Errno> {
        self.layers().get(&number).cloned().ok_or(Errno::ESTALE)
    }

    fn find(&self, parent: u64, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        match parent {
            node::ROOT if name == DIRECTORY.as_bytes() => {
                Ok(Some(Attributes::fixed_directory(node::FIXED_DIRECTORY)))
            }
            node::ROOT => Ok(None),
            node::FIXED_DIRECTORY => {
                let digest = std::str::from_utf8(name)
                    .ok()
                    .and_then(|hex| Digest::from_hex(hex).ok());
                let layer = digest.and_then(|digest| {
                    let layer = self.layer(node::of_layer(&digest)).ok()?;
                    (layer.diff_id.0 == digest).then_some(layer)
                });
                Ok(layer.map(|layer| file_attributes(&layer)))
            }
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn read_layers(&self, cookie: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) {
        if !dots(node::FIXED_DIRECTORY, node::ROOT, cookie, each) {
            return;
        }
        // The cookie after a layer is its number plus one: numbers do not move when other layers come and go.
        for (number, layer) in self.layers().range(cookie..) {
            let hex = layer.diff_id.0.to_hex();
            let entry = DirEntry {
                name: hex.as_bytes(),
                node: *number,
                file_type: libc::DT_REG,
                next_cookie: number + 1,
            };
            if !each(entry) {
                return;
            }
        }
    }
}

fn file_attributes(layer: &Layer) -> Attributes {
    Attributes {
        node: node::of_layer(&layer.diff_id.0),
        kind: InodeKind::Regular,
        permissions: 0o444,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        nlink: 1,
        size: layer.source.plain_len(),
    }
}

impl Namespace for LayerDirectory {
    fn open_mode(&self) -> OpenMode {
        OpenMode::Direct
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        let found = self.find(parent, name)?;
        let lifetime = Lifetime::Brief;
        Ok(Entry { found, lifetime })
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        match node {
            node::ROOT | node::FIXED_DIRECTORY => Ok(Attributes::fixed_directory(node)),
            _ => Ok(file_attributes(&self.layer(node)?)),
        }
    }

    fn read_dir(
        &self,
        node: u64,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        match node {
            node::ROOT => fixed_root(DIRECTORY, cookie, each),
            node::FIXED_DIRECTORY => self.read_layers(cookie, each),
            _ => return Err(Errno::ENOTDIR),
        }
        Ok(())
    }

    fn read(&self, node: u64, file: Range<u64>) -> Result<Answer, Errno> {
        if matches!(node, node::ROOT | node::FIXED_DIRECTORY) {
            return Err(Errno::EISDIR);
        }
        let layer = self.layer(node)?;
        let end = file.end.min(layer.source.plain_len());
        if file.start >= end {
            return Ok(Answer::Ready(Bytes::new()));
        }
        Ok(read_layer(&layer, file.start..end, &self.failures))
    }

    fn statistics(&self) -> Statistics {
        let content_len = self.layers().values().map(|layer| layer.source.plain_len()).sum();
        Statistics { content_len }
    }
}

/// Reads a range of a layer: at once what is cached, else later. A failure becomes an errno and a line in the log.
pub(crate) fn read_layer(layer: &Layer, plain: Range<u64>, failures: &Arc<ReadFailures>) -> Answer {
    let cached = layer.source.read_cached(plain.clone());
    if let Some(bytes) = cached.and_then(|bytes| check_len(bytes, &plain).ok()) {
        return Answer::Ready(bytes);
    }
    let read = Arc::clone(&layer.source).read(plain.clone());
    let (diff_id, failures) = (layer.diff_id, Arc::clone(failures));
    let checked = async move {
        let result = read.await.and_then(|bytes| check_len(bytes, &plain));
        result.map_err(|error| failures.errno(diff_id, &plain, &error))
    };
    Answer::Later(checked.boxed())
}

/// Refuses an answer of the wrong length: the kernel would show the missing rest as zeros.
fn check_len(bytes: Bytes, plain: &Range<u64>) -> Result<Bytes, sluice_storage::Error> {
    let expected = plain.end - plain.start;
    if bytes.len() as u64 == expected {
        return Ok(bytes);
    }
    let message = format!("a read of {expected} plain bytes gave {}", bytes.len());
    Err(sluice_storage::Error::new(
        sluice_storage::ErrorKind::Corrupt,
        message,
    ))
}
