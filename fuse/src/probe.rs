//! Whether this host can mount image trees with EROFS: tried, not guessed from a version.
//!
//! A tiny image with one file in one plain layer is written to the directory where image trees will lie, mounted without a
//! place in the directory tree, and its file is read and compared. The mount vanishes with its descriptor.

use std::fs;
use std::path::Path;

use sluice_format::erofs::{BLOCK_SIZE, DeviceSlot, write_image};
use sluice_format::inode::Attributes;
use sluice_format::tree::{Extent, ExtentSource, FileContent};
use sluice_format::{DiffId, Digest, EntryName, Node, NodeId, NodeKind, Tree};

use crate::{Error, erofs_mount};

/// Name of the file in the tiny image.
const FILE: &str = "probe";

/// What the tiny plain layer holds: one block of this byte.
const BYTE: u8 = 0x5a;

/// What the kernel can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// EROFS mounts straight from files work.
    pub file_backed: bool,
    /// Why not, in words for a person.
    pub reason: Option<String>,
}

/// Tries a file-backed EROFS mount whose image lies in `directory`.
pub fn probe(directory: &Path) -> Support {
    match attempt(directory) {
        Ok(()) => Support {
            file_backed: true,
            reason: None,
        },
        Err(error) => Support {
            file_backed: false,
            reason: Some(describe(&error)),
        },
    }
}

fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn attempt(directory: &Path) -> Result<(), Error> {
    let name = |what| directory.join(format!(".probe-{}-{what}", std::process::id()));
    let (tree_file, device) = (name("tree"), name("plain"));
    let result = mount_and_read(&tree_file, &device);
    for file in [tree_file, device] {
        if let Err(error) = fs::remove_file(&file) {
            tracing::debug!(file = %file.display(), %error, "removing a probe file");
        }
    }
    result
}

fn mount_and_read(tree_file: &Path, device: &Path) -> Result<(), Error> {
    let content = vec![BYTE; usize::try_from(BLOCK_SIZE).unwrap_or_default()];
    let image = tiny_image().map_err(|source| Error::Tree {
        path: tree_file.to_owned(),
        source,
    })?;
    for (path, bytes) in [(tree_file, &image), (device, &content)] {
        fs::write(path, bytes).map_err(|e| Error::path("writing", path, e))?;
    }
    let mount = erofs_mount::create(tree_file, &[device.to_owned()], None)?;
    let read =
        erofs_mount::read_file(&mount, FILE).map_err(|e| Error::io("reading from an EROFS mount", e))?;
    if read == content {
        Ok(())
    } else {
        Err(Error::Unsupported("an EROFS mount gave wrong bytes".to_owned()))
    }
}

fn tiny_image() -> Result<Vec<u8>, sluice_format::FormatError> {
    let mut tree = Tree::new();
    let extent = Extent {
        file_off: 0,
        len: BLOCK_SIZE,
        source: ExtentSource::Plain {
            device: 1,
            plain_off: 0,
        },
    };
    let content = FileContent {
        size: BLOCK_SIZE,
        extents: vec![extent],
    };
    let node = tree.add(Node {
        kind: NodeKind::Regular(content),
        attributes: Attributes::default(),
    });
    if let Some(root) = tree.directory_mut(NodeId::ROOT) {
        root.entries.insert(EntryName::new(FILE.as_bytes())?, node);
    }
    let slot = DeviceSlot {
        diff_id: DiffId(Digest::of(&[BYTE])),
        plain_len: BLOCK_SIZE,
    };
    Ok(write_image(&tree, &[slot])?.bytes)
}
