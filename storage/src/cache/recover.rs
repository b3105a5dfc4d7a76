//! What a process that was killed leaves behind: bytes in the data file without bits.
//!
//! Whoever opens a layer alone compares the parts of the data file that are not holes with the bits. A chunk that is all
//! there and matches its digest was stored and not noted in time: it is taken over, and noted by the next flush. Anything
//! else is punched out, so no space leaks. The work is bounded by what fits between two flushes; a layer that was closed
//! in order costs some lseek calls.
//!
//! Bits without bytes need no work: a chunk is verified before its first use.

use std::io;
use std::ops::Range;

use super::cuts::{Cut, Cuts};
use super::files::OpenFiles;
use super::ranges::holes;
use super::states::ChunkStates;

/// The usual block of a file system. Blocks on the border of two chunks say nothing about either.
const BLOCK: u64 = 4096;

/// Makes the data file hold exactly what `states` says. Nobody else uses the files.
pub(super) fn recover(files: &OpenFiles, cuts: &Cuts, states: &ChunkStates) -> io::Result<()> {
    let mut unexplained = Vec::new();
    for data in files.data.data_ranges()? {
        let end = data.end.min(cuts.plain_len());
        for chunk in cuts.covering(data.start.min(end)..end) {
            let Some(cut) = cuts.get(chunk).filter(|_| !states.is_present(chunk)) else {
                continue;
            };
            if unexplained.last() != Some(&chunk) && has_own_blocks(cut, &data) {
                unexplained.push(chunk);
            }
        }
    }
    let mut adopted = 0usize;
    for chunk in &unexplained {
        adopted += usize::from(adopt(files, cuts, states, *chunk));
    }
    for hole in holes(cuts, &unexplained, &|chunk| states.is_present(chunk)) {
        files.data.punch(hole)?;
    }
    if !unexplained.is_empty() {
        tracing::debug!(
            unexplained = unexplained.len(),
            adopted,
            "a layer of the cache was not closed in order"
        );
    }
    Ok(())
}

/// Whether `data` has bytes in blocks that belong to this chunk alone, or all of a chunk that has no such block.
fn has_own_blocks(cut: &Cut, data: &Range<u64>) -> bool {
    let plain = cut.plain_range();
    let own = plain.start.div_ceil(BLOCK) * BLOCK..plain.end / BLOCK * BLOCK;
    if own.is_empty() {
        return data.start <= plain.start && plain.end <= data.end;
    }
    data.start < own.end && own.start < data.end
}

/// Takes a chunk over when its bytes are right.
fn adopt(files: &OpenFiles, cuts: &Cuts, states: &ChunkStates, chunk: usize) -> bool {
    let Some(cut) = cuts.get(chunk) else { return false };
    let mut plain = vec![0; cut.plain_len as usize];
    let right = files.data.read_at(&mut plain, cut.plain_off).is_ok() && cut.matches(&plain);
    right && states.store(chunk, || Ok::<(), io::Error>(())).is_ok()
}
