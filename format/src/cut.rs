//! Where chunks end.
//!
//! The same file must give the same chunk in every image, so a cut depends on names and lengths of tar entries and never
//! on the position in the layer. Two kinds of regions follow each other:
//!
//! - **Large data.** Data of at least half a chunk begins a chunk of its own at its first byte, is cut every
//!   `chunk_size`, and ends a chunk behind its padding. A rest shorter than a quarter joins the last chunk, because a
//!   round trip for a few bytes costs as much as one for a full chunk. Whoever reads the end of a file reads its last block
//!   of 512 bytes whole: if the padding lay in the next chunk, that would be fetched for it as well.
//! - **Runs.** Smaller entries share chunks with their headers. A run
//!   of at least half a chunk ends before an entry whose name and length say so (content-defined, so two layers with the
//!   same files find common cuts again after a difference), and always before an entry that would push it over
//!   `chunk_size`.
//!
//! Bytes after the end of the archive are cut every `chunk_size`. No chunk is longer than [`Cutter::max_len`].

use crate::FormatError;
use crate::scan::BLOCK_LEN;

/// Smallest chunk size in bytes: below it the chunk table outweighs what finer fetches save.
pub const CHUNK_SIZE_MIN: u32 = 16 << 10;

/// Largest chunk size in bytes: one random read waits for a whole chunk.
pub const CHUNK_SIZE_MAX: u32 = 4 << 20;

/// Chunk size in bytes unless somebody asks for another one. Layers that are cut alike share what is cached of them.
pub const DEFAULT_CHUNK_SIZE: u32 = 256 << 10;

/// What a tar entry occupies in the plain layer, from the first header that belongs to it to the end of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntrySpan {
    /// Plain offset of its first header; PAX and GNU extension headers count.
    pub begin: u64,
    /// Plain offset of its first data byte, behind all headers.
    pub data_off: u64,
    /// Length of its data in the plain layer, without padding.
    pub data_len: u64,
    /// [`name_hash`] of its path.
    pub name_hash: u64,
}

/// What lies at the current position.
#[derive(Clone, Copy, Debug)]
enum Region {
    /// Headers and small files.
    Run,
    /// Data of a large file, and its padding, up to this plain offset.
    Large { end: u64 },
    /// Bytes behind the archive.
    Rest,
}

/// Decides chunk ends from tar events, in order of their plain offsets.
///
/// Ends are appended to `ends` strictly increasing, and only once the bytes before them were announced by
/// [`Cutter::advance`]: a header that lies about a length produces no ends. Where the caller splits its calls to
/// [`Cutter::advance`] changes nothing.
#[derive(Clone, Debug)]
pub struct Cutter {
    chunk_size: u64,
    /// Where the open chunk begins.
    start: u64,
    region: Region,
}

impl Cutter {
    /// A cutter at plain offset 0.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when `chunk_size` is not a power of two from [`CHUNK_SIZE_MIN`] to [`CHUNK_SIZE_MAX`].
    pub fn new(chunk_size: u32) -> Result<Self, FormatError> {
        if !chunk_size.is_power_of_two() || !(CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&chunk_size) {
            let reason = format!("is not a power of two from {CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX} bytes");
            return Err(FormatError::malformed("chunk size", chunk_size, reason));
        }
        Ok(Self {
            chunk_size: u64::from(chunk_size),
            start: 0,
            region: Region::Run,
        })
    }

    /// Longest chunk in bytes: a full one and a joined rest.
    pub const fn max_len(&self) -> u64 {
        self.chunk_size + self.quarter()
    }

    /// Announces that all bytes before plain offset `to` were seen.
    pub fn advance(&mut self, to: u64, ends: &mut Vec<u64>) {
        loop {
            let end = match self.region {
                Region::Large { end } if end - self.start < self.max_len() => end,
                Region::Large { .. } | Region::Rest => self.start + self.chunk_size,
                // Reached only inside an entry whose extension headers alone are longer than a chunk.
                Region::Run => self.start + self.max_len(),
            };
            if to < end {
                return;
            }
            self.cut(end, ends);
            if matches!(self.region, Region::Large { end: last } if last == end) {
                self.region = Region::Run;
            }
        }
    }

    /// Announces an entry whose headers are complete, before any of its data.
    pub fn entry(&mut self, entry: EntrySpan, ends: &mut Vec<u64>) {
        self.advance(entry.data_off, ends);
        let headers = entry.data_off.saturating_sub(entry.begin);
        let large = entry.data_len >= self.chunk_size / 2;
        let in_run = if large {
            headers
        } else {
            headers.saturating_add(entry.data_len)
        };
        let run = entry.begin.saturating_sub(self.start);
        // The probability grows with the length of the entry, so that a run ends about a quarter of a chunk after the
        // minimum whatever the size of its files.
        let chosen = !large && run >= self.chunk_size / 2 && entry.name_hash % self.quarter() < in_run;
        if run > 0 && (chosen || run.saturating_add(in_run) > self.chunk_size) {
            self.cut(entry.begin, ends);
        }
        if large {
            if entry.data_off > self.start {
                self.cut(entry.data_off, ends);
            }
            let padded = entry.data_len.checked_next_multiple_of(BLOCK_LEN as u64);
            let end = entry.data_off.saturating_add(padded.unwrap_or(u64::MAX));
            self.region = Region::Large { end };
        }
    }

    /// Announces that the archive ends at plain offset `at`; whatever follows is not tar.
    pub fn end_of_archive(&mut self, at: u64, ends: &mut Vec<u64>) {
        self.advance(at, ends);
        self.region = Region::Rest;
    }

    /// Ends the last chunk at the plain length.
    pub fn finish(mut self, plain_len: u64, ends: &mut Vec<u64>) {
        self.advance(plain_len, ends);
        if plain_len > self.start {
            self.cut(plain_len, ends);
        }
    }

    const fn quarter(&self) -> u64 {
        self.chunk_size / 4
    }

    fn cut(&mut self, end: u64, ends: &mut Vec<u64>) {
        ends.push(end);
        self.start = end;
    }
}

/// Hash of an entry's path for [`EntrySpan::name_hash`]: 64-bit FNV-1a, with a `/` between components.
///
/// It is part of what makes chunks equal across images, so it never changes.
pub fn name_hash<'a>(components: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut hash = OFFSET_BASIS;
    for (position, component) in components.into_iter().enumerate() {
        let separator = if position == 0 { &b""[..] } else { b"/" };
        for byte in separator.iter().chain(component) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u32 = 64 << 10;
    const SIZE: u64 = CHUNK as u64;

    /// Lays entries of `(headers, data)` one behind the other, pads them, and cuts them.
    fn cut(entries: &[(u64, u64)], name_hash: u64) -> Vec<u64> {
        let mut cutter = Cutter::new(CHUNK).unwrap();
        let (mut ends, mut begin) = (Vec::new(), 0);
        for (headers, data_len) in entries {
            let data_off = begin + headers;
            cutter.entry(
                EntrySpan {
                    begin,
                    data_off,
                    data_len: *data_len,
                    name_hash,
                },
                &mut ends,
            );
            begin = (data_off + data_len).next_multiple_of(512);
        }
        cutter.finish(begin, &mut ends);
        ends
    }

    /// A hash that never asks for a cut, and one that always does.
    const NEVER: u64 = SIZE / 4 - 1;
    const ALWAYS: u64 = 0;

    #[test]
    fn only_sensible_chunk_sizes_are_taken() {
        for good in [CHUNK_SIZE_MIN, 128 << 10, CHUNK_SIZE_MAX] {
            assert_eq!(Cutter::new(good).unwrap().max_len(), u64::from(good) * 5 / 4);
        }
        for bad in [
            0,
            1,
            CHUNK_SIZE_MIN / 2,
            CHUNK_SIZE_MIN + 512,
            CHUNK_SIZE_MAX * 2,
            u32::MAX,
        ] {
            assert!(
                Cutter::new(bad)
                    .unwrap_err()
                    .to_string()
                    .contains(&bad.to_string())
            );
        }
    }

    #[test]
    fn large_data_is_cut_from_its_own_begin_to_its_own_end_and_padding() {
        let data = 3 * SIZE;
        assert_eq!(
            cut(&[(512, data)], NEVER),
            [512, 512 + SIZE, 512 + 2 * SIZE, 512 + data]
        );
        let end = 512 + SIZE + SIZE / 2 + 1;
        assert_eq!(
            cut(&[(512, end - 512)], NEVER),
            [512, 512 + SIZE, end.next_multiple_of(512)],
            "with its padding"
        );
    }

    #[test]
    fn a_short_rest_joins_the_last_chunk() {
        for (rest, joined) in [
            (0, true),
            (512, true),
            (SIZE / 4 - 512, true),
            (SIZE / 4, false),
            (SIZE / 2, false),
        ] {
            let end = 512 + 2 * SIZE + rest;
            let expected = if joined {
                vec![512, 512 + SIZE, end]
            } else {
                vec![512, 512 + SIZE, 512 + 2 * SIZE, end]
            };
            assert_eq!(cut(&[(512, end - 512)], NEVER), expected, "rest of {rest}");
        }
    }

    #[test]
    fn data_is_large_from_half_a_chunk_on() {
        assert_eq!(cut(&[(512, SIZE / 2)], NEVER), [512, 512 + SIZE / 2]);
        assert_eq!(cut(&[(512, SIZE / 2 - 512)], NEVER), [SIZE / 2]);
    }

    #[test]
    fn a_run_ends_before_the_entry_that_would_make_it_too_long() {
        let len = SIZE / 4 - 1024;
        assert_eq!(cut(&[(512, len - 512); 9], NEVER), [4 * len, 8 * len, 9 * len]);
    }

    #[test]
    fn a_run_ends_by_name_only_after_half_a_chunk() {
        let entry = (512, SIZE / 8 - 512);
        assert_eq!(cut(&[entry; 12], ALWAYS), [SIZE / 2, SIZE, SIZE * 3 / 2]);
        assert_eq!(cut(&[entry; 12], NEVER), [SIZE, SIZE * 3 / 2]);
    }

    #[test]
    fn headers_of_a_large_file_stay_with_the_run_before_it() {
        assert_eq!(cut(&[(512, 512), (1536, SIZE)], ALWAYS), [2560, 2560 + SIZE]);
        let full = [(512, SIZE / 2 - 1024), (512, SIZE / 2 - 512), (1024, SIZE)];
        let before = SIZE - 512;
        assert_eq!(
            cut(&full, NEVER),
            [before, before + 1024, before + 1024 + SIZE],
            "unless they do not fit"
        );
    }

    #[test]
    fn where_bytes_are_announced_changes_nothing() {
        let entry = EntrySpan {
            begin: 600,
            data_off: 200_000,
            data_len: 300_000,
            name_hash: 1,
        };
        let run = |step: u64| {
            let (mut cutter, mut ends) = (Cutter::new(CHUNK).unwrap(), Vec::new());
            (0..200_000)
                .step_by(usize::try_from(step).unwrap())
                .for_each(|to| cutter.advance(to, &mut ends));
            cutter.entry(entry, &mut ends);
            (200_000..600_000)
                .step_by(usize::try_from(step).unwrap())
                .for_each(|to| cutter.advance(to, &mut ends));
            cutter.end_of_archive(600_000, &mut ends);
            cutter.finish(1_000_000, &mut ends);
            ends
        };
        let ends = run(1);
        let end = 200_000 + 300_032;
        assert!(ends.contains(&200_000) && ends.contains(&end) && ends.last() == Some(&1_000_000));
        for step in [7, 512, 65_536, 150_000] {
            assert_eq!(run(step), ends, "announced every {step} bytes");
        }
    }
}
