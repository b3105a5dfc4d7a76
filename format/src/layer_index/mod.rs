//! The layer index: the tree and the chunk table of one layer, as bytes that travel with it.
//!
//! An index is a header that names the layer and lists sections with their digests, then the sections, each a zstd
//! frame. In a converted blob the index is the payload of a zstd skippable frame behind the last chunk, followed by a
//! footer in a second one, so that the whole blob stays an ordinary zstd stream that other tools read. The index is
//! trusted by its digest, which a layer annotation ([`crate::artifact::INDEX_ANNOTATION`]) pins. Byte tables:
//! `docs/format.md`.

mod footer;
mod header;
mod sections;

use std::sync::Arc;

pub use footer::{FOOTER_LEN, IndexLocation, frame_index, parse_footer};

use crate::compression::Codec;
use crate::erofs::{self, DeviceSlot};
use crate::tree::{DeferredLink, LayerTree, NodeKind};
use crate::{ChunkRef, ChunkTable, DiffId, Digest, FormatError, Limits};
use header::{Header, SectionKind};

/// Name of this format in errors.
const FORMAT: &str = "layer index";

/// Tree and chunk table of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    /// The layer this describes.
    pub diff_id: DiffId,
    /// Where the stored bytes of every chunk lie. Shared: who only reads chunks does without the tree, which is much larger.
    pub chunks: Arc<ChunkTable>,
    tree_image: Vec<u8>,
    stacking: Stacking,
    is_synthetic: bool,
}

/// What an overlayfs layer cannot express and only a merge uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stacking {
    /// EROFS node ids of directories that the tar only implied, ascending.
    implied: Vec<u64>,
    deferred_links: Vec<DeferredLink>,
}

impl LayerIndex {
    /// The index of a scanned layer.
    ///
    /// # Errors
    /// [`FormatError`] when the tree does not fit an EROFS image.
    pub fn new(
        diff_id: DiffId,
        chunks: impl Into<Arc<ChunkTable>>,
        layer: &LayerTree,
    ) -> Result<Self, FormatError> {
        let chunks = chunks.into();
        let device = DeviceSlot {
            diff_id,
            plain_len: chunks.plain_len(),
        };
        let written = erofs::write_image(&layer.tree, &[device])?;
        let mut implied: Vec<u64> = (0u32..)
            .zip(layer.tree.nodes())
            .filter(|(_, node)| matches!(&node.kind, NodeKind::Directory(directory) if directory.implied))
            .filter_map(|(id, _)| written.nid(crate::NodeId(id)))
            .collect();
        implied.sort_unstable();
        let stacking = Stacking {
            implied,
            deferred_links: layer.deferred_links.clone(),
        };
        Ok(Self {
            diff_id,
            chunks,
            tree_image: written.bytes,
            stacking,
            is_synthetic: false,
        })
    }

    /// The index of a plain layer that exists nowhere as a tar: files laid out by [`crate::toc`]. `identity` takes the place of its DiffID.
    pub(crate) fn synthetic(
        identity: DiffId,
        chunks: ChunkTable,
        layer: &LayerTree,
    ) -> Result<Self, FormatError> {
        let index = Self::new(identity, chunks, layer)?;
        Ok(Self {
            is_synthetic: true,
            ..index
        })
    }

    /// Whether the plain layer is a synthetic one: its name is no digest of its bytes, so that digests of chunks are the only check.
    pub fn is_synthetic(&self) -> bool {
        self.is_synthetic
    }

    /// Whether a chunk cannot be fetched by itself.
    pub fn is_streamed(&self) -> bool {
        let mut chunks = self.chunks.chunks().iter();
        chunks.any(|chunk| chunk.codec == Codec::Streamed)
    }

    /// The same layer in a blob that holds its plain bytes as they are.
    ///
    /// # Errors
    /// None for an index that was parsed or made with the same limits.
    pub fn stored_plain(&self, limits: &Limits) -> Result<Self, FormatError> {
        let stored = |chunk: &ChunkRef| ChunkRef {
            stored_off: chunk.plain_off,
            stored_len: chunk.plain_len,
            codec: Codec::Stored,
            ..*chunk
        };
        let chunks = self.chunks.chunks().iter().map(stored).collect();
        Ok(Self {
            chunks: Arc::new(ChunkTable::new(chunks, self.plain_len(), limits)?),
            ..self.clone()
        })
    }

    /// Length of the plain layer in bytes.
    pub fn plain_len(&self) -> u64 {
        self.chunks.plain_len()
    }

    /// The bytes of the index. Equal indexes give equal bytes.
    ///
    /// # Errors
    /// [`FormatError`] when a section passes its limit; [`FormatError::Unsupported`] for the index of a synthetic plain layer, which is made
    /// anew from the table of contents that it comes from.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        if self.is_synthetic {
            return Err(FormatError::Unsupported {
                format: FORMAT,
                reason: "a synthetic plain layer has no index that is written".into(),
            });
        }
        let mut sections = vec![
            (SectionKind::Tree, self.tree_image.clone()),
            (SectionKind::Chunks, sections::encode_chunks(&self.chunks)),
            (SectionKind::Stacking, sections::encode_stacking(&self.stacking)?),
        ];
        if let Some(restarts) = sections::encode_restarts(&self.chunks) {
            sections.push((SectionKind::Restarts, restarts));
        }
        header::assemble(self.diff_id, self.plain_len(), &sections)
    }

    /// Reads an index whose digest was verified by the caller, or is about to be: nothing here trusts a byte.
    ///
    /// # Errors
    /// [`FormatError::Malformed`], [`FormatError::Corrupt`] or [`FormatError::Limit`] for bad bytes,
    /// [`FormatError::Unsupported`] for an index of a newer Sluice.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, FormatError> {
        let index = Self::parse_local(bytes, limits)?;
        match index.is_streamed() {
            true => Err(FormatError::malformed(
                FORMAT,
                "section chunks",
                "a chunk has no stored bytes of its own",
            )),
            false => Ok(index),
        }
    }

    /// [`LayerIndex::parse`] of an index that this host has made: its chunks may be [`Codec::Streamed`].
    ///
    /// # Errors
    /// As [`LayerIndex::parse`].
    pub fn parse_local(bytes: &[u8], limits: &Limits) -> Result<Self, FormatError> {
        FormatError::check_limit(
            "stored length of a layer index",
            bytes.len() as u64,
            limits.index_stored_len,
        )?;
        let header = Header::parse(bytes, limits)?;
        let chunks = header.load_section(bytes, SectionKind::Chunks)?;
        let restarts = match header.has_restarts {
            true => sections::parse_restarts(&header.load_section(bytes, SectionKind::Restarts)?, limits)?,
            false => sections::Restarts::default(),
        };
        let chunks = sections::parse_chunks(&chunks, restarts, header.plain_len, limits)?;
        let stacking = header.load_section(bytes, SectionKind::Stacking)?;
        let stacking = sections::parse_stacking(&stacking, limits)?;
        let tree_image = header.load_section(bytes, SectionKind::Tree)?;
        let index = Self {
            diff_id: header.diff_id,
            chunks: Arc::new(chunks),
            tree_image,
            stacking,
            is_synthetic: false,
        };
        index.check_device(limits)?;
        Ok(index)
    }

    /// [`LayerIndex::parse`] of bytes that must have the digest `expected`.
    ///
    /// # Errors
    /// As [`LayerIndex::parse`], and [`FormatError::Corrupt`] when the digest is another one.
    pub fn parse_verified(bytes: &[u8], expected: &Digest, limits: &Limits) -> Result<Self, FormatError> {
        let found = Digest::of(bytes);
        if found != *expected {
            return Err(FormatError::Corrupt {
                what: FORMAT.into(),
                expected: *expected,
                found,
            });
        }
        Self::parse(bytes, limits)
    }

    /// The tree of this layer alone as an EROFS metadata image; device 1 is the plain layer.
    pub fn tree_image(&self) -> &[u8] {
        &self.tree_image
    }

    /// The tree, ready to be merged.
    ///
    /// # Errors
    /// [`FormatError`] when the tree image breaks a rule or passes a limit.
    pub fn layer_tree(&self, limits: &Limits) -> Result<LayerTree, FormatError> {
        let (mut tree, nids) = erofs::Image::open(&self.tree_image[..], limits)?.to_tree(limits)?;
        for (id, nid) in (0u32..).zip(&nids) {
            if self.stacking.implied.binary_search(nid).is_ok()
                && let Some(directory) = tree.directory_mut(crate::NodeId(id))
            {
                directory.implied = true;
            }
        }
        Ok(LayerTree {
            tree,
            deferred_links: self.stacking.deferred_links.clone(),
        })
    }

    fn check_device(&self, limits: &Limits) -> Result<(), FormatError> {
        let devices = erofs::Image::open(&self.tree_image[..], limits)?.devices();
        let blocks = self.plain_len().div_ceil(erofs::BLOCK_SIZE);
        match devices[..] {
            [(diff_id, len)] if diff_id == self.diff_id && len.div_ceil(erofs::BLOCK_SIZE) == blocks => {
                Ok(())
            }
            _ => Err(FormatError::malformed(
                FORMAT,
                "tree",
                "the tree's device is not this layer",
            )),
        }
    }
}

#[cfg(test)]
mod tests;
