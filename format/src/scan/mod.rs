//! Tar stream → layer tree and chunk cuts.
//!
//! [`LayerScanner`] takes the plain bytes of a layer in pieces of any length and keeps none of them but headers, extension
//! records and the literals of odd sparse files; data is counted, not copied. Each complete header goes three ways: its
//! span to the [`crate::cut::Cutter`], its length to the state machine here, its meaning to the tree builder.
//!
//! Which bytes are a header is decided as by Go's archive/tar, the reader inside containerd, and the tree follows
//! containerd's unpack; where they are laxer than the tar formats (a missing end marker, missing padding at the end, a
//! size on entries without data) so is the scanner, and what they refuse is refused. Known differences: old GNU sparse
//! files and hard links to lower layers are taken; a relative name that climbs above the root, and owners or device
//! numbers that the kernel would truncate, are refused by name. containerd also sets the times of all directories once
//! more at the end, by name, which fails or hits something else when the layer has replaced a directory; here a time
//! stays with its directory.

mod build;
mod entry;
mod header;
mod path;
mod pax;
mod refusal;
mod sparse;
mod xattr;

use crate::cut::{Cutter, EntrySpan, name_hash};
use crate::name::Printable;
use crate::{FormatError, LayerTree, Limits, NodeId};

pub(crate) use build::TreeBuilder;
pub(crate) use entry::{Entry, EntryKind, Extensions};
pub(crate) use header::{BLOCK_LEN, Block, Header};
pub(crate) use pax::bound_time;
pub(crate) use refusal::Refusal;

use entry::{ExtensionKind, is_zero};
use header::BLOCK;
use sparse::{GnuMap, MapText, Segment, SparseMap, SparsePlan, SparseRecords};

/// What a whole layer turned out to be.
#[derive(Debug)]
pub struct ScannedLayer {
    /// Its entries.
    pub layer: LayerTree,
    /// Its plain length.
    pub plain_len: u64,
    /// Things that containerd's unpack also ignores, each in a line for the user.
    pub warnings: Vec<String>,
}

/// An entry whose sparse map is still being collected.
#[derive(Debug)]
struct Unmapped {
    entry: Entry,
    real_size: i64,
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    /// A header block.
    Header,
    /// The block after a zero block, which must be zero too.
    SecondZero,
    /// Data of an extension header of which so many bytes are missing.
    Extension {
        kind: ExtensionKind,
        missing: u64,
        padding: u64,
    },
    /// A block that continues the map of a GNU sparse entry.
    GnuMap { entry: Box<Entry>, map: GnuMap },
    /// A block of the map of a PAX 1.0 sparse entry; `missing` stored bytes follow, the map included.
    MapText {
        unmapped: Box<Unmapped>,
        text: MapText,
        missing: u64,
    },
    /// Data of an entry, of which so many bytes are missing.
    Data { missing: u64, padding: u64 },
    /// Bytes up to the next block.
    Padding { missing: u64 },
    /// After the end of the archive.
    Rest,
}

/// Reads the plain bytes of a layer in pieces of any length.
#[derive(Debug)]
pub struct LayerScanner {
    limits: Limits,
    cutter: Cutter,
    builder: TreeBuilder,
    state: State,
    /// Plain offset of the next byte.
    offset: u64,
    /// The block being collected, and how much of it is there.
    block: Block,
    filled: usize,
    /// Data of the extension header being collected.
    extension: Vec<u8>,
    extensions: Extensions,
    /// Where the first header of the current entry begins, once one was read.
    entry_begin: Option<u64>,
    /// Path of the last entry, for messages.
    last_name: Vec<u8>,
    entries: u64,
    literals: u64,
    /// The sparse file whose data is passing.
    filling: Option<(NodeId, SparsePlan)>,
    chunks: u64,
}

impl LayerScanner {
    /// A scanner that cuts at about `chunk_size` bytes, a power of two from 16 KiB to 4 MiB.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when `chunk_size` is something else.
    pub fn new(chunk_size: u32, limits: Limits) -> Result<Self, FormatError> {
        Ok(Self {
            cutter: Cutter::new(chunk_size)?,
            builder: TreeBuilder::new(limits.clone()),
            limits,
            state: State::Header,
            offset: 0,
            block: [0; BLOCK_LEN],
            filled: 0,
            extension: Vec::new(),
            extensions: Extensions::default(),
            entry_begin: None,
            last_name: Vec::new(),
            entries: 0,
            literals: 0,
            filling: None,
            chunks: 0,
        })
    }

    /// Takes the next bytes; appends to `ends` the plain offsets at which chunks end, as far as they are decided.
    ///
    /// An end is never beyond the bytes taken so far, and lags behind them by at most 1.25 times the chunk size.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] naming the entry or the offset when the bytes are no tar or break a rule of containerd's
    /// unpack; [`FormatError::Limit`] when a bound is passed. The scanner is of no use afterwards.
    pub fn push(&mut self, mut plain: &[u8], ends: &mut Vec<u64>) -> Result<(), FormatError> {
        let known = ends.len();
        let plain_len = self.offset.saturating_add(plain.len() as u64);
        FormatError::check_limit(
            "plain length of the layer",
            plain_len,
            self.limits.layer_plain_len,
        )?;
        while !plain.is_empty() {
            let used = self.step(plain, ends)?;
            plain = plain.get(used..).unwrap_or_default();
        }
        self.cutter.advance(self.offset, ends);
        self.count_chunks(ends.len() - known)
    }

    /// After the last byte: the last chunk ends at the plain length.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when the tar ends inside a header or inside data.
    pub fn finish(mut self, ends: &mut Vec<u64>) -> Result<ScannedLayer, FormatError> {
        let known = ends.len();
        let ends_well = match &self.state {
            State::Header | State::SecondZero => self.filled == 0,
            State::Padding { .. } | State::Rest => true,
            State::Extension { .. } | State::GnuMap { .. } | State::MapText { .. } | State::Data { .. } => {
                false
            }
        };
        if !ends_well {
            let place = format!("byte {}", self.offset);
            let reason = format!(
                "the layer is cut off after entry \"{}\" began",
                Printable(&self.last_name)
            );
            return Err(FormatError::malformed("tar", place, reason));
        }
        self.cutter.clone().finish(self.offset, ends);
        self.count_chunks(ends.len() - known)?;
        let (layer, warnings) = self.builder.finish();
        Ok(ScannedLayer {
            layer,
            plain_len: self.offset,
            warnings,
        })
    }

    fn count_chunks(&mut self, more: usize) -> Result<(), FormatError> {
        self.chunks += more as u64;
        FormatError::check_limit("number of chunks", self.chunks, self.limits.chunks as u64)
    }

    /// Takes at least one byte and says how many.
    fn step(&mut self, plain: &[u8], ends: &mut Vec<u64>) -> Result<usize, FormatError> {
        match self.state {
            State::Rest => {
                self.offset += plain.len() as u64;
                Ok(plain.len())
            }
            State::Padding { missing } => {
                let part = at_most(missing, plain).len();
                self.offset += part as u64;
                self.pad(missing - part as u64);
                Ok(part)
            }
            State::Data { missing, padding } => Ok(self.data(missing, padding, plain)),
            State::Extension {
                kind,
                missing,
                padding,
            } => self.extension(kind, missing, padding, plain),
            _ => self.collect_block(plain, ends),
        }
    }

    fn collect_block(&mut self, plain: &[u8], ends: &mut Vec<u64>) -> Result<usize, FormatError> {
        let part = at_most((BLOCK_LEN - self.filled) as u64, plain);
        let filled = self.filled + part.len();
        if let Some(space) = self.block.get_mut(self.filled..filled) {
            space.copy_from_slice(part);
        }
        self.filled = filled;
        self.offset += part.len() as u64;
        if self.filled == BLOCK_LEN {
            self.filled = 0;
            let block = self.block;
            self.block_complete(&block, ends)?;
        }
        Ok(part.len())
    }

    /// Goes past data of an entry.
    fn data(&mut self, missing: u64, padding: u64, plain: &[u8]) -> usize {
        let part = at_most(missing, plain);
        if let Some((node, plan)) = &mut self.filling {
            plan.take(self.offset, part, self.builder.node_mut(*node));
        }
        self.offset += part.len() as u64;
        self.expect_data(missing - part.len() as u64, padding);
        part.len()
    }

    fn extension(
        &mut self,
        kind: ExtensionKind,
        missing: u64,
        padding: u64,
        plain: &[u8],
    ) -> Result<usize, FormatError> {
        let part = at_most(missing, plain);
        self.extension.extend_from_slice(part);
        self.offset += part.len() as u64;
        self.expect_extension(kind, missing - part.len() as u64, padding)?;
        Ok(part.len())
    }

    fn expect_data(&mut self, missing: u64, padding: u64) {
        if missing == 0 {
            self.filling = None;
            self.pad(padding);
        } else {
            self.state = State::Data { missing, padding };
        }
    }

    fn expect_extension(
        &mut self,
        kind: ExtensionKind,
        missing: u64,
        padding: u64,
    ) -> Result<(), FormatError> {
        if missing > 0 {
            self.state = State::Extension {
                kind,
                missing,
                padding,
            };
            return Ok(());
        }
        let added = self.extensions.add(kind, &self.extension, &self.limits);
        self.extension.clear();
        self.pad(padding);
        added.map_err(|refusal| refusal.at(format!("byte {}", self.offset)))
    }

    fn pad(&mut self, missing: u64) {
        self.state = if missing == 0 {
            State::Header
        } else {
            State::Padding { missing }
        };
    }

    fn block_complete(&mut self, block: &Block, ends: &mut Vec<u64>) -> Result<(), FormatError> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::SecondZero if is_zero(block) => {
                self.cutter.end_of_archive(self.offset, ends);
                self.state = State::Rest;
                Ok(())
            }
            State::SecondZero => Err(self.refuse_block("a zero block is followed by something else".into())),
            State::GnuMap { entry, mut map } => {
                let more = map
                    .extend(block, &self.limits)
                    .map_err(|refusal| self.refuse_entry(refusal))?;
                self.gnu_sparse(entry, map, more, ends)
            }
            State::MapText {
                unmapped,
                text,
                missing,
            } => self.map_text(block, unmapped, text, missing - BLOCK),
            _ if is_zero(block) => {
                self.state = State::SecondZero;
                Ok(())
            }
            _ => self.header(block, ends),
        }
    }

    fn header(&mut self, block: &Block, ends: &mut Vec<u64>) -> Result<(), FormatError> {
        self.entry_begin.get_or_insert(self.offset - BLOCK);
        let header = Header::parse(block).map_err(|refusal| self.refuse_block(refusal))?;
        if let Some(kind) = ExtensionKind::of(header.flag) {
            let len = u64::try_from(header.size).unwrap_or_default();
            FormatError::check_limit(
                "bytes of an extension header",
                len,
                self.limits.tar_extension_bytes,
            )?;
            return self.expect_extension(kind, len, padding(len));
        }
        self.entries += 1;
        FormatError::check_limit("number of entries", self.entries, self.limits.entries)?;
        self.last_name.clone_from(&header.name);
        let gnu = header.gnu;
        let extensions = std::mem::take(&mut self.extensions);
        let mut entry = Entry::new(header, extensions).map_err(|refusal| self.refuse_entry(refusal))?;
        self.last_name.clone_from(&entry.name);
        let data_end = self.offset.saturating_add(entry.stored_len);
        FormatError::check_limit("plain length of the layer", data_end, self.limits.layer_plain_len)?;
        match (entry.kind, entry.sparse.take()) {
            (EntryKind::GnuSparse, _) if !gnu => {
                Err(self.refuse_entry("sparse entry has no GNU header".into()))
            }
            (EntryKind::GnuSparse, _) => {
                let parsed = GnuMap::parse(block, &self.limits);
                let (map, more) = parsed.map_err(|refusal| self.refuse_entry(refusal))?;
                self.gnu_sparse(Box::new(entry), map, more, ends)
            }
            (_, None) => self.contiguous(entry, ends),
            (EntryKind::Regular, Some(sparse)) => self.pax_sparse(entry, sparse, ends),
            _ => Err(self.refuse_entry("only a regular file can be sparse".into())),
        }
    }

    fn contiguous(&mut self, entry: Entry, ends: &mut Vec<u64>) -> Result<(), FormatError> {
        self.announce(&entry, ends)?;
        let missing = entry.stored_len;
        let plan = SparsePlan::contiguous(missing, self.offset);
        self.apply(entry, plan, missing)
    }

    fn gnu_sparse(
        &mut self,
        entry: Box<Entry>,
        map: GnuMap,
        more: bool,
        ends: &mut Vec<u64>,
    ) -> Result<(), FormatError> {
        if more {
            self.state = State::GnuMap { entry, map };
            return Ok(());
        }
        self.announce(&entry, ends)?;
        let stored = entry.stored_len;
        self.mapped(*entry, map.real_size, &map.segments, stored)
    }

    fn pax_sparse(
        &mut self,
        entry: Entry,
        sparse: SparseRecords,
        ends: &mut Vec<u64>,
    ) -> Result<(), FormatError> {
        self.announce(&entry, ends)?;
        let stored = entry.stored_len;
        let real_size = sparse
            .real_size
            .unwrap_or_else(|| i64::try_from(stored).unwrap_or(i64::MAX));
        match sparse.map {
            SparseMap::Known(segments) => self.mapped(entry, real_size, &segments, stored),
            SparseMap::InData => {
                let unmapped = Box::new(Unmapped { entry, real_size });
                self.expect_map(unmapped, MapText::default(), stored)
            }
        }
    }

    fn expect_map(
        &mut self,
        unmapped: Box<Unmapped>,
        text: MapText,
        missing: u64,
    ) -> Result<(), FormatError> {
        if missing < BLOCK {
            return Err(self.refuse_entry("sparse map is cut off".into()));
        }
        self.state = State::MapText {
            unmapped,
            text,
            missing,
        };
        Ok(())
    }

    fn map_text(
        &mut self,
        block: &Block,
        unmapped: Box<Unmapped>,
        mut text: MapText,
        missing: u64,
    ) -> Result<(), FormatError> {
        match text
            .push(block, &self.limits)
            .map_err(|refusal| self.refuse_entry(refusal))?
        {
            Some(segments) => self.mapped(unmapped.entry, unmapped.real_size, &segments, missing),
            None => self.expect_map(unmapped, text, missing),
        }
    }

    /// A sparse file whose map is known; `stored` bytes of data begin here.
    fn mapped(&mut self, entry: Entry, size: i64, map: &[Segment], stored: u64) -> Result<(), FormatError> {
        let size = u64::try_from(size).map_err(|_| self.refuse_entry("size is negative".into()))?;
        FormatError::check_limit("size of a sparse file", size, self.limits.layer_plain_len)?;
        let plan = SparsePlan::new(size, map, self.offset, stored, &mut self.literals, &self.limits);
        let plan = plan.map_err(|refusal| self.refuse_entry(refusal))?;
        self.apply(entry, plan, stored)
    }

    /// Tells the cutter where the entry lies; its data begins here.
    fn announce(&mut self, entry: &Entry, ends: &mut Vec<u64>) -> Result<(), FormatError> {
        let path = path::clean(&entry.name, &self.limits).map_err(|refusal| self.refuse_entry(refusal))?;
        let span = EntrySpan {
            begin: self.entry_begin.take().unwrap_or(self.offset),
            data_off: self.offset,
            data_len: entry.stored_len,
            name_hash: name_hash(path),
        };
        self.cutter.entry(span, ends);
        Ok(())
    }

    /// Puts the entry into the tree; `missing` bytes of its data follow.
    fn apply(&mut self, entry: Entry, mut plan: SparsePlan, missing: u64) -> Result<(), FormatError> {
        let padding = padding(missing);
        let content = std::mem::take(&mut plan.content);
        let applied = self.builder.apply(entry, content);
        let node = applied.map_err(|refusal| self.refuse_entry(refusal))?;
        self.filling = node.map(|node| (node, plan));
        self.expect_data(missing, padding);
        Ok(())
    }

    fn refuse_block(&self, refusal: Refusal) -> FormatError {
        refusal.at(format!("byte {}", self.offset - BLOCK))
    }

    fn refuse_entry(&self, refusal: Refusal) -> FormatError {
        refusal.at(format!("\"{}\"", Printable(&self.last_name)))
    }
}

/// The first `max` bytes of `plain`, or all of them.
fn at_most(max: u64, plain: &[u8]) -> &[u8] {
    match usize::try_from(max) {
        Ok(max) => plain.get(..max).unwrap_or(plain),
        Err(_) => plain,
    }
}

/// Bytes between data of this length and the next block.
const fn padding(len: u64) -> u64 {
    len.next_multiple_of(BLOCK) - len
}

#[cfg(test)]
mod tests;
