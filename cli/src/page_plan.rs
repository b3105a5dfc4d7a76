//! Which parts of which files a start is going to read, and having them in the page cache by then.
//!
//! A profile names plain ranges; the page cache belongs to files. So the ranges are looked up in the tree of the image. The kernel is asked for
//! them one chunk after the other, in the order in which chunks come, as soon as each is here
//! ([`sluice_fuse::page_reader`]). One start in [`LEARNS_OF`] is left alone, because what a program asks for itself is seen only there.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sluice_format::profile::Demand;
use sluice_format::{ChunkTable, DiffId, Profile, Tree};
use sluice_fuse::PageReader;
use sluice_storage::PlainLayer;
use sluice_storage::profile::{self, PlannedChunk};

use crate::files_by_place::{FilePart, FilesByPlace};
use crate::wiring;

/// Of so many starts one is not read ahead of.
const LEARNS_OF: u64 = 8;

/// Bytes and parts of files that are read ahead for one start at most: a profile may come from anybody.
const MOST: u64 = 512 << 20;
const MOST_PARTS: usize = 1 << 15;

/// Parts of files, by the chunk that has their bytes, in the order in which chunks are fetched.
#[derive(Debug)]
pub(crate) struct PagePlan {
    files: FilesByPlace,
    chunks: Vec<(PlannedChunk, Vec<FilePart>)>,
}

/// Whether this start is one to learn from.
pub(crate) fn learns() -> bool {
    RandomState::new().hash_one(()).is_multiple_of(LEARNS_OF)
}

impl PagePlan {
    /// What earlier starts demanded of an image of these layers, lowest first, and this tree.
    pub(crate) fn new(known: &Profile, layers: &[(DiffId, &ChunkTable)], tree: &Tree) -> Self {
        let demands = layers.iter().map(|(diff_id, _)| demands_of(known, diff_id));
        let demands: Vec<&[Demand]> = demands.collect();
        let is_demanded = |device: u16, plain: &Range<u64>| {
            let layer = usize::from(device)
                .checked_sub(1)
                .and_then(|layer| demands.get(layer));
            layer.is_some_and(|demands| within(demands, plain).next().is_some())
        };
        let files = FilesByPlace::new(tree, is_demanded);
        let mut chunks = Vec::new();
        let (mut left, mut parts_left) = (MOST, MOST_PARTS);
        for planned in profile::plan(known, layers) {
            let cut = &layers[planned.layer].1.chunks()[planned.chunk];
            let parts = parts_of(&files, planned.layer, &cut.plain_range(), demands[planned.layer]);
            let len: u64 = parts.iter().map(|part| part.range.end - part.range.start).sum();
            left = left.saturating_sub(len);
            parts_left = parts_left.saturating_sub(parts.len());
            if left == 0 || parts_left == 0 {
                break;
            }
            if !parts.is_empty() {
                chunks.push((planned, parts));
            }
        }
        Self { files, chunks }
    }

    /// Follows the plan for what is mounted on `target`, but no longer than `until`. What hinders it is no error of a start.
    pub(crate) async fn follow(
        self,
        layers: Vec<Arc<PlainLayer>>,
        target: &Path,
        until: impl Future<Output = ()>,
    ) {
        if let Err(error) = self.try_follow(&layers, target, until).await {
            tracing::debug!(%error, target = %target.display(), "no more pages are read ahead");
        }
    }

    async fn try_follow(
        self,
        layers: &[Arc<PlainLayer>],
        target: &Path,
        until: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        let exe = Path::new(wiring::THIS_PROGRAM);
        let mut reader = PageReader::spawn(exe, &[wiring::PAGE_READER], target)?;
        let read = tokio::select! {
            read = self.read(layers, &mut reader) => read,
            () = until => Ok(()),
        };
        let ended = reader.end().await;
        read?;
        Ok(ended?)
    }

    async fn read(&self, layers: &[Arc<PlainLayer>], reader: &mut PageReader) -> anyhow::Result<()> {
        for (planned, parts) in &self.chunks {
            layers[planned.layer].arrival(planned.chunk).await?;
            let named = |part: &FilePart| (self.files.path(part.file), part.range.clone());
            reader.read(parts.iter().map(named)).await?;
        }
        Ok(reader.finish().await?)
    }
}

fn demands_of<'a>(known: &'a Profile, diff_id: &DiffId) -> &'a [Demand] {
    let same = known.layers().iter().find(|layer| layer.diff_id == *diff_id);
    same.map_or(&[], |layer| &layer.demands)
}

/// The demands that touch a range.
fn within<'a>(demands: &'a [Demand], plain: &Range<u64>) -> impl Iterator<Item = &'a Demand> + use<'a> {
    let end = plain.end;
    let from = demands.partition_point(|demand| demand.plain_range().end <= plain.start);
    demands[from..]
        .iter()
        .take_while(move |demand| demand.plain_off < end)
}

/// The parts of files whose bytes lie in a chunk and are demanded.
fn parts_of(files: &FilesByPlace, layer: usize, chunk: &Range<u64>, demands: &[Demand]) -> Vec<FilePart> {
    let Ok(device) = u16::try_from(layer + 1) else {
        return Vec::new();
    };
    // What starts have not demanded for a while comes last, if ever.
    let certain = within(demands, chunk).filter(|demand| demand.missed <= demand.seen);
    let wanted =
        certain.map(|demand| demand.plain_off.max(chunk.start)..demand.plain_range().end.min(chunk.end));
    wanted
        .flat_map(|wanted| files.within(device, &wanted).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests;
