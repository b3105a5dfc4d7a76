//! Pieces of files → synthetic plain layer.
//!
//! Files follow each other in the order of their first stored byte, so that what is read together is near each other as the tool that made the
//! blob has arranged it. Each begins on a block, since a tree can only refer to whole blocks; what is between the end of a file and the next
//! block are zeros that nobody stores. So are pieces of zeros inside a file, except that whole blocks of them are a hole of the file and take
//! no room in the plain layer.
//!
//! The stored bytes of a piece end where the next member begins that another piece begins in. A piece that begins within a member is decoded
//! from the begin of that member, together with what else is in there.

use super::collect::{Collected, Piece, StoredPiece, TocFile};
use super::{FORMAT, TocKind, TocLocation};
use crate::compression::{Codec, MemberKind};
use crate::erofs::BLOCK_SIZE;
use crate::tree::{Extent, ExtentSource, FileContent};
use crate::{ChunkDigest, ChunkRef, ChunkTable, Digest, FormatError, Limits};

/// Device number of the plain layer in a layer tree.
const OWN_DEVICE: u16 = 1;

/// A run of zeros is always shorter than this: less than a block before a hole or behind it, or both without a hole between them.
const ZEROS_MAX: usize = 2 * BLOCK_SIZE as usize;

/// What headers, block tables and the end of one deflate block add to the stored bytes of a piece at most, in bytes.
const STORED_SLACK: u64 = 256 << 10;

/// Lays files out one after the other.
#[derive(Debug)]
pub(super) struct Layout {
    kind: MemberKind,
    /// Stored offsets at which members begin, ascending, and the end of the data.
    member_offs: Vec<u64>,
    plain_off: u64,
    chunks: Vec<ChunkRef>,
    /// Digests of runs of zeros by length, as far as they were needed.
    zeros: Vec<Option<ChunkDigest>>,
}

impl Layout {
    /// The layout of all files of a TOC, which get their content.
    pub(super) fn of_files(collected: &mut Collected, location: &TocLocation) -> Result<Self, FormatError> {
        let mut files = std::mem::take(&mut collected.files);
        let member_offs = member_offs(&files, location)?;
        let mut layout = Self {
            kind: match location.kind {
                TocKind::Estargz => MemberKind::Gzip,
                TocKind::ZstdChunked => MemberKind::Zstd,
            },
            member_offs,
            plain_off: 0,
            chunks: Vec::new(),
            zeros: vec![None; ZEROS_MAX],
        };
        files.sort_by_key(first_stored);
        for file in &files {
            let content = layout.place(file);
            collected.fill(file.node, content);
        }
        Ok(layout)
    }

    /// Places bytes that are not in any piece: `bytes` are what the member at `stored` decodes to behind its first `skip` bytes.
    pub(super) fn place_bytes(&mut self, bytes: &[u8], skip: u32, location: &TocLocation) -> FileContent {
        /// Length of a chunk.
        const CHUNK_LEN: usize = 1 << 20;
        let start = self.plain_off;
        let stored_len = location.stored.end - location.stored.start;
        let mut skip = skip;
        for part in bytes.chunks(CHUNK_LEN) {
            let plain_len = short(part.len() as u64);
            self.chunks.push(ChunkRef {
                plain_off: self.plain_off,
                plain_len,
                stored_off: location.stored.start,
                stored_len: short(stored_len),
                codec: Codec::Within {
                    stream: self.kind,
                    skip,
                },
                digest: ChunkDigest(Digest::of(part)),
            });
            skip = skip.saturating_add(plain_len);
            self.plain_off += part.len() as u64;
        }
        self.pad();
        let size = bytes.len() as u64;
        let extents = extent(0, start, size).into_iter().collect();
        FileContent { size, extents }
    }

    /// The chunk table.
    pub(super) fn finish(self, limits: &Limits) -> Result<ChunkTable, FormatError> {
        ChunkTable::new(self.chunks, self.plain_off, limits)
    }

    fn place(&mut self, file: &TocFile) -> FileContent {
        let mut extents = Vec::new();
        // Where the present extent begins in the file and in the plain layer.
        let mut run = (0, self.plain_off);
        for piece in &file.pieces {
            match piece.stored {
                Some(stored) => self.add(piece, stored, file.end_off),
                None => {
                    let end = piece.file_off + piece.len;
                    let hole = piece.file_off.next_multiple_of(BLOCK_SIZE)..end - end % BLOCK_SIZE;
                    if hole.is_empty() {
                        self.add_zeros(piece.len);
                        continue;
                    }
                    self.add_zeros(hole.start - piece.file_off);
                    extents.extend(extent(run.0, run.1, hole.start - run.0));
                    run = (hole.end, self.plain_off);
                    self.add_zeros(end - hole.end);
                }
            }
        }
        extents.extend(extent(run.0, run.1, file.size - run.0));
        self.pad();
        FileContent {
            size: file.size,
            extents,
        }
    }

    fn add(&mut self, piece: &Piece, stored: StoredPiece, file_end: Option<u64>) {
        let next = self.member_offs.partition_point(|off| *off <= stored.member_off);
        let mut end = self.member_offs.get(next).copied().unwrap_or(stored.member_off);
        let decoded_len = stored.inner_off + piece.len;
        let most = decoded_len + decoded_len / 8 + STORED_SLACK;
        end = end.min(stored.member_off.saturating_add(most));
        if let Some(file_end) = file_end.filter(|file_end| *file_end > stored.member_off) {
            end = end.min(file_end);
        }
        self.chunks.push(ChunkRef {
            plain_off: self.plain_off,
            plain_len: short(piece.len),
            stored_off: stored.member_off,
            stored_len: short(end - stored.member_off),
            codec: Codec::Within {
                stream: self.kind,
                skip: short(stored.inner_off),
            },
            digest: stored.digest,
        });
        self.plain_off += piece.len;
    }

    fn pad(&mut self) {
        self.add_zeros(self.plain_off.next_multiple_of(BLOCK_SIZE) - self.plain_off);
    }

    fn add_zeros(&mut self, len: u64) {
        if len == 0 {
            return;
        }
        let at = usize::try_from(len).unwrap_or(ZEROS_MAX);
        let digest = || ChunkDigest(Digest::of(&vec![0; at]));
        let digest = match self.zeros.get_mut(at) {
            Some(known) => *known.get_or_insert_with(digest),
            None => digest(),
        };
        let stored_off = self.chunks.last().map_or(0, |last| last.stored_range().end);
        self.chunks.push(ChunkRef {
            plain_off: self.plain_off,
            plain_len: short(len),
            stored_off,
            stored_len: 0,
            codec: Codec::Zeros,
            digest,
        });
        self.plain_off += len;
    }
}

/// Lengths were checked against limits far below; a longer one is refused by the chunk table.
fn short(len: u64) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn extent(file_off: u64, plain_off: u64, len: u64) -> Option<Extent> {
    let device = OWN_DEVICE;
    (len > 0).then_some(Extent {
        file_off,
        len,
        source: ExtentSource::Plain { device, plain_off },
    })
}

/// Where a file is stored: member, and place in it.
fn first_stored(file: &TocFile) -> (u64, u64) {
    let stored = file.pieces.iter().find_map(|piece| piece.stored);
    stored.map_or((0, 0), |stored| (stored.member_off, stored.inner_off))
}

/// Stored offsets at which members begin, and the end of the data. Refuses pieces that are not in the data, or overlap.
fn member_offs(files: &[TocFile], location: &TocLocation) -> Result<Vec<u64>, FormatError> {
    let refuse = |off: u64, reason: &str| {
        Err(FormatError::malformed(
            FORMAT,
            format!("stored offset {off}"),
            reason,
        ))
    };
    let data_end = location.data_end();
    let pieces = files.iter().flat_map(|file| &file.pieces);
    let places = pieces.filter_map(|piece| {
        let stored = piece.stored?;
        Some((stored.member_off, stored.inner_off, piece.len))
    });
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    let last = places.last().map_or(0, |place| place.0);
    if !places.is_empty() && last >= data_end {
        return refuse(last, "a piece begins behind the data of the layer");
    }
    for two in places.windows(2) {
        if let [(off, inner, len), (next_off, next_inner, _)] = two
            && off == next_off
            && inner + len > *next_inner
        {
            return refuse(*off, "two pieces overlap");
        }
    }
    let mut offs: Vec<u64> = places.into_iter().map(|place| place.0).collect();
    offs.dedup();
    offs.push(data_end);
    Ok(offs)
}
