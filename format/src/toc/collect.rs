//! Entries of a TOC → tree, and pieces of files.
//!
//! Entries are in the order of the tar, so they go to the same builder as those of a tar and follow the same rules. Files are empty in the tree
//! until all pieces are known and the [`layout`](super::layout) gives each its place.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::FORMAT;
use super::entry::RawEntry;
use crate::date::parse_rfc3339;
use crate::inode::Timestamp;
use crate::name::Printable;
use crate::scan::{Entry, EntryKind, Refusal, TreeBuilder, bound_time};
use crate::tree::FileContent;
use crate::{ChunkDigest, FormatError, LayerTree, Limits, NodeId};

/// Type of pieces that are zero, whatever is stored.
const ZEROS: &str = "zeros";

/// What Go writes in place of bytes of a name that are not UTF-8.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// A piece of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) file_off: u64,
    /// Not 0.
    pub(super) len: u64,
    /// Where its bytes are; `None` when they are zero.
    pub(super) stored: Option<StoredPiece>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct StoredPiece {
    /// Stored offset of the member that it begins in.
    pub(super) member_off: u64,
    /// Offset in what the member decodes to.
    pub(super) inner_off: u64,
    pub(super) digest: ChunkDigest,
}

/// A regular file with data. Its pieces follow each other from its first byte to its last.
#[derive(Clone, Debug)]
pub(super) struct TocFile {
    pub(super) node: NodeId,
    pub(super) size: u64,
    pub(super) pieces: Vec<Piece>,
}

/// A file some of whose pieces are still to come.
#[derive(Debug)]
struct OpenFile {
    name: String,
    /// `None` for what becomes no file: a whiteout with data.
    node: Option<NodeId>,
    next_off: u64,
    file: TocFile,
}

/// Takes the entries of a TOC.
#[derive(Debug)]
pub(super) struct Collector {
    builder: TreeBuilder,
    limits: Limits,
    files: Vec<TocFile>,
    open: Option<OpenFile>,
    entries: u64,
    pieces: usize,
    /// Length of all files together.
    file_bytes: u64,
}

/// What the entries of a TOC say.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) builder: TreeBuilder,
    pub(super) files: Vec<TocFile>,
}

impl Collected {
    /// Gives a file its content.
    pub(super) fn fill(&mut self, node: NodeId, content: FileContent) {
        self.builder.node_mut(node).kind = crate::NodeKind::Regular(content);
    }

    /// Adds a file that the TOC does not list, because it is the TOC. `None` when it becomes no file.
    pub(super) fn add_file(&mut self, entry: Entry) -> Result<Option<NodeId>, FormatError> {
        let name = Printable(&entry.name).to_string();
        let applied = self.builder.apply(entry, FileContent::default());
        applied.map_err(|refusal| refusal.in_format(FORMAT, format!("\"{name}\"")))
    }

    pub(super) fn finish(self) -> (LayerTree, Vec<String>) {
        self.builder.finish()
    }
}

impl Collector {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            builder: TreeBuilder::new(limits.clone()),
            limits: limits.clone(),
            files: Vec::new(),
            open: None,
            entries: 0,
            pieces: 0,
            file_bytes: 0,
        }
    }

    /// Takes the next entry.
    pub(super) fn take(&mut self, raw: RawEntry<'_>) -> Result<(), FormatError> {
        let place = format!("\"{}\"", Printable(raw.name.as_bytes()));
        self.take_entry(raw)
            .map_err(|refusal| refusal.in_format(FORMAT, place))
    }

    /// After the last entry.
    pub(super) fn finish(mut self) -> Result<Collected, FormatError> {
        let closed = self.close();
        closed.map_err(|refusal| refusal.in_format(FORMAT, "its end"))?;
        Ok(Collected {
            builder: self.builder,
            files: self.files,
        })
    }

    fn take_entry(&mut self, raw: RawEntry<'_>) -> Result<(), Refusal> {
        if raw.kind == "chunk" {
            return self.go_on(&raw);
        }
        self.close()?;
        self.entries += 1;
        FormatError::check_limit("number of entries", self.entries, self.limits.entries)?;
        if raw.name.contains(REPLACEMENT) || raw.link_name.contains(REPLACEMENT) {
            return Err("its name is not UTF-8, so that the TOC does not tell it".into());
        }
        let kind = kind_of(&raw.kind)?;
        self.file_bytes = self.file_bytes.saturating_add(raw.size);
        FormatError::check_limit("size of all files", self.file_bytes, self.limits.layer_plain_len)?;
        let node = self.builder.apply(entry(&raw, kind)?, FileContent::default())?;
        if kind == EntryKind::Regular && raw.size > 0 {
            self.begin(&raw, node)?;
        }
        Ok(())
    }

    fn begin(&mut self, raw: &RawEntry<'_>, node: Option<NodeId>) -> Result<(), Refusal> {
        if raw.chunk_offset != 0 {
            return Err("its first piece does not begin at its first byte".into());
        }
        let file = TocFile {
            node: node.unwrap_or(NodeId::ROOT),
            size: raw.size,
            pieces: Vec::new(),
        };
        self.open = Some(OpenFile {
            name: raw.name.clone().into_owned(),
            node,
            next_off: 0,
            file,
        });
        self.add_piece(raw)
    }

    fn go_on(&mut self, raw: &RawEntry<'_>) -> Result<(), Refusal> {
        let open = self.open.as_ref().filter(|open| open.name == raw.name);
        match open {
            Some(open) if open.next_off == raw.chunk_offset => self.add_piece(raw),
            Some(open) => Err(format!(
                "a piece begins at byte {} of the file, the one before ends at {}",
                raw.chunk_offset, open.next_off
            )
            .into()),
            None => Err("a piece belongs to no file".into()),
        }
    }

    fn add_piece(&mut self, raw: &RawEntry<'_>) -> Result<(), Refusal> {
        let Some(open) = &mut self.open else {
            return Err("a piece belongs to no file".into());
        };
        let missing = open.file.size - open.next_off;
        let len = match raw.chunk_size {
            0 => missing,
            len => len,
        };
        if len == 0 || len > missing {
            return Err(
                format!("a piece of {len} bytes begins {missing} bytes before the end of the file").into(),
            );
        }
        self.pieces += 1;
        FormatError::check_limit("number of pieces", self.pieces as u64, self.limits.chunks as u64)?;
        let stored = match raw.chunk_type.as_ref() {
            ZEROS => None,
            "" => Some(StoredPiece {
                member_off: raw.offset,
                inner_off: raw.inner_offset,
                digest: piece_digest(raw, len == open.file.size)?,
            }),
            other => {
                return Err(
                    format!("pieces of type \"{}\" are not known", Printable(other.as_bytes())).into(),
                );
            }
        };
        if let Some(stored) = stored {
            let end = stored.inner_off.saturating_add(len);
            let limit = self.limits.chunk_plain_len.into();
            FormatError::check_limit("decoded length up to the end of a piece", end, limit)?;
        }
        open.file.pieces.push(Piece {
            file_off: open.next_off,
            len,
            stored,
        });
        open.next_off += len;
        Ok(())
    }

    /// Ends the file whose pieces were coming.
    fn close(&mut self) -> Result<(), Refusal> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        if open.next_off != open.file.size {
            let name = Printable(open.name.as_bytes());
            return Err(format!(
                "the pieces of \"{name}\" end at byte {} of {}",
                open.next_off, open.file.size
            )
            .into());
        }
        if open.node.is_some() {
            self.files.push(open.file);
        }
        Ok(())
    }
}

/// The digest of a piece. A file in one piece may have only one of its own.
fn piece_digest(raw: &RawEntry<'_>, is_whole: bool) -> Result<ChunkDigest, Refusal> {
    let text = match raw.chunk_digest.as_ref() {
        "" if is_whole => raw.digest.as_ref(),
        own => own,
    };
    if text.is_empty() {
        return Err("a piece has no digest".into());
    }
    Ok(ChunkDigest(text.parse().map_err(Refusal::from)?))
}

fn kind_of(kind: &str) -> Result<EntryKind, Refusal> {
    Ok(match kind {
        "reg" => EntryKind::Regular,
        "dir" => EntryKind::Directory,
        "symlink" => EntryKind::Symlink,
        "hardlink" => EntryKind::HardLink,
        "char" => EntryKind::CharDevice,
        "block" => EntryKind::BlockDevice,
        "fifo" => EntryKind::Fifo,
        other => return Err(format!("type \"{}\" is not known", Printable(other.as_bytes())).into()),
    })
}

/// The entry as a tar would have it.
fn entry(raw: &RawEntry<'_>, kind: EntryKind) -> Result<Entry, Refusal> {
    Ok(Entry {
        name: raw.name.as_bytes().to_vec(),
        link: raw.link_name.as_bytes().to_vec(),
        kind,
        stored_len: 0,
        mode: raw.mode,
        uid: raw.uid,
        gid: raw.gid,
        mtime: mtime(raw)?,
        major: raw.dev_major,
        minor: raw.dev_minor,
        xattrs: xattrs(raw)?,
        sparse: None,
    })
}

fn mtime(raw: &RawEntry<'_>) -> Result<Timestamp, Refusal> {
    let text = match raw.modtime.as_deref() {
        None | Some("") => return Ok(Timestamp::default()),
        Some(text) => text,
    };
    let (secs, nanos) =
        parse_rfc3339(text).ok_or_else(|| format!("\"{}\" is not a time", Printable(text.as_bytes())))?;
    Ok(bound_time(secs, nanos.into()))
}

fn xattrs(raw: &RawEntry<'_>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Refusal> {
    let decode = |(name, value): &(String, String)| match STANDARD.decode(value) {
        Ok(value) => Ok((name.clone().into_bytes(), value)),
        Err(_) => {
            let name = Printable(name.as_bytes()).to_string();
            Err(format!("the value of extended attribute \"{name}\" is not base64").into())
        }
    };
    raw.xattrs.iter().map(decode).collect()
}
