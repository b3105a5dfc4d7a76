//! Layers that other tools made lazy: eStargz and zstd:chunked, read as they are.
//!
//! Such a blob ends with a *table of contents* (TOC): a JSON document that lists the entries of the layer and says at which stored offset each
//! piece of a file begins, in a gzip member or a zstd frame of its own, and which digest it has. What it does not say is where in the tar the
//! bytes lie. So the layer gets a *synthetic plain layer*: the data of all files in the order in which it is stored, each file on a boundary
//! of 512 bytes, nothing else. Nobody ever sees it as a tar; a tree refers to it like to any plain layer, and every piece is a chunk that is
//! verified by its own digest. The name of a synthetic plain layer is derived from the digest of the TOC and is never a DiffID.
//!
//! - [`PinnedToc`] reads the annotations of a layer descriptor: which digest the TOC must have, and perhaps where it is. Without them a TOC is
//!   not used: nothing would tie what is shown to the manifest.
//! - [`find_toc`] finds the TOC by the footer of the blob where no annotation says where it is.
//! - [`Toc`] is a decoded TOC with the right digest, and [`Toc::layer_index`] makes the layer index of it.
//!
//! | | eStargz | zstd:chunked |
//! |---|---|---|
//! | TOC | last entry of the tar, `stargz.index.json`, in a gzip member of its own | zstd frame inside a skippable frame |
//! | TOC apart | the same member, as a layer of another image; the layer itself has none | – |
//! | footer | 51 or 47 bytes: an empty gzip member whose header tells the offset; 46 bytes when the TOC is apart | 40 or 64 bytes: offset, lengths, a magic |
//! | pinned by | digest of the JSON | digest of the stored TOC, of the JSON, or both |
//!
//! A TOC that breaks a rule is refused as a whole; the layer is still an ordinary layer then.

mod collect;
mod document;
mod entry;
mod footer;
mod layout;
mod pin;
#[cfg(test)]
mod tests;

pub use document::{ForeignLayer, Toc};
pub use footer::{FOOTER_LEN_MAX, find_toc};
pub use pin::PinnedToc;

use std::ops::Range;

/// Name of these formats in errors.
const FORMAT: &str = "TOC";

/// Which kind of blob it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TocKind {
    /// eStargz: gzip.
    Estargz,
    /// eStargz whose TOC is the only layer content of another image, and no file of the layer.
    EstargzApart,
    /// zstd:chunked, in any dialect.
    ZstdChunked,
}

/// Where a TOC lies in a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TocLocation {
    /// What the blob is.
    pub kind: TocKind,
    /// Its stored bytes: members of the gzip stream up to the footer, or one zstd frame. Of a TOC that lies apart, the footer.
    pub stored: Range<u64>,
    /// Length of the JSON where something says it.
    pub plain_len: Option<u64>,
}

impl TocLocation {
    /// Stored offset at which the data of the layer ends.
    fn data_end(&self) -> u64 {
        match self.kind {
            TocKind::Estargz | TocKind::EstargzApart => self.stored.start,
            TocKind::ZstdChunked => self.stored.start.saturating_sub(SKIPPABLE_HEADER_LEN),
        }
    }
}

/// Header of a zstd skippable frame in bytes: magic and length.
const SKIPPABLE_HEADER_LEN: u64 = 8;
