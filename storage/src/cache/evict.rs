//! Making room.
//!
//! One process at a time evicts (a lock on the file `evicting`). It lists what there is with the time of its last use: every chunk of
//! every layer, whole layers that the kernel was given once, blobs that were never complete, documents and records; leaves out what is pinned, leased, or open
//! in another process, and the documents of images whose layers are open; and removes the oldest until the goal is reached. Layers without a chunk lose their directory, and
//! an image tree goes with the last layer of its image. A layer that this host has streamed goes as a whole: one missing chunk of it costs as
//! much to fetch as all of them.
//!
//! A process opens layers that it does not use for as long as it looks at them. One that another process has open is
//! left alone altogether, so a reader there never finds its chunks gone.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use sluice_format::{ChainId, DiffId, Digest};

use super::disk::allocated;
use super::documents::DIRECTORIES;
use super::files::OpenFiles;
use super::layer::LayerFiles;
use super::pins::Pinned;
use super::{Cache, IMAGE_TREES, LAYERS, files, partial};
use crate::Error;
use crate::sync::lock;

/// Chunks that are removed under one hold of a layer's locks.
const BATCH: usize = 256;

/// Seconds for which a new image tree stays in any case.
const TREE_AGE: u64 = 60;

/// Rounds of listing and removing; what chunks free is known only afterwards, since blocks are shared.
const ROUNDS: usize = 3;

/// What an eviction is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Bytes on the disk that may stay.
    pub keep: u64,
    /// Only what was last used before this second after the epoch goes.
    pub used_before: Option<u64>,
}

/// What an eviction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Bytes on the disk before.
    pub before: u64,
    /// Bytes on the disk after.
    pub after: u64,
    /// Chunks that were removed.
    pub chunks: usize,
    /// Layers that were removed altogether.
    pub layers: usize,
    /// Another process was evicting, so nothing was done.
    pub busy: bool,
}

/// Something that can be removed.
#[derive(Debug)]
struct Victim {
    /// Second of its last use.
    used: u64,
    bytes: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Chunk { layer: DiffId, chunk: usize },
    Layer(DiffId),
    Document(PathBuf),
    Partial(PathBuf),
}

impl Cache {
    /// Removes what was used least lately until `goal` is reached or nothing more can go. Blocks on the disk.
    ///
    /// # Errors
    /// What hinders taking the lock for evictions. A layer that cannot be evicted from is skipped with a warning.
    pub fn evict(self: &Arc<Self>, goal: Goal) -> Result<Evicted, Error> {
        let what = |error| Error::io(format!("evict from {}", self.dir.display()), error);
        let turn = File::create(self.dir.join("evicting")).map_err(what)?;
        let before = self.shared.space.measure(&self.dir);
        let mut evicted = Evicted {
            before,
            after: before,
            ..Evicted::default()
        };
        if turn.try_lock().is_err() {
            evicted.busy = true;
            return Ok(evicted);
        }
        for _ in 0..ROUNDS {
            let chosen = self.choose(goal, evicted.after);
            if chosen.is_empty() {
                break;
            }
            let after = evicted.after;
            self.remove(chosen, &mut evicted);
            self.remove_lone_trees();
            evicted.after = self.shared.space.measure(&self.dir);
            if evicted.after >= after {
                break;
            }
        }
        Ok(evicted)
    }

    /// The oldest of what can go, as much as is too much.
    fn choose(self: &Arc<Self>, goal: Goal, used: u64) -> Vec<What> {
        let mut too_much = used.saturating_sub(goal.keep);
        if too_much == 0 {
            return Vec::new();
        }
        let mut pinned = Pinned::load(&self.dir, &self.documents);
        pinned.hold_images(&self.dir, &self.documents, |diff_id| self.is_in_use(diff_id));
        let mut victims = self.documents_that_can_go(&pinned);
        victims.extend(partial::list(&self.dir).into_iter().map(|left| Victim {
            used: left.used,
            bytes: left.disk_bytes,
            what: What::Partial(left.path),
        }));
        for diff_id in self.stored_layers() {
            if !pinned.layers.contains(&diff_id) {
                self.list_layer(diff_id, &mut victims);
            }
        }
        victims.retain(|victim| goal.used_before.is_none_or(|before| victim.used < before));
        victims.sort_by_key(|victim| victim.used);
        let mut chosen = Vec::new();
        for victim in victims {
            if too_much == 0 {
                break;
            }
            too_much = too_much.saturating_sub(victim.bytes);
            chosen.push(victim.what);
        }
        chosen
    }

    /// Whether anybody, here or in another process, has a layer open.
    fn is_in_use(&self, diff_id: &DiffId) -> bool {
        self.stored_layer(diff_id).is_some_and(|layer| {
            let alone = |files: &OpenFiles| files.presence.try_alone().is_ok_and(|alone| alone.is_some());
            let _leases = lock(layer.leases());
            Arc::strong_count(&layer) > 1 || !layer.files().is_some_and(alone)
        })
    }

    /// Adds what can go of a layer.
    fn list_layer(self: &Arc<Self>, diff_id: DiffId, victims: &mut Vec<Victim>) {
        let dir = self.layer_dir(&diff_id);
        let whole = |used: u32| Victim {
            used: used.into(),
            bytes: super::space::tree_allocated(&dir),
            what: What::Layer(diff_id),
        };
        let Some(layer) = self.stored_layer(&diff_id) else {
            victims.push(whole(0));
            return;
        };
        let goes_whole = layer.is_sealed() || self.documents.is_streamed(&diff_id);
        if goes_whole || layer.states().chunks(true).next().is_none() {
            if Arc::strong_count(&layer) == 1 {
                victims.push(whole(layer.stamps().last()));
            }
            return;
        }
        let chunk = |chunk: usize| Victim {
            used: layer.stamps().get(chunk).into(),
            bytes: layer.cuts().get(chunk).map_or(0, |cut| cut.plain_len.into()),
            what: What::Chunk {
                layer: diff_id,
                chunk,
            },
        };
        victims.extend(layer.states().chunks(true).map(chunk));
    }

    fn documents_that_can_go(&self, pinned: &Pinned) -> Vec<Victim> {
        let mut victims = Vec::new();
        for directory in DIRECTORIES {
            let entries = std::fs::read_dir(self.dir.join(directory));
            for entry in entries.into_iter().flatten().flatten() {
                let path = entry.path();
                if let Some(metadata) = entry.metadata().ok().filter(|_| !pinned.has_file(&path)) {
                    victims.push(Victim {
                        used: seconds(metadata.modified()),
                        bytes: allocated(&metadata),
                        what: What::Document(path),
                    });
                }
            }
        }
        victims
    }

    fn remove(self: &Arc<Self>, chosen: Vec<What>, evicted: &mut Evicted) {
        let mut chunks: HashMap<DiffId, Vec<usize>> = HashMap::new();
        for what in chosen {
            match what {
                What::Chunk { layer, chunk } => chunks.entry(layer).or_default().push(chunk),
                What::Layer(diff_id) => evicted.layers += usize::from(self.remove_layer(&diff_id)),
                What::Document(path) => drop(files::remove_if_there(&path)),
                What::Partial(path) => partial::remove(&path),
            }
        }
        for (diff_id, mut of_layer) in chunks {
            of_layer.sort_unstable();
            let Some(layer) = self.stored_layer(&diff_id) else {
                continue;
            };
            let left = match evict_chunks(&layer, &of_layer) {
                Ok(removed) => {
                    evicted.chunks += removed;
                    layer.states().chunks(true).next().is_some()
                }
                Err(error) => {
                    tracing::warn!(layer = %diff_id, %error, "chunks could not be evicted");
                    true
                }
            };
            drop(layer);
            if !left {
                evicted.layers += usize::from(self.remove_layer(&diff_id));
            }
        }
    }

    /// Removes the image trees of images whose layers are all gone. A tree that no record names stays while there are layers.
    fn remove_lone_trees(&self) {
        let (mut known, mut needed) = (HashSet::new(), HashSet::new());
        for (_, image) in self.documents.images() {
            let diff_ids = image.diff_ids();
            let Some(chain_id) = ChainId::of_stack(&diff_ids) else {
                continue;
            };
            if diff_ids.iter().any(|diff_id| self.layer_dir(diff_id).exists()) {
                needed.insert(chain_id.0.to_hex());
            }
            known.insert(chain_id.0.to_hex());
        }
        let any_layer = !self.stored_layers().is_empty();
        let trees = std::fs::read_dir(self.dir.join(IMAGE_TREES));
        for entry in trees.into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let lone = known.contains(&name) && !needed.contains(&name);
            // A mount that begins writes its tree before it opens its layers.
            let is_new = entry.metadata().is_ok_and(|metadata| {
                seconds(metadata.modified()).saturating_add(TREE_AGE) > self.shared.clock.now().into()
            });
            if (lone || !any_layer) && !is_new {
                drop(files::remove_if_there(&entry.path()));
            }
        }
    }

    /// The layers that have a directory.
    pub(super) fn stored_layers(&self) -> Vec<DiffId> {
        let entries = std::fs::read_dir(self.dir.join(LAYERS));
        let named = |entry: std::fs::DirEntry| {
            let digest = Digest::from_hex(entry.file_name().to_str()?).ok()?;
            Some(DiffId(digest))
        };
        entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(named)
            .collect()
    }

    /// Removes the directory of a layer that nobody uses; whether it is gone.
    fn remove_layer(&self, diff_id: &DiffId) -> bool {
        let open = lock(&self.open);
        let used = |(key, files): (&(DiffId, Digest), &Weak<LayerFiles>)| {
            key.0 == *diff_id && files.strong_count() > 0
        };
        if open.iter().any(used) {
            return false;
        }
        match files::remove(&self.layer_dir(diff_id)) {
            Ok(gone) => gone,
            Err(error) => {
                tracing::warn!(layer = %diff_id, %error, "a layer could not be removed from the cache");
                false
            }
        }
    }
}

/// Evicts chunks in batches; how many are gone.
fn evict_chunks(layer: &LayerFiles, chunks: &[usize]) -> io::Result<usize> {
    for batch in chunks.chunks(BATCH) {
        layer.evict(batch)?;
    }
    let gone = |chunk: &&usize| !layer.states().is_present(**chunk);
    Ok(chunks.iter().filter(gone).count())
}

fn seconds(time: io::Result<SystemTime>) -> u64 {
    let since = time.map(|time| time.duration_since(SystemTime::UNIX_EPOCH));
    since.map_or(0, |since| since.map_or(0, |since| since.as_secs()))
}
