//! Member headers (RFC 1952, section 2.3), in pieces.

use super::FORMAT;
use crate::FormatError;

/// First bytes of a member: the magic and the only method there is, deflate.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Bytes of a header that are always there.
const FIXED_LEN: usize = 10;

const FLAG_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0b1110_0000;

/// What the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Fixed,
    ExtraLen,
    Extra { missing: u16 },
    Name,
    Comment,
    Crc,
    End,
}

/// A header that is being read. Keeps nothing but what decides where it ends and its checksum.
#[derive(Debug)]
pub(super) struct HeaderParser {
    field: Field,
    flags: u8,
    /// Bytes of the present field, as far as they matter.
    bytes: [u8; FIXED_LEN],
    filled: usize,
    crc: crc32fast::Hasher,
}

impl HeaderParser {
    pub(super) fn new() -> Self {
        Self {
            field: Field::Fixed,
            flags: 0,
            bytes: [0; FIXED_LEN],
            filled: 0,
            crc: crc32fast::Hasher::new(),
        }
    }

    /// Whether no byte of the header was taken yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.field == Field::Fixed && self.filled == 0
    }

    pub(super) fn is_complete(&self) -> bool {
        self.field == Field::End
    }

    /// Takes bytes up to the end of the header; gives how many those are.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] for what is no header, or one whose checksum is wrong. `stored_off` is where `stored` begins.
    pub(super) fn push(&mut self, stored: &[u8], stored_off: u64) -> Result<usize, FormatError> {
        for (at, byte) in stored.iter().enumerate() {
            if self.is_complete() {
                return Ok(at);
            }
            self.take(*byte)
                .map_err(|reason| FormatError::malformed(FORMAT, place(stored_off, at), reason))?;
        }
        Ok(stored.len())
    }

    fn take(&mut self, byte: u8) -> Result<(), &'static str> {
        if self.field != Field::Crc {
            self.crc.update(&[byte]);
        }
        match &mut self.field {
            Field::Fixed => return self.take_fixed(byte),
            Field::ExtraLen | Field::Crc => return self.take_pair(byte),
            Field::Extra { missing } => *missing -= 1,
            Field::Name | Field::Comment | Field::End => {}
        }
        let ends = match self.field {
            Field::Extra { missing } => missing == 0,
            Field::Name | Field::Comment => byte == 0,
            _ => false,
        };
        if ends {
            self.next_field();
        }
        Ok(())
    }

    fn take_fixed(&mut self, byte: u8) -> Result<(), &'static str> {
        self.bytes[self.filled] = byte;
        self.filled += 1;
        if self.filled <= MAGIC.len() && self.bytes[self.filled - 1] != MAGIC[self.filled - 1] {
            return Err("is not the header of a member");
        }
        if self.filled == FIXED_LEN {
            self.flags = self.bytes[3];
            if self.flags & FLAGS_RESERVED != 0 {
                return Err("a header has reserved flags");
            }
            self.next_field();
        }
        Ok(())
    }

    fn take_pair(&mut self, byte: u8) -> Result<(), &'static str> {
        self.bytes[self.filled] = byte;
        self.filled += 1;
        if self.filled < 2 {
            return Ok(());
        }
        let pair = u16::from_le_bytes([self.bytes[0], self.bytes[1]]);
        if self.field == Field::Crc {
            // The low half of the CRC-32 of the header.
            let [low, high, ..] = self.crc.clone().finalize().to_le_bytes();
            if u16::from_le_bytes([low, high]) != pair {
                return Err("a header has another checksum than it says");
            }
        } else if pair > 0 {
            self.field = Field::Extra { missing: pair };
            return Ok(());
        }
        self.next_field();
        Ok(())
    }

    /// Fields come in the order of this list, those that the flags name.
    fn next_field(&mut self) {
        self.filled = 0;
        let has = |flag| self.flags & flag != 0;
        let done = |field: Field| match field {
            Field::Fixed => 0,
            Field::ExtraLen | Field::Extra { .. } => 1,
            Field::Name => 2,
            Field::Comment => 3,
            Field::Crc | Field::End => 4,
        };
        let fields = [
            (FLAG_EXTRA, Field::ExtraLen),
            (FLAG_NAME, Field::Name),
            (FLAG_COMMENT, Field::Comment),
            (FLAG_CRC, Field::Crc),
        ];
        let rest = fields.iter().skip(done(self.field));
        let next = rest
            .filter(|(flag, _)| has(*flag))
            .map(|(_, field)| *field)
            .next();
        self.field = next.unwrap_or(Field::End);
    }
}

fn place(stored_off: u64, at: usize) -> String {
    format!("stored offset {}", stored_off.saturating_add(at as u64))
}
