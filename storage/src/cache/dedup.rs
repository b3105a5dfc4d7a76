//! Chunks that another layer of the cache has.
//!
//! A map from the first eight bytes of a chunk digest to the chunks that have it, of all layers in the directory, is built
//! when the first copy is asked for, from the files `cuts`: 16 bytes per chunk. A miss is one look into the map. A hit is read from
//! the other layer, verified as every read is, and stored. Reflinks are not tried: source and target would both have to
//! lie on block borders, and tar data is aligned to 512 bytes, so one pair in 64 does.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sluice_format::{DiffId, Limits};

use super::Cache;
use super::cached::CachedLayer;
use super::cuts::{Cut, Cuts};
use super::layer::{CUTS_FILE, LayerFiles};
use crate::sync::lock;

/// The map, and the layers that were opened to copy from.
#[derive(Debug, Default)]
pub(super) struct Copies {
    known: Mutex<Option<Known>>,
    sources: Mutex<Vec<Arc<LayerFiles>>>,
}

/// First bytes of a digest, number of a layer, number of a chunk in it.
type Entry = (u64, u32, u32);

#[derive(Debug, Default)]
struct Known {
    layers: Vec<DiffId>,
    numbers: HashMap<DiffId, u32>,
    chunks: BTreeSet<Entry>,
}

impl Known {
    fn add(&mut self, diff_id: DiffId, cuts: &Cuts) {
        if self.numbers.contains_key(&diff_id) {
            return;
        }
        let Ok(number) = u32::try_from(self.layers.len()) else {
            return;
        };
        self.layers.push(diff_id);
        self.numbers.insert(diff_id, number);
        let entry = |(chunk, cut): (u32, &Cut)| (short(cut), number, chunk);
        self.chunks.extend((0..).zip(cuts.iter()).map(entry));
    }

    /// The chunks that may have the digest of this one.
    fn like(&self, cut: &Cut) -> Vec<(DiffId, usize)> {
        let short = short(cut);
        let found = self.chunks.range((short, 0, 0)..=(short, u32::MAX, u32::MAX));
        found
            .filter_map(|(_, layer, chunk)| Some((*self.layers.get(*layer as usize)?, *chunk as usize)))
            .collect()
    }
}

fn short(cut: &Cut) -> u64 {
    let [first, ..] = cut.digest.0.as_bytes().as_chunks::<8>().0 else {
        return 0;
    };
    u64::from_le_bytes(*first)
}

impl Copies {
    /// Adds a layer that is used now, if the map is built.
    pub(super) fn add(&self, diff_id: DiffId, cuts: &Cuts) {
        if let Some(known) = lock(&self.known).as_mut() {
            known.add(diff_id, cuts);
        }
    }

    /// Closes the layers that were opened to copy from.
    pub(super) fn rest(&self) {
        let sources = std::mem::take(&mut *lock(&self.sources));
        drop(sources);
    }
}

impl CachedLayer {
    /// The bytes of a chunk that the cache does not have here but in another layer, or elsewhere in this one; they are kept
    /// here too. `None` when they must be fetched.
    pub fn copy_chunk(&self, chunk: usize) -> Option<Bytes> {
        let cut = *self.files.cuts().get(chunk)?;
        for (diff_id, at) in self.cache.chunks_like(&cut) {
            if diff_id == self.files.diff_id() && at == chunk {
                continue;
            }
            let Some(source) = self.cache.source(&diff_id) else {
                continue;
            };
            if source
                .cuts()
                .get(at)
                .is_none_or(|other| other.digest != cut.digest)
            {
                continue;
            }
            if let Some(bytes) = source.read_quietly(at) {
                self.files.store(chunk, &bytes);
                return Some(bytes);
            }
        }
        None
    }
}

impl Cache {
    fn chunks_like(&self, cut: &Cut) -> Vec<(DiffId, usize)> {
        let mut known = lock(&self.copies.known);
        known.get_or_insert_with(|| self.known_chunks()).like(cut)
    }

    fn known_chunks(&self) -> Known {
        let mut known = Known::default();
        for diff_id in self.stored_layers() {
            if let Some(cuts) = self.stored_cuts(&diff_id) {
                known.add(diff_id, &cuts);
            }
        }
        known
    }

    /// The cuts under which a layer lies in the directory.
    pub(super) fn stored_cuts(&self, diff_id: &DiffId) -> Option<Cuts> {
        let dir = self.layer_dir(diff_id);
        let header = super::files::header(&dir).ok()??;
        let bytes = std::fs::read(dir.join(CUTS_FILE)).ok()?;
        Cuts::parse(&bytes, &header.cuts, &Limits::default())
    }

    /// A layer to copy from; it stays open for the next chunks.
    fn source(&self, diff_id: &DiffId) -> Option<Arc<LayerFiles>> {
        let mut sources = lock(&self.copies.sources);
        if let Some(source) = sources.iter().find(|source| source.diff_id() == *diff_id) {
            return Some(source.clone());
        }
        let source = self.stored_layer(diff_id)?;
        sources.push(source.clone());
        Some(source)
    }
}
