//! Browsing an image without mounting it.
//!
//! The layer indexes alone give the whole tree; only the content of a file that is printed is fetched, by ranges, as a
//! mounted image would fetch it. Paths are taken from the root of the image, symbolic links are followed within it as in
//! a chroot.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use sluice_format::inode::Device;
use sluice_format::name::Printable;
use sluice_format::tree::{Extent, ExtentSource};
use sluice_format::{Limits, NodeId, NodeKind, Tree};
use sluice_storage::{
    ByteStream, Counters, Error as StorageError, ErrorKind, Fetcher, LazyImage, PlainLayer, Platform,
    load_lazy_image,
};
use tokio::task::spawn_blocking;

use crate::error::joined;
use crate::{Error, Source};

/// Symbolic links followed in one path: the kernel's own bound.
const LINKS_MAX: usize = 40;

/// Longest piece in which a file is read, in bytes.
const PIECE_LEN: u64 = 1 << 20;

/// An image with layer indexes, opened for reading.
#[derive(Debug)]
pub struct ImageBrowser {
    image: LazyImage,
    layers: Vec<Arc<PlainLayer>>,
    tree: Arc<Tree>,
    link_counts: Vec<u32>,
}

/// Kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A file as `ls -l` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileStat {
    /// Path from the root of the image, with a leading slash.
    #[serde(serialize_with = "lossy")]
    pub path: Vec<u8>,
    /// Kind.
    pub kind: FileKind,
    /// Low 12 bits of `st_mode`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of content: seconds after the epoch.
    pub mtime_secs: u64,
    /// Nanoseconds of that time.
    pub mtime_nanos: u32,
    /// Length of a regular file or of a link's target in bytes, else 0.
    pub size: u64,
    /// Number of names; of a directory, 2 and one more per subdirectory.
    pub link_count: u32,
    /// Target of a symbolic link.
    #[serde(serialize_with = "lossy_option", skip_serializing_if = "Option::is_none")]
    pub link: Option<Vec<u8>>,
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
    /// Names of the extended attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<String>,
}

impl ImageBrowser {
    /// Loads the layer indexes of the image for `platform` and merges them.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] naming a layer without index; what hinders reading.
    pub async fn open(source: &Source, platform: &Platform, limits: &Limits) -> Result<Self, Error> {
        let image = load_lazy_image(source.shared_repository(), source.name(), platform, limits).await?;
        let limits = limits.clone();
        let merging = spawn_blocking(move || {
            let tree = image.merged_tree(&limits)?;
            let link_counts = link_counts(&tree);
            Ok((image, tree, link_counts))
        });
        let (image, tree, link_counts) = joined(merging.await)?;
        let fetcher = Fetcher::new(Arc::new(Counters::default()));
        let layers = image
            .layers
            .iter()
            .map(|layer| PlainLayer::new(layer, None, &fetcher))
            .collect();
        Ok(Self {
            image,
            layers,
            tree: Arc::new(tree),
            link_counts,
        })
    }

    /// The image.
    pub fn image(&self) -> &LazyImage {
        &self.image
    }

    /// The file at `path`, a symbolic link itself when the path ends in one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none.
    pub fn stat(&self, path: &[u8]) -> Result<FileStat, Error> {
        let (node, path) = self.resolve(path, false)?;
        Ok(self.stat_of(node, path))
    }

    /// The content of the directory at `path`, sorted by name, or with `recursive` everything below it; of another file,
    /// itself.
    ///
    /// # Errors
    /// As [`ImageBrowser::stat`].
    pub fn list(&self, path: &[u8], recursive: bool) -> Result<Vec<FileStat>, Error> {
        let (node, path) = self.resolve(path, true)?;
        if self.tree.directory(node).is_none() {
            return Ok(vec![self.stat_of(node, path)]);
        }
        let mut listed = Vec::new();
        // Directories still to be listed, the next one last.
        let mut pending = vec![(node, path)];
        while let Some((node, path)) = pending.pop() {
            let Some(directory) = self.tree.directory(node) else {
                continue;
            };
            let mut below = Vec::new();
            for (name, child) in &directory.entries {
                let path = join(&path, name.as_bytes());
                listed.push(self.stat_of(*child, path.clone()));
                below.push((*child, path));
            }
            if recursive {
                pending.extend(below.into_iter().rev());
            }
        }
        Ok(listed)
    }

    /// The content of the regular file at `path`, verified, in pieces.
    ///
    /// # Errors
    /// As [`ImageBrowser::stat`]; [`ErrorKind::InvalidInput`] when it is no regular file.
    pub fn cat(&self, path: &[u8]) -> Result<ByteStream, Error> {
        let (node, path) = self.resolve(path, true)?;
        let NodeKind::Regular(content) = &self.tree.node(node).kind else {
            return Err(refused(ErrorKind::InvalidInput, &path, "is not a regular file"));
        };
        let pieces = pieces(content.size, &content.extents);
        let layers = self.layers.clone();
        let read = stream::iter(pieces).then(move |piece| {
            let layers = layers.clone();
            async move { read_piece(&layers, piece).await }
        });
        Ok(read.boxed())
    }

    /// The node at `path` and the path without links.
    fn resolve(&self, path: &[u8], follow_last: bool) -> Result<(NodeId, Vec<u8>), Error> {
        let missing = |path: &[u8]| refused(ErrorKind::NotFound, path, "is not in the image");
        let mut rest: Vec<Vec<u8>> = components(path);
        let mut nodes = vec![(NodeId::ROOT, Vec::new())];
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                if nodes.len() > 1 {
                    nodes.pop();
                }
                continue;
            }
            let (parent, parent_path) = nodes.last().cloned().unwrap_or((NodeId::ROOT, Vec::new()));
            let child = self.tree.child(parent, &name).ok_or_else(|| missing(path))?;
            match &self.tree.node(child).kind {
                NodeKind::Symlink(target) if follow_last || !rest.is_empty() => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(refused(
                            ErrorKind::InvalidInput,
                            path,
                            "has too many symbolic links",
                        ));
                    }
                    if target.starts_with(b"/") {
                        nodes.truncate(1);
                    }
                    rest.extend(components(target));
                }
                _ => nodes.push((child, join(&parent_path, &name))),
            }
        }
        let (node, found) = nodes.pop().ok_or_else(|| missing(path))?;
        Ok((node, if found.is_empty() { b"/".to_vec() } else { found }))
    }

    fn stat_of(&self, id: NodeId, path: Vec<u8>) -> FileStat {
        let node = self.tree.node(id);
        let device = |device: Device| Some((device.major, device.minor));
        let (kind, size, link, device) = match &node.kind {
            NodeKind::Directory(_) => (FileKind::Directory, 0, None, None),
            NodeKind::Regular(content) => (FileKind::Regular, content.size, None, None),
            NodeKind::Symlink(target) => (FileKind::Symlink, target.len() as u64, Some(target.clone()), None),
            NodeKind::CharDevice(number) => (FileKind::CharDevice, 0, None, device(*number)),
            NodeKind::Whiteout => (FileKind::CharDevice, 0, None, device(Device::default())),
            NodeKind::BlockDevice(number) => (FileKind::BlockDevice, 0, None, device(*number)),
            NodeKind::Fifo => (FileKind::Fifo, 0, None, None),
            NodeKind::Socket => (FileKind::Socket, 0, None, None),
        };
        FileStat {
            path,
            kind,
            permissions: node.attributes.permissions,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime_secs: node.attributes.mtime.secs,
            mtime_nanos: node.attributes.mtime.nanos,
            size,
            link_count: self.link_counts[id.0 as usize],
            link,
            device,
            xattrs: node
                .attributes
                .xattrs
                .keys()
                .map(|name| Printable(name).to_string())
                .collect(),
        }
    }
}

/// Names a path is made of, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .rev()
        .collect()
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let parent = parent.strip_suffix(b"/").unwrap_or(parent);
    [parent, name].join(&b'/')
}

fn refused(kind: ErrorKind, path: &[u8], reason: &str) -> Error {
    StorageError::new(kind, format!("{} {reason}", Printable(path))).into()
}

fn link_counts(tree: &Tree) -> Vec<u32> {
    let mut counts = vec![0; tree.nodes().len()];
    counts[NodeId::ROOT.0 as usize] = 2;
    for (at, node) in tree.nodes().iter().enumerate() {
        let NodeKind::Directory(directory) = &node.kind else {
            continue;
        };
        for child in directory.entries.values() {
            if tree.directory(*child).is_some() {
                counts[child.0 as usize] += 2;
                counts[at] += 1;
            } else {
                counts[child.0 as usize] += 1;
            }
        }
    }
    counts
}

/// A run of a file, short enough to be read at once.
enum Piece {
    Zeros(u64),
    Plain { layer: usize, plain_off: u64, len: u64 },
    Literal(Bytes),
}

fn pieces(size: u64, extents: &[Extent]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut off = 0;
    for extent in extents {
        push_split(&mut pieces, extent.file_off.saturating_sub(off), |_, len| {
            Piece::Zeros(len)
        });
        match &extent.source {
            ExtentSource::Plain { device, plain_off } => {
                push_split(&mut pieces, extent.len, |at, len| Piece::Plain {
                    layer: usize::from(*device).wrapping_sub(1),
                    plain_off: plain_off + at,
                    len,
                })
            }
            ExtentSource::Literal(bytes) => pieces.push(Piece::Literal(Bytes::copy_from_slice(bytes))),
        }
        off = extent.file_off + extent.len;
    }
    push_split(&mut pieces, size.saturating_sub(off), |_, len| Piece::Zeros(len));
    pieces
}

fn push_split(pieces: &mut Vec<Piece>, len: u64, piece: impl Fn(u64, u64) -> Piece) {
    let mut at = 0;
    while at < len {
        let part = PIECE_LEN.min(len - at);
        pieces.push(piece(at, part));
        at += part;
    }
}

async fn read_piece(layers: &[Arc<PlainLayer>], piece: Piece) -> Result<Bytes, StorageError> {
    match piece {
        // A piece is at most PIECE_LEN long.
        Piece::Zeros(len) => Ok(Bytes::from(vec![0; len as usize])),
        Piece::Literal(bytes) => Ok(bytes),
        Piece::Plain {
            layer,
            plain_off,
            len,
        } => {
            let layer = layers.get(layer).ok_or_else(|| {
                StorageError::new(
                    ErrorKind::Corrupt,
                    "a file lies in a layer that the image does not have",
                )
            })?;
            layer.read(plain_off..plain_off + len).await
        }
    }
}

fn lossy<S: serde::Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&String::from_utf8_lossy(bytes))
}

fn lossy_option<S: serde::Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => lossy(bytes, to),
        None => to.serialize_none(),
    }
}
