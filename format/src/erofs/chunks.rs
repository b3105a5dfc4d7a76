//! Where the bytes of a regular file are: extents of a tree ↔ the chunk table behind an inode.
//!
//! EROFS cuts a file into chunks of one size, a power of two of blocks, and stores one [`ChunkIndex`] for each. A file
//! that lies in one run of the plain layer is a single chunk as large as needed. A sparse file gets the largest chunk
//! size at which every border between runs is a border between chunks, so that each chunk is wholly a hole, wholly in
//! one run of a plain layer, or wholly in literal blocks of the image itself.

use zerocopy::FromBytes;

use super::layout::{
    BLOCK_BITS, CHUNK_FORMAT_BITS_MASK, CHUNK_FORMAT_INDEXES, ChunkIndex, FILE_SIZE_MAX, NULL_ADDRESS,
};
use super::{BLOCK_SIZE, DeviceSlot, MappedRun, RunSource};
use crate::tree::{Extent, ExtentSource, FileContent};
use crate::{DiffId, FormatError};

/// Most entries of one chunk table: a sparse file of 16 GiB whose borders are 4 KiB apart still passes, and a table
/// stays below 32 MiB.
pub const TABLE_ENTRIES_MAX: u64 = 1 << 22;
/// Largest chunk, as a binary logarithm of bytes.
const CHUNK_BITS_MAX: u32 = CHUNK_FORMAT_BITS_MASK as u32 + BLOCK_BITS as u32;
/// First byte of a device that a 32-bit address cannot reach.
pub(super) const ADDRESSABLE_END: u64 = NULL_ADDRESS as u64 * BLOCK_SIZE;

/// Where a run of a file begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunStart {
    Hole,
    Plain {
        device: u16,
        plain_off: u64,
    },
    /// Offset from the first literal block of the file.
    Literal {
        literal_off: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    file_off: u64,
    start: RunStart,
}

/// The chunk table of one file, before its literal blocks have a place.
#[derive(Clone, Debug)]
pub(super) struct ChunkPlan {
    runs: Vec<Run>,
    pub(super) size: u64,
    chunk_bits: u32,
    /// Bytes of literal blocks the image must hold for this file.
    pub(super) literal_len: u64,
}

impl ChunkPlan {
    /// Plans the table of a file that is not empty.
    pub(super) fn new(content: &FileContent, devices: &[DeviceSlot]) -> Result<Self, FormatError> {
        FormatError::check_limit("file size", content.size, FILE_SIZE_MAX)?;
        let (runs, literal_len) = join_runs(content, devices)?;
        let borders = runs.iter().skip(1).fold(0u64, |all, run| all | run.file_off);
        let fitting = content.size.next_power_of_two().trailing_zeros();
        let chunk_bits = fitting
            .min(borders.trailing_zeros())
            .clamp(BLOCK_BITS.into(), CHUNK_BITS_MAX);
        let plan = Self {
            runs,
            size: content.size,
            chunk_bits,
            literal_len,
        };
        FormatError::check_limit(
            "number of chunk entries of a sparse file",
            plan.entries(),
            TABLE_ENTRIES_MAX,
        )?;
        Ok(plan)
    }

    fn entries(&self) -> u64 {
        self.size.div_ceil(1u64 << self.chunk_bits)
    }

    /// Length of the table in bytes.
    pub(super) fn table_len(&self) -> u64 {
        self.entries() * size_of::<ChunkIndex>() as u64
    }

    /// Chunk format field of the inode.
    pub(super) fn format(&self) -> u16 {
        let blocks_bits = self.chunk_bits - u32::from(BLOCK_BITS);
        CHUNK_FORMAT_INDEXES | u16::try_from(blocks_bits).expect("CHUNK_BITS_MAX keeps it within five bits")
    }

    /// The entries, given where in the image the literal blocks begin.
    pub(super) fn table(&self, literal_start: u64) -> impl Iterator<Item = ChunkIndex> + '_ {
        let mut run = 0;
        (0..self.entries()).map(move |chunk| {
            let file_off = chunk << self.chunk_bits;
            while self
                .runs
                .get(run + 1)
                .is_some_and(|next| next.file_off <= file_off)
            {
                run += 1;
            }
            entry_at(self.runs[run], file_off, literal_start)
        })
    }
}

fn entry_at(run: Run, file_off: u64, literal_start: u64) -> ChunkIndex {
    let inside = file_off - run.file_off;
    let (device, address) = match run.start {
        RunStart::Hole => (0, NULL_ADDRESS),
        RunStart::Plain { device, plain_off } => (device, address_of(plain_off + inside)),
        RunStart::Literal { literal_off } => (0, address_of(literal_start + literal_off + inside)),
    };
    ChunkIndex {
        reserved: 0.into(),
        device: device.into(),
        address: address.into(),
    }
}

/// Block address of a byte in a plain layer or in the image.
fn address_of(byte: u64) -> u32 {
    u32::try_from(byte / BLOCK_SIZE).expect("extents and images are checked against 32-bit addresses")
}

/// Runs that cover the whole file, holes included, neighbours joined; and the bytes of literal blocks.
fn join_runs(content: &FileContent, devices: &[DeviceSlot]) -> Result<(Vec<Run>, u64), FormatError> {
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |run: Run| {
        if runs.last().is_none_or(|last| !continues(*last, run)) {
            runs.push(run);
        }
    };
    let mut end = 0;
    let mut literal_len = 0;
    for extent in &content.extents {
        check_extent(extent, end, content.size)?;
        if extent.file_off > end {
            add(Run {
                file_off: end,
                start: RunStart::Hole,
            });
        }
        let start = match &extent.source {
            ExtentSource::Plain { device, plain_off } => {
                check_plain(*device, *plain_off, extent.len, devices)?;
                RunStart::Plain {
                    device: *device,
                    plain_off: *plain_off,
                }
            }
            ExtentSource::Literal(bytes) => {
                if bytes.len() as u64 != extent.len {
                    return Err(wrong("a literal extent whose length is not that of its bytes"));
                }
                let literal_off = literal_len;
                literal_len += extent.len.next_multiple_of(BLOCK_SIZE);
                RunStart::Literal { literal_off }
            }
        };
        add(Run {
            file_off: extent.file_off,
            start,
        });
        end = extent.file_off + extent.len;
    }
    if end < content.size {
        add(Run {
            file_off: end,
            start: RunStart::Hole,
        });
    }
    Ok((runs, literal_len))
}

/// Whether `next`, which begins where `run` ends, only prolongs it.
fn continues(run: Run, next: Run) -> bool {
    let gap = next.file_off - run.file_off;
    match (run.start, next.start) {
        (
            RunStart::Plain { device, plain_off },
            RunStart::Plain {
                device: next_device,
                plain_off: next_off,
            },
        ) => device == next_device && plain_off + gap == next_off,
        (
            RunStart::Literal { literal_off },
            RunStart::Literal {
                literal_off: next_off,
            },
        ) => literal_off + gap == next_off,
        _ => false,
    }
}

fn check_extent(extent: &Extent, end: u64, size: u64) -> Result<(), FormatError> {
    let extent_end = extent.file_off.checked_add(extent.len);
    let inside = extent_end.is_some_and(|extent_end| extent_end <= size);
    if extent.len == 0 || extent.file_off < end || !inside {
        return Err(wrong("extents that are empty, overlap or leave the file"));
    }
    let ends_file = extent_end == Some(size);
    if !extent.file_off.is_multiple_of(BLOCK_SIZE) || (!extent.len.is_multiple_of(BLOCK_SIZE) && !ends_file) {
        return Err(wrong("an extent that is not made of whole 512-byte blocks"));
    }
    Ok(())
}

fn check_plain(device: u16, plain_off: u64, len: u64, devices: &[DeviceSlot]) -> Result<(), FormatError> {
    let slot = usize::from(device)
        .checked_sub(1)
        .and_then(|index| devices.get(index))
        .ok_or_else(|| wrong(format!("an extent on device {device} of {}", devices.len())))?;
    let end = plain_off.saturating_add(len);
    FormatError::check_limit("end of an extent in its plain layer", end, ADDRESSABLE_END)?;
    if !plain_off.is_multiple_of(BLOCK_SIZE) {
        return Err(wrong(format!(
            "an extent at plain offset {plain_off}, which is no multiple of 512"
        )));
    }
    if end > slot.plain_len {
        let len = slot.plain_len;
        return Err(wrong(format!(
            "an extent up to plain offset {end} in a plain layer of {len} bytes"
        )));
    }
    Ok(())
}

fn wrong(reason: impl ToString) -> FormatError {
    FormatError::malformed("EROFS", "file content", format!("has {}", reason.to_string()))
}

/// The chunk table of one file in an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkTable<'a> {
    entries: &'a [ChunkIndex],
    size: u64,
    chunk_bits: u32,
    image_len: u64,
    devices: &'a [(DiffId, u64)],
}

impl<'a> ChunkTable<'a> {
    /// The table of a file of `size` bytes, more than none, whose inode ends at byte `behind` of `image`.
    pub(super) fn parse(
        image: &'a [u8],
        behind: usize,
        format: u32,
        size: u64,
        devices: &'a [(DiffId, u64)],
    ) -> Result<Self, &'static str> {
        let format = u16::try_from(format).map_err(|_| "has an unknown chunk format")?;
        if format & !CHUNK_FORMAT_BITS_MASK != CHUNK_FORMAT_INDEXES {
            return Err("has an unknown chunk format");
        }
        let chunk_bits = u32::from(format & CHUNK_FORMAT_BITS_MASK) + u32::from(BLOCK_BITS);
        let start = behind.next_multiple_of(size_of::<ChunkIndex>());
        let table = usize::try_from(size.div_ceil(1u64 << chunk_bits))
            .ok()
            .and_then(|count| start.checked_add(count.checked_mul(size_of::<ChunkIndex>())?))
            .and_then(|end| image.get(start..end))
            .ok_or("has a chunk table outside of the image")?;
        let entries = <[ChunkIndex]>::ref_from_bytes(table).map_err(|_| "has a cut chunk table")?;
        Ok(Self {
            entries,
            size,
            chunk_bits,
            image_len: image.len() as u64,
            devices,
        })
    }

    /// Bytes of the table.
    pub(super) fn table_len(&self) -> u64 {
        size_of_val(self.entries) as u64
    }

    /// Hands out the runs between `off` and `end` of the file, one for each chunk that is touched.
    pub(super) fn for_each_run(
        &self,
        off: u64,
        end: u64,
        each: &mut dyn FnMut(MappedRun),
    ) -> Result<(), &'static str> {
        let end = end.min(self.size);
        let mut at = off;
        while at < end {
            let chunk = at >> self.chunk_bits;
            let chunk_start = chunk << self.chunk_bits;
            let chunk_end = chunk_start.saturating_add(1 << self.chunk_bits).min(self.size);
            let entry = usize::try_from(chunk)
                .ok()
                .and_then(|chunk| self.entries.get(chunk));
            let start = self.source(entry.ok_or("has a cut chunk table")?, chunk_end - chunk_start)?;
            let len = chunk_end.min(end) - at;
            each(MappedRun {
                file_off: at,
                len,
                source: forward(start, at - chunk_start),
            });
            at += len;
        }
        Ok(())
    }

    /// Where a chunk of `len` bytes begins.
    fn source(&self, entry: &ChunkIndex, len: u64) -> Result<RunSource, &'static str> {
        if entry.address.get() == NULL_ADDRESS {
            return Ok(RunSource::Hole);
        }
        let start = u64::from(entry.address.get()) * BLOCK_SIZE;
        let device = entry.device.get();
        let (source, room) = match device.checked_sub(1) {
            None => (RunSource::Image { image_off: start }, self.image_len),
            Some(index) => {
                let (_, room) = self
                    .devices
                    .get(usize::from(index))
                    .ok_or("has content on an unknown device")?;
                (
                    RunSource::Plain {
                        device,
                        plain_off: start,
                    },
                    *room,
                )
            }
        };
        if start + len > room {
            return Err("has content outside of its device");
        }
        Ok(source)
    }
}

/// The place `by` bytes after the begin of a run.
fn forward(source: RunSource, by: u64) -> RunSource {
    match source {
        RunSource::Hole => RunSource::Hole,
        RunSource::Plain { device, plain_off } => RunSource::Plain {
            device,
            plain_off: plain_off + by,
        },
        RunSource::Image { image_off } => RunSource::Image {
            image_off: image_off + by,
        },
    }
}

/// Appends `next`, which begins where the last of `runs` ends, or prolongs that one.
pub(super) fn join(runs: &mut Vec<MappedRun>, next: MappedRun) {
    match runs.last_mut() {
        Some(last) if forward(last.source, last.len) == next.source => last.len += next.len,
        _ => runs.push(next),
    }
}
