//! Sparse files: from a map of data segments to extents of a plain layer.
//!
//! A tar stores the segments of a sparse file one behind the other. Where a segment has the same position within a
//! 512-byte block in the file and in the tar, its whole blocks are mapped in place. What is left, the parts of blocks that
//! straddle segments, is composed into literal extents of whole file blocks, filled while the data passes by. GNU tar
//! aligns its segments, so literals are empty for the tars seen in practice.

use std::collections::VecDeque;

use super::header::{BLOCK, BLOCK_LEN, Block, Field, number};
use super::pax::decimal;
use super::refusal::Refusal;
use crate::tree::{Extent, ExtentSource, FileContent};
use crate::{FormatError, Limits, Node, NodeKind};

/// Number of the plain layer as a device in a layer tree.
const LAYER_DEVICE: u16 = 1;

/// Longest decimal number with its newline in a sparse map that is stored as data.
const MAP_LINE_MAX: usize = 21;

/// Map entries in a GNU header block and in a block that continues its map.
const GNU_HEADER_ENTRIES: usize = 4;
const GNU_HEADER_MAP: usize = 386;
const GNU_BLOCK_ENTRIES: usize = 21;
const GNU_REAL_SIZE: Field = Field::new(483, 12);

/// Length of one map entry, an offset and a length of 12 bytes each, in a GNU block.
const GNU_ENTRY_LEN: usize = 24;
const GNU_NUMBER_LEN: usize = 12;

const NOT_NUMBERS: &str = "sparse map holds something else than numbers";

/// A run of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) file_off: u64,
    pub(super) len: u64,
}

/// Where the map of a PAX sparse file is.
#[derive(Clone, Debug)]
pub(super) enum SparseMap {
    /// Formats 0.0 and 0.1: in the records.
    Known(Vec<Segment>),
    /// Format 1.0: in whole blocks before the data.
    InData,
}

/// What PAX records say about a sparse file.
#[derive(Clone, Debug)]
pub(crate) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<i64>,
    pub(super) map: SparseMap,
}

/// The map of an old GNU sparse entry, spread over its header and continuation blocks.
#[derive(Clone, Debug)]
pub(super) struct GnuMap {
    pub(super) real_size: i64,
    pub(super) segments: Vec<Segment>,
}

impl GnuMap {
    /// Reads the header block. The flag says whether a continuation block follows.
    pub(super) fn parse(header: &Block, limits: &Limits) -> Result<(Self, bool), Refusal> {
        let real_size = number(GNU_REAL_SIZE.of(header)).ok_or("size of a sparse file is not a number")?;
        let mut map = Self {
            real_size,
            segments: Vec::new(),
        };
        let more = map.read(header, GNU_HEADER_MAP, GNU_HEADER_ENTRIES, limits)?;
        Ok((map, more))
    }

    /// Reads a continuation block; the same flag.
    pub(super) fn extend(&mut self, block: &Block, limits: &Limits) -> Result<bool, Refusal> {
        self.read(block, 0, GNU_BLOCK_ENTRIES, limits)
    }

    fn read(&mut self, block: &Block, at: usize, entries: usize, limits: &Limits) -> Result<bool, Refusal> {
        for entry in 0..entries {
            let at = at + entry * GNU_ENTRY_LEN;
            let offset = Field::new(at, GNU_NUMBER_LEN).of(block);
            let len = Field::new(at + GNU_NUMBER_LEN, GNU_NUMBER_LEN).of(block);
            if offset.first() == Some(&0) {
                break;
            }
            let parse = |field| number(field).and_then(|number| u64::try_from(number).ok());
            let (Some(file_off), Some(len)) = (parse(offset), parse(len)) else {
                return Err(NOT_NUMBERS.into());
            };
            self.segments.push(Segment { file_off, len });
            check_count(self.segments.len() as u64, limits)?;
        }
        let more = Field::new(at + entries * GNU_ENTRY_LEN, 1).of(block);
        Ok(more.first().is_some_and(|flag| *flag > 0))
    }
}

/// Collects the map of format 1.0: a count, then offsets and lengths, each a decimal line, padded to whole blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct MapText {
    text: Vec<u8>,
    lines: usize,
}

impl MapText {
    /// Takes the next block of the map; gives the segments once it is complete.
    pub(super) fn push(&mut self, block: &Block, limits: &Limits) -> Result<Option<Vec<Segment>>, Refusal> {
        self.text.extend_from_slice(block);
        self.lines += block.iter().filter(|byte| **byte == b'\n').count();
        let text_max = (2 * limits.sparse_segments + 2) * MAP_LINE_MAX;
        // The count is looked up again for every block, so it has to be near the begin.
        if self.lines == 0 || self.text.len() > text_max + BLOCK_LEN {
            return Err("sparse map has overlong lines".into());
        }
        let mut lines = self.text.split(|byte| *byte == b'\n');
        let count = lines
            .next()
            .and_then(decimal)
            .and_then(|count| u64::try_from(count).ok());
        let count = count.ok_or(NOT_NUMBERS)?;
        check_count(count, limits)?;
        let numbers = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(2);
        if self.lines <= numbers {
            return Ok(None);
        }
        let listed: Vec<&[u8]> = lines.take(numbers).collect();
        segments(&listed, limits).map(Some)
    }
}

/// Pairs up alternating offsets and lengths.
pub(super) fn segments(numbers: &[&[u8]], limits: &Limits) -> Result<Vec<Segment>, Refusal> {
    check_count(numbers.len() as u64 / 2, limits)?;
    let number = |text: &[u8]| u64::try_from(decimal(text)?).ok();
    let segment = |pair: &[&[u8]]| match pair {
        [file_off, len] => Some(Segment {
            file_off: number(file_off)?,
            len: number(len)?,
        }),
        _ => None,
    };
    let segments: Option<Vec<Segment>> = numbers.chunks(2).map(segment).collect();
    segments.ok_or_else(|| NOT_NUMBERS.into())
}

fn check_count(segments: u64, limits: &Limits) -> Result<(), FormatError> {
    FormatError::check_limit(
        "number of sparse segments",
        segments,
        limits.sparse_segments as u64,
    )
}

/// Bytes of the plain layer that go into a literal extent.
#[derive(Clone, Copy, Debug)]
struct Copy {
    plain_off: u64,
    len: u64,
    extent: usize,
    /// Position in the literal.
    at: u64,
}

/// The extents of a sparse file, and which passing bytes its literals still need.
#[derive(Clone, Debug, Default)]
pub(super) struct SparsePlan {
    pub(super) content: FileContent,
    /// In order of their plain offsets.
    copies: VecDeque<Copy>,
}

impl SparsePlan {
    /// The plan of an ordinary file: all its bytes lie in the plain layer from `plain_off` on.
    pub(super) fn contiguous(size: u64, plain_off: u64) -> Self {
        let mut plan = Self {
            content: FileContent {
                size,
                extents: Vec::new(),
            },
            copies: VecDeque::new(),
        };
        if size > 0 {
            plan.in_place(0, size, plain_off);
        }
        plan
    }

    /// Plans a file of `size` bytes whose `map` segments are stored from plain offset `data_off` on, `stored` bytes in all.
    /// `literals` is the number of literal bytes of the layer so far, and is raised. Refuses a map that contradicts itself
    /// or the stored length.
    pub(super) fn new(
        size: u64,
        map: &[Segment],
        data_off: u64,
        stored: u64,
        literals: &mut u64,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        validate(size, map, stored)?;
        let mut plan = Self {
            content: FileContent {
                size,
                extents: Vec::new(),
            },
            copies: VecDeque::new(),
        };
        let mut plain_off = data_off;
        for segment in map.iter().filter(|segment| segment.len > 0) {
            plan.add(*segment, plain_off, literals, limits)?;
            plain_off += segment.len;
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        segment: Segment,
        plain_off: u64,
        literals: &mut u64,
        limits: &Limits,
    ) -> Result<(), FormatError> {
        let Segment { file_off, len } = segment;
        let end = file_off + len;
        let (mut from, mut to) = (end, end);
        if file_off % BLOCK == plain_off % BLOCK {
            let first = file_off.next_multiple_of(BLOCK);
            let last = if end == self.content.size {
                end
            } else {
                end - end % BLOCK
            };
            if first < last {
                (from, to) = (first, last);
            }
        }
        self.literal(file_off, from, plain_off, literals, limits)?;
        if from < to {
            self.in_place(from, to - from, plain_off + (from - file_off));
        }
        self.literal(to, end, plain_off + (to - file_off), literals, limits)
    }

    fn in_place(&mut self, file_off: u64, len: u64, plain_off: u64) {
        if let Some(Extent {
            file_off: last_off,
            len: last_len,
            source:
                ExtentSource::Plain {
                    plain_off: last_plain,
                    ..
                },
        }) = self.content.extents.last_mut()
            && *last_off + *last_len == file_off
            && *last_plain + *last_len == plain_off
        {
            *last_len += len;
            return;
        }
        let source = ExtentSource::Plain {
            device: LAYER_DEVICE,
            plain_off,
        };
        self.content.extents.push(Extent {
            file_off,
            len,
            source,
        });
    }

    /// Makes the blocks that file bytes `from..to` touch literal and notes what to copy into them.
    fn literal(
        &mut self,
        from: u64,
        to: u64,
        plain_off: u64,
        literals: &mut u64,
        limits: &Limits,
    ) -> Result<(), FormatError> {
        if from >= to {
            return Ok(());
        }
        let first = from - from % BLOCK;
        let end = to.next_multiple_of(BLOCK).min(self.content.size);
        self.open_literal(first);
        let extent = self.content.extents.len() - 1;
        let Some(Extent {
            file_off,
            len,
            source: ExtentSource::Literal(bytes),
        }) = self.content.extents.last_mut()
        else {
            return Ok(());
        };
        let new_len = end - *file_off;
        *literals += new_len.saturating_sub(*len);
        FormatError::check_limit("bytes of unaligned sparse files", *literals, limits.literal_bytes)?;
        *len = new_len.max(*len);
        // Within the limit just checked, hence within memory.
        bytes.resize(usize::try_from(*len).unwrap_or(usize::MAX), 0);
        let at = from - *file_off;
        self.copies.push_back(Copy {
            plain_off,
            len: to - from,
            extent,
            at,
        });
        Ok(())
    }

    /// Makes the last extent a literal that reaches at least to file offset `first`, a multiple of the block size.
    fn open_literal(&mut self, first: u64) {
        let joins = matches!(self.content.extents.last(),
            Some(Extent { file_off, len, source: ExtentSource::Literal(_) }) if file_off + len >= first);
        if !joins {
            let source = ExtentSource::Literal(Vec::new());
            self.content.extents.push(Extent {
                file_off: first,
                len: 0,
                source,
            });
        }
    }

    /// Takes what the literals need from the bytes that lie at `plain_off`, and puts it into `node`, the file of this plan.
    pub(super) fn take(&mut self, plain_off: u64, plain: &[u8], node: &mut Node) {
        let plain_end = plain_off + plain.len() as u64;
        while let Some(copy) = self.copies.front_mut() {
            if copy.plain_off >= plain_end {
                return;
            }
            let skip = copy.plain_off.saturating_sub(plain_off);
            let len = copy.len.min(plain_end - copy.plain_off);
            copy_into(node, *copy, plain, skip, len);
            copy.plain_off += len;
            copy.at += len;
            copy.len -= len;
            if copy.len == 0 {
                self.copies.pop_front();
            }
        }
    }
}

fn copy_into(node: &mut Node, copy: Copy, plain: &[u8], skip: u64, len: u64) {
    let NodeKind::Regular(content) = &mut node.kind else {
        return;
    };
    let Some(Extent {
        source: ExtentSource::Literal(bytes),
        ..
    }) = content.extents.get_mut(copy.extent)
    else {
        return;
    };
    let (Ok(at), Ok(skip), Ok(len)) = (
        usize::try_from(copy.at),
        usize::try_from(skip),
        usize::try_from(len),
    ) else {
        return;
    };
    if let (Some(target), Some(source)) = (bytes.get_mut(at..at + len), plain.get(skip..skip + len)) {
        target.copy_from_slice(source);
    }
}

/// Checks that segments are sorted, disjoint and inside the file, and that the tar holds exactly their bytes.
fn validate(size: u64, map: &[Segment], stored: u64) -> Result<(), &'static str> {
    let (mut last_end, mut total) = (0_u64, 0_u64);
    for segment in map {
        let end = segment
            .file_off
            .checked_add(segment.len)
            .filter(|end| *end <= size);
        let end = end.ok_or("sparse map reaches beyond the end of the file")?;
        if segment.file_off < last_end {
            return Err("sparse map is not in order");
        }
        last_end = end;
        total = total.saturating_add(segment.len);
    }
    if total != stored {
        return Err("sparse map does not cover exactly the stored data");
    }
    Ok(())
}
