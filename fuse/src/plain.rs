//! Flat files of plain layers: what the `erofs` front end mounts image trees over.
//!
//! ```text
//! /plain/<64 hex digits of the DiffID>      read-only, direct I/O
//! ```
//!
//! A file is as long as its plain layer, rounded up with zeros to a whole block: a tar may end anywhere, but EROFS reads
//! whole blocks and fails at a short one.
//!
//! Layers come and go while the session lives. Removing one takes its name away at once; a mount that holds its file open
//! gets `ESTALE` for reads from then on, so a layer is removed after the last mount over it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use bytes::Bytes;
use futures_util::{FutureExt, TryFutureExt};
use nix::errno::Errno;
use sluice_format::erofs::{BLOCK_SIZE, InodeKind};
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
                lifetime: Lifetime::Brief,
            };
            if !each(entry) {
                return;
            }
        }
    }
}

impl LayerDirectory {
    /// A range of a file, whose plain bytes `read` gives.
    fn read_by(
        &self,
        node: u64,
        file: Range<u64>,
        read: impl FnOnce(&Layer, Range<u64>) -> Answer,
    ) -> Result<Answer, Errno> {
        if matches!(node, node::ROOT | node::FIXED_DIRECTORY) {
            return Err(Errno::EISDIR);
        }
        let layer = self.layer(node)?;
        let plain_len = layer.source.plain_len();
        let end = file.end.min(device_len(plain_len));
        let plain = file.start..end.min(plain_len);
        let padding = zeros(end.saturating_sub(plain_len.max(file.start)))?;
        if plain.is_empty() {
            return Ok(Answer::Ready(padding));
        }
        let answer = read(&layer, plain);
        Ok(if padding.is_empty() {
            answer
        } else {
            append(answer, padding)
        })
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
        size: device_len(layer.source.plain_len()),
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
        let read = |layer: &Layer, plain| read_layer(layer, plain, &self.failures);
        self.read_by(node, file, read)
    }

    fn read_ahead(&self, node: u64, file: Range<u64>) -> Result<Answer, Errno> {
        // What was evicted meanwhile is fetched as for any reader: a process ID of another namespace may be that of a program.
        let read = |layer: &Layer, plain: Range<u64>| {
            let cached = layer.source.read_unnoticed(plain.clone());
            let bytes = cached.and_then(|bytes| check_len(bytes, &plain).ok());
            bytes.map_or_else(|| read_layer(layer, plain, &self.failures), Answer::Ready)
        };
        self.read_by(node, file, read)
    }

    fn statistics(&self) -> Statistics {
        let content_len = self.layers().values().map(|layer| layer.source.plain_len()).sum();
        Statistics { content_len }
    }
}

/// Length of the file that stands for a plain layer.
pub(crate) fn device_len(plain_len: u64) -> u64 {
    plain_len.next_multiple_of(BLOCK_SIZE)
}

fn zeros(len: u64) -> Result<Bytes, Errno> {
    Ok(vec![0; usize::try_from(len).map_err(|_| Errno::EINVAL)?].into())
}

fn append(answer: Answer, padding: Bytes) -> Answer {
    let join = move |bytes: Bytes| [bytes, padding].concat().into();
    match answer {
        Answer::Ready(bytes) => Answer::Ready(join(bytes)),
        Answer::Later(bytes) => Answer::Later(bytes.map_ok(join).boxed()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PlainSource;

    /// Length that is no multiple of a block.
    const LEN: usize = 1000;

    #[derive(Debug)]
    struct Ones {
        cached: bool,
    }

    impl PlainSource for Ones {
        fn plain_len(&self) -> u64 {
            LEN as u64
        }

        fn read(
            self: Arc<Self>,
            plain: Range<u64>,
        ) -> futures_util::future::BoxFuture<'static, Result<Bytes, sluice_storage::Error>> {
            async move { Ok(vec![1; (plain.end - plain.start) as usize].into()) }.boxed()
        }

        fn read_cached(&self, plain: Range<u64>) -> Option<Bytes> {
            self.cached
                .then(|| vec![1; (plain.end - plain.start) as usize].into())
        }
    }

    fn directory(cached: bool) -> (LayerDirectory, u64) {
        let directory = LayerDirectory::new();
        let diff_id = DiffId(Digest::of(b"ones"));
        let source = Arc::new(Ones { cached });
        directory.insert(Layer { diff_id, source }).unwrap();
        (directory, node::of_layer(&diff_id.0))
    }

    fn read(directory: &LayerDirectory, node: u64, file: Range<u64>) -> Vec<u8> {
        match directory.read(node, file).unwrap() {
            Answer::Ready(bytes) => bytes.to_vec(),
            Answer::Later(bytes) => bytes.now_or_never().unwrap().unwrap().to_vec(),
        }
    }

    #[test]
    fn a_layer_that_ends_within_a_block_is_filled_with_zeros() {
        for cached in [true, false] {
            let (directory, node) = directory(cached);
            assert_eq!(directory.attributes(node).unwrap().size, 1024);
            let whole = [vec![1; LEN], vec![0; 24]].concat();
            for (file, expected) in [
                (0..1024, &whole[..]),
                (0..5000, &whole[..]),
                (990..1010, &whole[990..1010]),
                (1000..1024, &whole[1000..]),
                (1010..1011, &whole[1010..1011]),
                (0..1000, &whole[..1000]),
                (1024..2000, &[]),
                (5000..6000, &[]),
            ] {
                assert_eq!(read(&directory, node, file.clone()), expected, "{file:?}");
            }
        }
    }

    #[test]
    fn removed_layers_are_stale() {
        let (directory, node) = directory(true);
        let name = Digest::of(b"ones").to_hex();
        let find = || {
            directory
                .lookup(node::FIXED_DIRECTORY, name.as_bytes())
                .unwrap()
                .found
        };
        assert_eq!(find().map(|found| found.node), Some(node));
        directory.remove(DiffId(Digest::of(b"ones")));
        assert_eq!(find(), None);
        assert_eq!(directory.attributes(node), Err(Errno::ESTALE));
        assert_eq!(directory.read(node, 0..1).map(|_| ()), Err(Errno::ESTALE));
    }

    #[test]
    fn names_that_are_no_digest_are_not_found() {
        let (directory, _) = directory(true);
        for name in [&b"x"[..], b"", b"\xff", &[b'0'; 64]] {
            assert_eq!(directory.lookup(node::FIXED_DIRECTORY, name).unwrap().found, None);
        }
    }
}
