//! A TOC as a whole: stored bytes → JSON with the right digest → layer index.

use super::collect::{Collected, Collector};
use super::entry::read_entries;
use super::layout::Layout;
use super::{FORMAT, PinnedToc, TocKind, TocLocation};
use crate::compression::{MemberKind, decode_frame, decode_within};
use crate::scan::{BLOCK_LEN, Block, Entry, Extensions, Header};
use crate::{DiffId, Digest, FormatError, Hasher, LayerIndex, Limits};

/// Name of the tar entry that holds the TOC of eStargz.
const ESTARGZ_NAME: &[u8] = b"stargz.index.json";

/// What the name of a synthetic plain layer is derived from, before kind and digest of its TOC. Names the layout: one that places bytes
/// differently gets another text.
const IDENTITY: &[u8] = b"sluice synthetic plain layer, layout 1\n";

/// A table of contents with the digest that its manifest pins.
#[derive(Debug)]
pub struct Toc {
    location: TocLocation,
    json: Vec<u8>,
    /// eStargz: the header of the tar entry that holds the TOC.
    header: Option<Block>,
}

/// What a TOC makes of a layer.
#[derive(Debug)]
pub struct ForeignLayer {
    /// Tree and chunk table; [`LayerIndex::is_synthetic`].
    pub index: LayerIndex,
    /// Things that containerd's unpack also ignores, each in a line for the user.
    pub warnings: Vec<String>,
}

impl Toc {
    /// Decodes and verifies the stored bytes at `location`, or those that lie apart.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] when a digest is not the pinned one; [`FormatError::Malformed`] or [`FormatError::Limit`] when the bytes
    /// cannot be decoded to what they should be.
    pub fn open(
        stored: &[u8],
        location: TocLocation,
        pinned: &PinnedToc,
        limits: &Limits,
    ) -> Result<Self, FormatError> {
        let stored_len = stored.len() as u64;
        FormatError::check_limit("stored length of a TOC", stored_len, limits.toc_stored_len)?;
        pinned.verify_stored(stored)?;
        let (header, json) = match location.kind {
            TocKind::Estargz => decode_estargz(stored, limits).map(|(header, json)| (Some(header), json))?,
            TocKind::EstargzApart => (None, decode_estargz(stored, limits)?.1),
            TocKind::ZstdChunked => (None, decode_zstd(stored, location.plain_len, limits)?),
        };
        pinned.verify_json(&json)?;
        Ok(Self {
            location,
            json,
            header,
        })
    }

    /// What takes the place of the DiffID for the synthetic plain layer.
    pub fn identity(&self) -> DiffId {
        let mut hasher = Hasher::new();
        hasher.update(IDENTITY);
        hasher.update(match self.location.kind {
            TocKind::Estargz => b"estargz\n",
            TocKind::EstargzApart => b"estargz, apart\n",
            TocKind::ZstdChunked => b"zstd:chunked\n",
        });
        hasher.update(Digest::of(&self.json).as_bytes());
        DiffId(hasher.finish())
    }

    /// The layer index. Computes for some tenths of a second for a hundred thousand entries.
    ///
    /// # Errors
    /// [`FormatError`] naming the entry that breaks a rule of the format or of containerd's unpack.
    pub fn layer_index(&self, limits: &Limits) -> Result<ForeignLayer, FormatError> {
        let mut collector = Collector::new(limits);
        read_entries(&self.json, |entry| collector.take(entry))?;
        let mut collected = collector.finish()?;
        let mut layout = Layout::of_files(&mut collected, &self.location)?;
        if let Some(header) = &self.header {
            self.add_itself(header, &mut collected, &mut layout)?;
        }
        let chunks = layout.finish(limits)?;
        let (layer, warnings) = collected.finish();
        let index = LayerIndex::synthetic(self.identity(), chunks, &layer)?;
        Ok(ForeignLayer { index, warnings })
    }

    /// The TOC of eStargz is a file of the layer.
    fn add_itself(
        &self,
        header: &Block,
        collected: &mut Collected,
        layout: &mut Layout,
    ) -> Result<(), FormatError> {
        let content = layout.place_bytes(&self.json, BLOCK_LEN as u32, &self.location);
        if let Some(node) = collected.add_file(toc_entry(header)?)? {
            collected.fill(node, content);
        }
        Ok(())
    }
}

fn toc_entry(header: &Block) -> Result<Entry, FormatError> {
    let parsed = Header::parse(header).and_then(|header| Entry::new(header, Extensions::default()));
    parsed.map_err(|refusal| refusal.in_format(FORMAT, "tar header"))
}

/// Header and JSON of the tar entry in a gzip member.
fn decode_estargz(stored: &[u8], limits: &Limits) -> Result<(Block, Vec<u8>), FormatError> {
    let refuse = |reason: String| FormatError::malformed(FORMAT, "gzip member", reason);
    let header = decode_within(MemberKind::Gzip, stored, 0, BLOCK_LEN as u32).map_err(refuse)?;
    let header: Block = header
        .try_into()
        .map_err(|_| refuse("has no tar header".into()))?;
    let entry = toc_entry(&header)?;
    if entry.name != ESTARGZ_NAME {
        return Err(refuse("holds another tar entry than stargz.index.json".into()));
    }
    FormatError::check_limit("length of a TOC", entry.stored_len, limits.toc_len.into())?;
    let len = u32::try_from(entry.stored_len).unwrap_or(u32::MAX);
    let json = decode_within(MemberKind::Gzip, stored, BLOCK_LEN as u32, len).map_err(refuse)?;
    Ok((header, json))
}

fn decode_zstd(stored: &[u8], plain_len: Option<u64>, limits: &Limits) -> Result<Vec<u8>, FormatError> {
    let plain_len = plain_len.unwrap_or_default();
    FormatError::check_limit("length of a TOC", plain_len, limits.toc_len.into())?;
    decode_frame(stored, plain_len).map_err(|reason| FormatError::malformed(FORMAT, "zstd frame", reason))
}
