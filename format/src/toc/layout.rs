//! Pieces of files → synthetic plain layer.
//!
//! Files follow each other in the order of their first stored byte, so that what is read together is near each other as the tool that made the
//! blob has arranged it. Each begins on a block, since a tree can only refer to whole blocks; what is between the end of a file and the next
//! block are zeros that nobody stores. So are pieces of zeros inside a file, except that the middle of a long one is a hole of the file and
//! takes no room in the plain layer.
//!
//! The stored bytes of a piece end where the next member begins that another piece begins in. A piece that begins within a member is decoded
//! from the begin of that member, together with what else is in there.

use std::collections::HashMap;
use std::ops::Range;

use super::collect::{Collected, Piece, StoredPiece, TocFile};
use super::{FORMAT, TocKind, TocLocation};
use crate::compression::{Codec, MemberKind};
use crate::erofs::BLOCK_SIZE;
use crate::tree::{Extent, ExtentSource, FileContent};
use crate::{ChunkDigest, ChunkRef, ChunkTable, Digest, FormatError, Limits};

/// Device number of the plain layer in a layer tree.
const OWN_DEVICE: u16 = 1;

/// Holes begin and end at multiples of this, in bytes. A tree has an entry for each such part of a file with a hole, so that with a smaller one a
/// short TOC could ask for gigabytes of tree.
const HOLE_STEP: u64 = 64 << 10;

/// What headers, block tables and the end of one deflate block add to the stored bytes of a member at most, in bytes, besides an eighth of its
/// length. What lies between the last piece in a member and the next one that a piece begins in may be much longer.
const STORED_SLACK: u64 = 256 << 10;

/// Lays files out one after the other.
#[derive(Debug)]
pub(super) struct Layout {
    kind: MemberKind,
    /// Stored bytes of the members that pieces begin in, ascending.
    members: Vec<Range<u64>>,
    plain_off: u64,
    chunks: Vec<ChunkRef>,
    /// Digests of runs of zeros by length, as far as they were needed.
    zeros: HashMap<u64, ChunkDigest>,
}

impl Layout {
    /// The layout of all files of a TOC, which get their content.
    pub(super) fn of_files(collected: &mut Collected, location: &TocLocation) -> Result<Self, FormatError> {
        let mut files = std::mem::take(&mut collected.files);
        let members = members(&files, location)?;
        let mut layout = Self {
            kind: match location.kind {
                TocKind::Estargz | TocKind::EstargzApart => MemberKind::Gzip,
                TocKind::ZstdChunked => MemberKind::Zstd,
            },
            members,
            plain_off: 0,
            chunks: Vec::new(),
            zeros: HashMap::new(),
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
                Some(stored) => self.add(piece, stored),
                None => {
                    let end = piece.file_off + piece.len;
                    let hole = piece.file_off.next_multiple_of(HOLE_STEP)..end - end % HOLE_STEP;
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

    fn add(&mut self, piece: &Piece, stored: StoredPiece) {
        let at = self
            .members
            .binary_search_by_key(&stored.member_off, |member| member.start);
        let end = at.map_or(stored.member_off, |at| self.members[at].end);
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

    /// Adds zeros as chunks whose lengths are few, as each length needs a digest: powers of two, and less than a block at last.
    fn add_zeros(&mut self, len: u64) {
        let mut missing = len;
        while missing > 0 {
            let part = match missing {
                0..BLOCK_SIZE => missing,
                _ => 1 << missing.ilog2(),
            };
            let zeros = || ChunkDigest(Digest::of(&vec![0; part as usize]));
            let digest = *self.zeros.entry(part).or_insert_with(zeros);
            let stored_off = self.chunks.last().map_or(0, |last| last.stored_range().end);
            self.chunks.push(ChunkRef {
                plain_off: self.plain_off,
                plain_len: short(part),
                stored_off,
                stored_len: 0,
                codec: Codec::Zeros,
                digest,
            });
            self.plain_off += part;
            missing -= part;
        }
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

/// The stored bytes of members that pieces begin in. Refuses pieces that are not in the data, or overlap.
fn members(files: &[TocFile], location: &TocLocation) -> Result<Vec<Range<u64>>, FormatError> {
    let refuse = |off: u64, reason: &str| {
        Err(FormatError::malformed(
            FORMAT,
            format!("stored offset {off}"),
            reason,
        ))
    };
    let pieces = files.iter().flat_map(|file| &file.pieces);
    let places = pieces.filter_map(|piece| {
        let stored = piece.stored?;
        Some((stored.member_off, stored.inner_off, piece.len))
    });
    let mut places: Vec<(u64, u64, u64)> = places.collect();
    places.sort_unstable();
    let data_end = location.data_end();
    let mut members: Vec<Range<u64>> = Vec::new();
    let mut decoded_end = 0;
    for (off, inner_off, len) in places {
        if off >= data_end {
            return refuse(off, "a piece begins behind the data of the layer");
        }
        let is_new = members.last().is_none_or(|member| member.start != off);
        if !is_new && inner_off < decoded_end {
            return refuse(off, "two pieces overlap");
        }
        decoded_end = inner_off + len;
        let end = off.saturating_add(decoded_end + decoded_end / 8 + STORED_SLACK);
        match members.last_mut() {
            Some(member) if !is_new => member.end = end,
            _ => members.push(off..end),
        }
    }
    let mut next = data_end;
    for member in members.iter_mut().rev() {
        member.end = member.end.min(next);
        next = member.start;
    }
    Ok(members)
}
