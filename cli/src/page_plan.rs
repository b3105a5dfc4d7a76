//! Which parts of which files a start is going to read, and having them in the page cache by then.
//!
//! A profile names plain ranges; the page cache belongs to files. So the ranges are looked up in the tree of the image. The kernel is asked for
//! them one chunk after the other, in the order in which chunks come, as soon as each is here
//! ([`sluice_fuse::page_reader`]). One start in [`LEARNS_OF`] is left alone, because what a program asks for itself is seen only there.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluice_format::profile::Demand;
use sluice_format::tree::{Extent, ExtentSource};
use sluice_format::{ChunkTable, DiffId, EntryName, NodeId, NodeKind, Profile, Tree};
use sluice_fuse::PageReader;
use sluice_storage::PlainLayer;
use sluice_storage::profile::{self, PlannedChunk};

use crate::wiring;

/// Of so many starts one is not read ahead of.
const LEARNS_OF: u64 = 8;

/// Bytes and parts of files that are read ahead for one start at most: a profile may come from anybody.
const MOST: u64 = 512 << 20;
const MOST_PARTS: usize = 1 << 15;

/// Parts of files, by the chunk that has their bytes, in the order in which chunks are fetched.
#[derive(Clone, Debug, Default)]
pub(crate) struct PagePlan {
    paths: Vec<PathBuf>,
    chunks: Vec<(PlannedChunk, Vec<Part>)>,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    path: usize,
    range: Range<u64>,
}

/// Plain bytes that are bytes of a file.
#[derive(Debug)]
struct Piece {
    plain: Range<u64>,
    file_off: u64,
    path: usize,
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
        let mut found = Files::find(tree, &demands);
        let mut plan = Self {
            paths: std::mem::take(&mut found.paths),
            chunks: Vec::new(),
        };
        let (mut left, mut parts_left) = (MOST, MOST_PARTS);
        for planned in profile::plan(known, layers) {
            let cut = &layers[planned.layer].1.chunks()[planned.chunk];
            let parts = found.parts(planned.layer, &cut.plain_range(), demands[planned.layer]);
            let len: u64 = parts.iter().map(|part| part.range.end - part.range.start).sum();
            left = left.saturating_sub(len);
            parts_left = parts_left.saturating_sub(parts.len());
            if left == 0 || parts_left == 0 {
                break;
            }
            if !parts.is_empty() {
                plan.chunks.push((planned, parts));
            }
        }
        plan
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
        reader.end().await?;
        read
    }

    async fn read(&self, layers: &[Arc<PlainLayer>], reader: &mut PageReader) -> anyhow::Result<()> {
        for (planned, parts) in &self.chunks {
            layers[planned.layer].arrival(planned.chunk).await?;
            let parts = parts.iter();
            let parts = parts.map(|part| (self.paths[part.path].as_path(), part.range.clone()));
            reader.read(parts).await?;
        }
        Ok(reader.finish().await?)
    }
}

fn demands_of<'a>(known: &'a Profile, diff_id: &DiffId) -> &'a [Demand] {
    let same = known.layers().iter().find(|layer| layer.diff_id == *diff_id);
    same.map_or(&[], |layer| &layer.demands)
}

fn below(directory: &Path, name: &EntryName) -> PathBuf {
    directory.join(OsStr::from_bytes(name.as_bytes()))
}

/// The demands that touch a range.
fn within<'a>(demands: &'a [Demand], plain: &Range<u64>) -> impl Iterator<Item = &'a Demand> + use<'a> {
    let end = plain.end;
    let from = demands.partition_point(|demand| demand.plain_range().end <= plain.start);
    demands[from..]
        .iter()
        .take_while(move |demand| demand.plain_off < end)
}

/// The files that have demanded bytes.
#[derive(Debug, Default)]
struct Files {
    paths: Vec<PathBuf>,
    /// Of each layer, in plain order.
    pieces: HashMap<usize, Vec<Piece>>,
}

impl Files {
    fn find(tree: &Tree, demands: &[&[Demand]]) -> Self {
        let mut files = Self::default();
        let mut seen = vec![false; tree.nodes().len()];
        let mut directories = vec![(NodeId::ROOT, PathBuf::new())];
        while let Some((id, path)) = directories.pop() {
            let entries = tree
                .directory(id)
                .into_iter()
                .flat_map(|directory| &directory.entries);
            for (name, child) in entries {
                match &tree.node(*child).kind {
                    NodeKind::Directory(_) => directories.push((*child, below(&path, name))),
                    NodeKind::Regular(content) if !std::mem::replace(&mut seen[child.0 as usize], true) => {
                        files.add(&content.extents, demands, || below(&path, name));
                    }
                    _ => {}
                }
            }
        }
        for pieces in files.pieces.values_mut() {
            pieces.sort_unstable_by_key(|piece| piece.plain.start);
        }
        files
    }

    fn add(&mut self, extents: &[Extent], demands: &[&[Demand]], path: impl FnOnce() -> PathBuf) {
        let at = self.paths.len();
        let mut found = false;
        for extent in extents {
            let ExtentSource::Plain { device, plain_off } = extent.source else {
                continue;
            };
            let layer = usize::from(device).wrapping_sub(1);
            let plain = plain_off..plain_off.saturating_add(extent.len);
            let is_demanded = demands
                .get(layer)
                .is_some_and(|demands| within(demands, &plain).next().is_some());
            if is_demanded {
                found = true;
                self.pieces.entry(layer).or_default().push(Piece {
                    plain,
                    file_off: extent.file_off,
                    path: at,
                });
            }
        }
        if found {
            self.paths.push(path());
        }
    }

    /// The parts of files whose bytes lie in a chunk and are demanded.
    fn parts(&self, layer: usize, chunk: &Range<u64>, demands: &[Demand]) -> Vec<Part> {
        let Some(pieces) = self.pieces.get(&layer) else {
            return Vec::new();
        };
        let mut parts: Vec<Part> = Vec::new();
        // What starts have not demanded for a while comes last, if ever.
        let certain = within(demands, chunk).filter(|demand| demand.missed <= demand.seen);
        for demand in certain {
            let wanted = demand.plain_off.max(chunk.start)..demand.plain_range().end.min(chunk.end);
            let from = pieces.partition_point(|piece| piece.plain.end <= wanted.start);
            let pieces = pieces[from..]
                .iter()
                .take_while(|piece| piece.plain.start < wanted.end);
            parts.extend(pieces.map(|piece| piece.part(&wanted)));
        }
        parts
    }
}

impl Piece {
    fn part(&self, wanted: &Range<u64>) -> Part {
        let start = wanted.start.max(self.plain.start) - self.plain.start;
        let end = wanted.end.min(self.plain.end) - self.plain.start;
        Part {
            path: self.path,
            range: self.file_off + start..self.file_off + end,
        }
    }
}

#[cfg(test)]
mod tests;
