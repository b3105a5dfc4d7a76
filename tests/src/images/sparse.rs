//! Files with holes in the four encodings that tar knows.
//!
//! Old GNU keeps the map of data segments in the header and in extension blocks after it; PAX 0.0 repeats records, PAX
//! 0.1 has one record with the whole map, PAX 1.0 puts the map in decimal before the data.

use super::entry::{BLOCK, Dialect};
use super::header::Header;

/// How the map of data segments is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseEncoding {
    /// Type `S` with the map in the header and extension blocks.
    OldGnu,
    /// Repeated `GNU.sparse.offset` and `GNU.sparse.numbytes` records.
    Pax00,
    /// One `GNU.sparse.map` record.
    Pax01,
    /// The map in decimal lines before the data.
    Pax10,
}

impl SparseEncoding {
    /// The PAX encodings, each with a short name for paths.
    pub const PAX: [(Self, &'static str); 3] = [
        (Self::Pax00, "pax-0.0"),
        (Self::Pax01, "pax-0.1"),
        (Self::Pax10, "pax-1.0"),
    ];
}

/// Data segments of a file and its length.
#[derive(Clone, Debug)]
pub struct Sparse {
    /// How they are written.
    pub encoding: SparseEncoding,
    /// Offset in the file and bytes of every segment, in order.
    pub segments: Vec<(u64, Vec<u8>)>,
    /// Length of the file with its holes.
    pub real_len: u64,
}

/// Segments in the header of an old GNU entry.
const IN_HEADER: usize = 4;
/// Segments in one extension block.
const IN_EXTENSION: usize = 21;
/// Length of offset and length of one segment, twelve digits each.
const SEGMENT: usize = 24;

impl Sparse {
    /// The bytes of the file, holes as zeros.
    pub fn content(&self) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(self.real_len).unwrap_or(0)];
        for (offset, bytes) in &self.segments {
            let at = usize::try_from(*offset).unwrap_or(usize::MAX);
            content[at..at + bytes.len()].copy_from_slice(bytes);
        }
        content
    }

    /// Changes `header` to announce the segments, and gives the bytes that follow it.
    pub(super) fn prepare(&self, header: &mut Header) -> Vec<u8> {
        let data: Vec<u8> = self
            .segments
            .iter()
            .flat_map(|(_, bytes)| bytes.iter().copied())
            .collect();
        match self.encoding {
            SparseEncoding::OldGnu => {
                header.kind = b'S';
                header.dialect = Dialect::Gnu;
                header.sparse_area = self.header_area();
                data
            }
            SparseEncoding::Pax00 => {
                self.announce(header, "size");
                for (offset, bytes) in &self.segments {
                    record(header, "GNU.sparse.offset", offset);
                    record(header, "GNU.sparse.numbytes", bytes.len());
                }
                data
            }
            SparseEncoding::Pax01 => {
                self.announce(header, "size");
                let numbers = self
                    .segments
                    .iter()
                    .map(|(offset, bytes)| format!("{offset},{}", bytes.len()));
                record(header, "GNU.sparse.map", numbers.collect::<Vec<_>>().join(","));
                self.rename(header);
                data
            }
            SparseEncoding::Pax10 => {
                record(header, "GNU.sparse.major", 1);
                record(header, "GNU.sparse.minor", 0);
                record(header, "GNU.sparse.realsize", self.real_len);
                self.rename(header);
                [self.decimal_map(), data].concat()
            }
        }
    }

    fn announce(&self, header: &mut Header, size_key: &str) {
        record(header, &format!("GNU.sparse.{size_key}"), self.real_len);
        record(header, "GNU.sparse.numblocks", self.segments.len());
    }

    /// PAX 0.1 and 1.0 keep the real name in a record; the header's is one that old readers may extract.
    fn rename(&self, header: &mut Header) {
        let name = std::mem::take(&mut header.name);
        header.name = [
            b"GNUSparseFile.1/",
            name.rsplit(|byte| *byte == b'/').next().unwrap_or(b""),
        ]
        .concat();
        header.records.push((b"GNU.sparse.name".to_vec(), name));
    }

    fn decimal_map(&self) -> Vec<u8> {
        let mut text = format!("{}\n", self.segments.len());
        for (offset, bytes) in &self.segments {
            text.push_str(&format!("{offset}\n{}\n", bytes.len()));
        }
        let mut map = text.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        map
    }

    /// Offsets 386 to 494 of the header: four segments, the flag that more follow, and the real length.
    fn header_area(&self) -> Vec<u8> {
        let mut area = vec![0; 109];
        let first = &self.segments[..self.segments.len().min(IN_HEADER)];
        put_segments(&mut area, first);
        area[IN_HEADER * SEGMENT] = u8::from(self.segments.len() > IN_HEADER);
        area[97..109].copy_from_slice(&number(self.real_len));
        area
    }

    /// Blocks with the segments that do not fit the old GNU header; empty in the other encodings.
    pub(super) fn extension_blocks(&self) -> Vec<u8> {
        if self.encoding != SparseEncoding::OldGnu || self.segments.len() <= IN_HEADER {
            return Vec::new();
        }
        let groups: Vec<_> = self.segments[IN_HEADER..].chunks(IN_EXTENSION).collect();
        let mut blocks = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            let mut block = vec![0; BLOCK];
            put_segments(&mut block, group);
            block[IN_EXTENSION * SEGMENT] = u8::from(at + 1 < groups.len());
            blocks.extend(block);
        }
        blocks
    }
}

fn put_segments(area: &mut [u8], segments: &[(u64, Vec<u8>)]) {
    for (slot, (offset, bytes)) in area.chunks_exact_mut(SEGMENT).zip(segments) {
        slot[..12].copy_from_slice(&number(*offset));
        slot[12..].copy_from_slice(&number(bytes.len() as u64));
    }
}

/// Eleven octal digits and a NUL.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    let text = format!("{value:011o}");
    field[..11].copy_from_slice(&text.as_bytes()[..11]);
    field
}

fn record(header: &mut Header, key: &str, value: impl ToString) {
    header
        .records
        .push((key.as_bytes().to_vec(), value.to_string().into_bytes()));
}
