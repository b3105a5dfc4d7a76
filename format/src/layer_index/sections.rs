//! Contents of the chunk and stacking sections.
//!
//! The chunk table is stored by columns: lengths and gaps repeat from chunk to chunk and compress to almost nothing
//! beside each other, while the digests do not compress at all and would hide that if rows were stored.

use super::{FORMAT, Stacking};
use crate::chunk::{ChunkRef, ChunkTable};
use crate::compression::Codec;
use crate::gzip::{SparseWindow, encode_windows, parse_windows};
use crate::tree::DeferredLink;
use crate::{ChunkDigest, Digest, EntryName, FormatError, Limits};

/// Bytes of one chunk over all columns: plain length, stored gap, stored length, codec, digest.
const CHUNK_ROW_LEN: usize = 4 + 8 + 4 + 1 + Digest::LEN;

/// Columns in order: `plain_len: u32`, `stored_gap: u64` (bytes between the end of the chunk before and the start of this
/// one, modulo 2^64), `stored_len: u32`, `codec: u8`, `digest: [u8; 32]`. Little-endian, preceded by the count as `u64`.
pub(super) fn encode_chunks(table: &ChunkTable) -> Vec<u8> {
    let chunks = table.chunks();
    let mut out = Vec::with_capacity(8 + chunks.len() * CHUNK_ROW_LEN);
    out.extend_from_slice(&(chunks.len() as u64).to_le_bytes());
    chunks
        .iter()
        .for_each(|chunk| out.extend_from_slice(&chunk.plain_len.to_le_bytes()));
    let mut expected = 0;
    for chunk in chunks {
        out.extend_from_slice(&chunk.stored_off.wrapping_sub(expected).to_le_bytes());
        expected = chunk.stored_range().end;
    }
    chunks
        .iter()
        .for_each(|chunk| out.extend_from_slice(&chunk.stored_len.to_le_bytes()));
    out.extend(chunks.iter().map(|chunk| chunk.codec.number()));
    chunks
        .iter()
        .for_each(|chunk| out.extend_from_slice(chunk.digest.0.as_bytes()));
    out
}

/// `restarts` is the restart section, if there is one.
pub(super) fn parse_chunks(
    bytes: &[u8],
    restarts: Restarts,
    plain_len: u64,
    limits: &Limits,
) -> Result<ChunkTable, FormatError> {
    let mut cursor = Cursor {
        rest: bytes,
        section: "chunks",
    };
    let count = cursor.count("number of chunks in a layer", limits.chunks)?;
    if cursor.rest.len() != count.saturating_mul(CHUNK_ROW_LEN) {
        return Err(cursor.refuse("has another length than its count says"));
    }
    let plain_lens = cursor.take(count * 4)?;
    let gaps = cursor.take(count * 8)?;
    let stored_lens = cursor.take(count * 4)?;
    let codecs = cursor.take(count)?;
    let digests = cursor.take(count * Digest::LEN)?;
    let (mut plain_off, mut stored_end) = (0u64, 0u64);
    let mut restart = (0u32..).zip(restarts.bits);
    let mut next_restart = || {
        let next = restart.next().map(|(window, bits)| (bits, window));
        next.ok_or_else(|| FormatError::malformed(FORMAT, "section restarts", "has too few restart points"))
    };
    let mut chunks = Vec::with_capacity(count);
    let rows = plain_lens
        .as_chunks()
        .0
        .iter()
        .zip(gaps.as_chunks().0)
        .zip(stored_lens.as_chunks().0);
    for (((plain_len, gap), stored_len), (codec, digest)) in
        rows.zip(codecs.iter().zip(digests.as_chunks().0))
    {
        let chunk = ChunkRef {
            plain_off,
            plain_len: u32::from_le_bytes(*plain_len),
            stored_off: stored_end.wrapping_add(u64::from_le_bytes(*gap)),
            stored_len: u32::from_le_bytes(*stored_len),
            codec: Codec::from_number(*codec, &mut next_restart)?,
            digest: ChunkDigest(Digest::from_bytes(*digest)),
        };
        plain_off = plain_off.saturating_add(chunk.plain_len.into());
        stored_end = chunk.stored_off.wrapping_add(chunk.stored_len.into());
        chunks.push(chunk);
    }
    ChunkTable::with_windows(chunks, restarts.windows, plain_len, limits)
}

/// What the chunks of a gzip stream need besides the chunk table.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    bits: Vec<u8>,
    windows: Vec<SparseWindow>,
}

/// The bits of every [`Codec::Deflate`] chunk, a byte each, preceded by the count as `u64`; then their windows ([`encode_windows`]). `None` when
/// there is no such chunk.
pub(super) fn encode_restarts(table: &ChunkTable) -> Option<Vec<u8>> {
    let bits = table.chunks().iter().filter_map(|chunk| match chunk.codec {
        Codec::Deflate { bits, .. } => Some(bits),
        _ => None,
    });
    let bits: Vec<u8> = bits.collect();
    if bits.is_empty() {
        return None;
    }
    let mut out = (bits.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(&bits);
    out.extend_from_slice(&encode_windows(table.windows()));
    Some(out)
}

pub(super) fn parse_restarts(bytes: &[u8], limits: &Limits) -> Result<Restarts, FormatError> {
    let mut cursor = Cursor {
        rest: bytes,
        section: "restarts",
    };
    let count = cursor.count("number of restart points in a layer", limits.chunks)?;
    let bits = cursor.take(count)?.to_vec();
    let windows = parse_windows(cursor.rest, limits)?;
    match windows.len() == count {
        true => Ok(Restarts { bits, windows }),
        false => Err(cursor.refuse("has another number of windows than of restart points")),
    }
}

/// Counts as `u64`, then node ids as `u64`; then links, each as two paths: component count as `u16`, and per component
/// its length as `u8` and its bytes.
pub(super) fn encode_stacking(stacking: &Stacking) -> Result<Vec<u8>, FormatError> {
    let mut out = Vec::new();
    out.extend_from_slice(&(stacking.implied.len() as u64).to_le_bytes());
    stacking
        .implied
        .iter()
        .for_each(|nid| out.extend_from_slice(&nid.to_le_bytes()));
    out.extend_from_slice(&(stacking.deferred_links.len() as u64).to_le_bytes());
    for link in &stacking.deferred_links {
        encode_path(&link.path, &mut out)?;
        encode_path(&link.target, &mut out)?;
    }
    Ok(out)
}

fn encode_path(path: &[EntryName], out: &mut Vec<u8>) -> Result<(), FormatError> {
    let count = u16::try_from(path.len()).map_err(|_| FormatError::Limit {
        what: "number of components of a path",
        value: path.len() as u64,
        limit: u16::MAX.into(),
    })?;
    out.extend_from_slice(&count.to_le_bytes());
    for name in path {
        let name = name.as_bytes();
        out.push(name.len() as u8);
        out.extend_from_slice(name);
    }
    Ok(())
}

pub(super) fn parse_stacking(bytes: &[u8], limits: &Limits) -> Result<Stacking, FormatError> {
    let mut cursor = Cursor {
        rest: bytes,
        section: "stacking",
    };
    let entries = usize::try_from(limits.entries).unwrap_or(usize::MAX);
    let count = cursor.count("number of implied directories", entries)?;
    let nids = cursor.take(count.saturating_mul(8))?;
    let implied: Vec<u64> = nids
        .as_chunks()
        .0
        .iter()
        .map(|nid| u64::from_le_bytes(*nid))
        .collect();
    if !implied.is_sorted_by(|a, b| a < b) {
        return Err(cursor.refuse("implied directories are out of order"));
    }
    let count = cursor.count("number of deferred hard links", limits.deferred_links)?;
    let deferred_links = (0..count)
        .map(|_| {
            Ok(DeferredLink {
                path: cursor.path(limits)?,
                target: cursor.path(limits)?,
            })
        })
        .collect::<Result<_, FormatError>>()?;
    if !cursor.rest.is_empty() {
        return Err(cursor.refuse("goes on after its last record"));
    }
    Ok(Stacking {
        implied,
        deferred_links,
    })
}

struct Cursor<'a> {
    rest: &'a [u8],
    section: &'static str,
}

impl<'a> Cursor<'a> {
    fn refuse(&self, reason: &str) -> FormatError {
        FormatError::malformed(FORMAT, format!("section {}", self.section), reason)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| self.refuse("is cut short"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, FormatError> {
        let raw = self.take(8)?;
        let count = raw.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        FormatError::check_limit(what, count, limit as u64)?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn path(&mut self, limits: &Limits) -> Result<Vec<EntryName>, FormatError> {
        let raw = self.take(2)?;
        let count = raw
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        FormatError::check_limit(
            "number of components of a path",
            count as u64,
            limits.path_len as u64,
        )?;
        if count == 0 {
            return Err(self.refuse("holds an empty path"));
        }
        (0..count)
            .map(|_| {
                let len = usize::from(self.take(1)?[0]);
                EntryName::new(self.take(len)?)
            })
            .collect()
    }
}
