//! The body of the document: layers, then one column per field of the demands.
//!
//! Offsets are stored as gaps, numbers as LEB128, and equal fields lie together: a start of a gigabyte image with a thousand
//! demands takes a few kilobytes after compression.

use super::{Demand, FORMAT, ProfileLayer};
use crate::{DiffId, Digest, FormatError};

/// Bytes of a layer: DiffID and number of demands.
const LAYER_LEN: u64 = 32 + 4;
/// Longest LEB128 form of a `u64`, in bytes.
const VARINT_MAX: usize = 10;
/// Most bytes that one demand can take: three numbers and two counters.
const DEMAND_MAX: u64 = 3 * VARINT_MAX as u64 + 2;

/// Most bytes that the columns of so many layers and demands can take.
pub(super) fn longest(layers: u64, demands: u64) -> u64 {
    layers
        .saturating_mul(LAYER_LEN)
        .saturating_add(demands.saturating_mul(DEMAND_MAX))
}

pub(super) fn encode(layers: &[ProfileLayer]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for layer in layers {
        bytes.extend_from_slice(layer.diff_id.0.as_bytes());
        let count = u32::try_from(layer.demands.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    for layer in layers {
        let mut next = 0;
        for demand in &layer.demands {
            put_varint(&mut bytes, demand.plain_off - next);
            next = demand.plain_range().end;
        }
    }
    let demands = || layers.iter().flat_map(|layer| &layer.demands);
    demands().for_each(|demand| put_varint(&mut bytes, demand.plain_len));
    demands().for_each(|demand| put_varint(&mut bytes, demand.first_ms.into()));
    bytes.extend(demands().map(|demand| demand.seen));
    bytes.extend(demands().map(|demand| demand.missed));
    bytes
}

/// Reads the columns of `layers` layers and, over all of them, `demands` demands. Allocates for as many as the bytes hold.
pub(super) fn parse(bytes: &[u8], layers: usize, demands: usize) -> Result<Vec<ProfileLayer>, FormatError> {
    let mut cursor = Cursor { rest: bytes };
    let mut counted = Vec::new();
    for _ in 0..layers {
        let diff_id = DiffId(Digest::from_bytes(*cursor.take_array()?));
        counted.push((diff_id, u32::from_le_bytes(*cursor.take_array()?) as usize));
    }
    let total = counted
        .iter()
        .fold(0usize, |sum, (_, count)| sum.saturating_add(*count));
    if total != demands {
        return Err(refuse(
            "the layers have another number of demands than the header",
        ));
    }
    let gaps = cursor.take_varints(demands)?;
    let lens = cursor.take_varints(demands)?;
    let times = cursor.take_varints(demands)?;
    let seen = cursor.take(demands)?;
    let missed = cursor.take(demands)?;
    if !cursor.rest.is_empty() {
        return Err(refuse("goes on after its last column"));
    }
    let mut at = 0;
    let mut parsed = Vec::new();
    for (diff_id, count) in counted {
        let mut layer = Vec::new();
        let mut next = 0u64;
        for at in at..at + count {
            let plain_off = next.checked_add(gaps[at]);
            let plain_off = plain_off.ok_or_else(|| refuse("a demand begins after 2^64 bytes"))?;
            let first_ms = u32::try_from(times[at]).map_err(|_| refuse("a time passes 2^32 ms"))?;
            let demand = Demand {
                plain_off,
                plain_len: lens[at],
                first_ms,
                seen: seen[at],
                missed: missed[at],
            };
            next = demand.plain_range().end;
            layer.push(demand);
        }
        at += count;
        parsed.push(ProfileLayer {
            diff_id,
            demands: layer,
        });
    }
    Ok(parsed)
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

fn refuse(reason: &str) -> FormatError {
    FormatError::malformed(FORMAT, "body", reason)
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| refuse("is cut short"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<&'a [u8; N], FormatError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| refuse("is cut short"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_varints(&mut self, count: usize) -> Result<Vec<u64>, FormatError> {
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(self.take_varint()?);
        }
        Ok(values)
    }

    /// Takes the shortest form only, so that equal profiles have equal bytes.
    fn take_varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for (at, byte) in self.rest.iter().take(VARINT_MAX).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * at;
            if bits << shift >> shift != bits || (*byte == 0 && at > 0) {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(refuse("a number is cut short, too long or too large"))
    }
}
