//! One 512-byte tar header block.
//!
//! Field layouts of the four header formats are those of Go's archive/tar, which is what containerd reads layers with:
//! v7, ustar (with a name prefix), star (shorter prefix, two times) and GNU (two times, sparse map). Any field that is not
//! a number refuses the header, as there; a header that another tool would read differently is not worth guessing at.

use super::refusal::Refusal;

/// Length of a tar block in bytes.
pub(crate) const BLOCK_LEN: usize = 512;

/// The same for plain offsets.
pub(super) const BLOCK: u64 = BLOCK_LEN as u64;

/// One block.
pub(crate) type Block = [u8; BLOCK_LEN];

/// Position and length of a field in a block.
#[derive(Clone, Copy)]
pub(super) struct Field(usize, usize);

const NAME: Field = Field(0, 100);
const MODE: Field = Field(100, 8);
const UID: Field = Field(108, 8);
const GID: Field = Field(116, 8);
const SIZE: Field = Field(124, 12);
const MTIME: Field = Field(136, 12);
const CHECKSUM: Field = Field(148, 8);
const KIND: usize = 156;
const LINK: Field = Field(157, 100);
const MAGIC: Field = Field(257, 6);
const VERSION: Field = Field(263, 2);
const MAJOR: Field = Field(329, 8);
const MINOR: Field = Field(337, 8);
const USTAR_PREFIX: Field = Field(345, 155);
const STAR_PREFIX: Field = Field(345, 131);
const STAR_TIMES: [Field; 2] = [Field(476, 12), Field(488, 12)];
const STAR_TRAILER: Field = Field(508, 4);
const GNU_TIMES: [Field; 2] = [Field(345, 12), Field(357, 12)];

impl Field {
    pub(super) const fn new(at: usize, len: usize) -> Self {
        Self(at, len)
    }

    /// The bytes of the field.
    pub(super) fn of(self, block: &Block) -> &[u8] {
        block.get(self.0..self.0 + self.1).unwrap_or_default()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The decoded fields that matter for a file tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    pub(crate) flag: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) size: i64,
    pub(crate) mode: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    /// Whole seconds.
    pub(crate) mtime: i64,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    /// Whether the block is in GNU's own format, the only one whose sparse map is known.
    pub(crate) gnu: bool,
}

impl Header {
    /// Reads a block, refusing a wrong checksum and fields that are not numbers.
    pub(crate) fn parse(block: &Block) -> Result<Self, Refusal> {
        if !checksum_matches(block) {
            return Err("header checksum does not match, so this is no tar header".into());
        }
        let format = format_of(block);
        let read = |field: Field, what| {
            number(field.of(block)).ok_or_else(|| Refusal::from(format!("{what} is not a number")))
        };
        let mut header = Self {
            flag: block[KIND],
            name: text(NAME.of(block)).to_vec(),
            link: text(LINK.of(block)).to_vec(),
            size: read(SIZE, "size")?,
            mode: read(MODE, "mode")?,
            uid: read(UID, "uid")?,
            gid: read(GID, "gid")?,
            mtime: read(MTIME, "mtime")?,
            gnu: format == Format::Gnu,
            ..Self::default()
        };
        if format != Format::V7 {
            header.major = read(MAJOR, "device major")?;
            header.minor = read(MINOR, "device minor")?;
            let prefix = prefix(block, format).ok_or("a time is not a number")?;
            if !prefix.is_empty() {
                header.name = [prefix, b"/", &header.name].concat();
            }
        }
        if header.size < 0 && !is_header_only(header.flag) {
            return Err("size is negative".into());
        }
        Ok(header)
    }
}

/// Whether entries of this type have no data whatever their size says.
///
/// Go and Python skip nothing for them; skipping would hide the entries that follow.
pub(super) const fn is_header_only(flag: u8) -> bool {
    matches!(flag, b'1'..=b'6')
}

/// A NUL-terminated string, or the whole field.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits or in GNU's base-256.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

/// Two's complement, big endian, the top bit of the first byte set as a mark.
fn base256(field: &[u8]) -> Option<i64> {
    let negative = field.first()? & 0x40 != 0;
    let invert = if negative { 0xff } else { 0 };
    let mut value = 0_u64;
    for (position, byte) in field.iter().enumerate() {
        let byte = if position == 0 {
            (byte ^ invert) & 0x7f
        } else {
            byte ^ invert
        };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { !value } else { value })
}

/// Octal digits with spaces and NULs around them; nothing at all is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_padding(byte)) else {
        return Some(0);
    };
    let end = field.iter().rposition(|byte| !is_padding(byte))?;
    let mut value = 0_i64;
    for digit in text(field.get(start..=end)?) {
        if !matches!(digit, b'0'..=b'7') {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

/// The sum of all bytes with the checksum field as spaces. Old tars added signed bytes; both sums are in use.
fn checksum_matches(block: &Block) -> bool {
    let Some(stored) = octal(CHECKSUM.of(block)) else {
        return false;
    };
    let field = CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1;
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (position, byte) in block.iter().enumerate() {
        let byte = if field.contains(&position) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    stored == unsigned || stored == signed
}

fn format_of(block: &Block) -> Format {
    match (MAGIC.of(block), VERSION.of(block)) {
        (b"ustar\0", _) if STAR_TRAILER.of(block) == b"tar\0" => Format::Star,
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu,
        _ => Format::V7,
    }
}

/// What stands before the name. `None` when a star time is not a number.
///
/// A GNU header has no prefix, but tars written by Go before 1.8 put one where GNU has its times; such a block is told by
/// times that are no numbers.
fn prefix(block: &Block, format: Format) -> Option<&[u8]> {
    match format {
        Format::V7 => Some(b""),
        Format::Ustar => Some(text(USTAR_PREFIX.of(block))),
        Format::Star => {
            let numeric = STAR_TIMES.iter().all(|field| number(field.of(block)).is_some());
            numeric.then(|| text(STAR_PREFIX.of(block)))
        }
        Format::Gnu => {
            let is_time = |field: &Field| {
                let bytes = field.of(block);
                bytes.first() == Some(&0) || number(bytes).is_some()
            };
            let prefix = text(USTAR_PREFIX.of(block));
            Some(if GNU_TIMES.iter().all(is_time) || !prefix.is_ascii() {
                b""
            } else {
                prefix
            })
        }
    }
}
