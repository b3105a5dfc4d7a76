//! What starts of any image read of a layer.
//!
//! Images are built on the same lower layers, and what a start of one reads of these, such as the loader and an interpreter with its first modules, a start
//! of another one reads too. So what a start read of each layer is kept by DiffID as well, and an image that was never started here borrows from those that were.
//! Only what this host has seen is lent, never a profile that came from elsewhere.
//!
//! ```text
//! profiles/layers/<DiffID>       a profile document of one layer, with the DiffID in the place of the image ID
//! ```

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sluice_format::profile::{Demand, ProfileLayer};
use sluice_format::{DiffId, Digest, Limits, Profile};

use super::merge::merge;
use super::recording::{EndReason, Recording};
use super::store::ProfileStore;
use crate::Error;

/// Layers remembered; that of which a start was seen least lately goes first.
const LAYERS_MAX: usize = 1024;
/// A demand is lent when at least one start in so many had it.
const LENT_SHARE: u32 = 2;

/// The profiles of layers of one cache directory. All calls block on the disk for a moment.
#[derive(Clone, Debug)]
pub struct LayerProfiles {
    store: ProfileStore,
    layers_max: usize,
}

impl LayerProfiles {
    pub(super) fn in_directory(dir: PathBuf) -> Self {
        Self {
            store: ProfileStore::in_directory(dir),
            layers_max: LAYERS_MAX,
        }
    }

    /// Keeps what a start read of each of its layers.
    ///
    /// # Errors
    /// What hinders writing.
    pub fn learn(&self, recording: &Recording) -> Result<(), Error> {
        if recording.end() == EndReason::TooMuch {
            return Ok(());
        }
        for layer in recording.each_layer() {
            let known = self.store.load(&layer.image_id());
            if let Some(better) = merge(known.as_ref(), &layer)? {
                self.store.save(&better)?;
            }
            if known.is_none() {
                self.make_room();
            }
        }
        Ok(())
    }

    /// A profile for an image without one, of what starts of other images read of its layers. `None` when nothing is known.
    pub fn borrow_for(&self, image_id: Digest, layers: &[DiffId]) -> Option<Profile> {
        let mut lent: Vec<ProfileLayer> = Vec::new();
        let mut runs = 0;
        for diff_id in layers {
            let known = self.store.load(&diff_id.0);
            let Some(known) = known.filter(|_| lent.iter().all(|layer| layer.diff_id != *diff_id)) else {
                continue;
            };
            let usual =
                |demand: &&Demand| u32::from(demand.seen) * LENT_SHARE >= known.runs().min(u8::MAX.into());
            let demands = known.layers().iter().filter(|layer| layer.diff_id == *diff_id);
            let demands: Vec<_> = demands
                .flat_map(|layer| &layer.demands)
                .filter(usual)
                .copied()
                .collect();
            if !demands.is_empty() {
                runs = known.runs().max(runs);
                lent.push(ProfileLayer {
                    diff_id: *diff_id,
                    demands,
                });
            }
        }
        let profile = (!lent.is_empty()).then(|| Profile::new(image_id, runs, lent, &Limits::default()));
        profile?.ok()
    }

    /// Removes what was used least lately, if there is too much.
    fn make_room(&self) {
        let age = |path: &Path| path.metadata().and_then(|file| file.modified());
        let Ok(entries) = std::fs::read_dir(self.store.directory()) else {
            return;
        };
        let mut files: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| Some((age(&entry.path()).ok()?, entry.path())))
            .collect();
        files.sort();
        for (_, path) in files.iter().take(files.len().saturating_sub(self.layers_max)) {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::debug!(file = %path.display(), %error, "the profile of a layer stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::recording::{LayerDemands, Touch};
    use super::*;

    fn diff_id(name: &str) -> DiffId {
        DiffId(Digest::of(name.as_bytes()))
    }

    /// A start of an image: of each layer the 4 KiB blocks that it read.
    fn start(image: &str, end: EndReason, layers: &[(&str, &[u64])]) -> Recording {
        let touch = |block: &u64| Touch {
            plain: block * 4096..(block + 1) * 4096,
            ms: 100,
        };
        let layer = |(name, blocks): &(&str, &[u64])| LayerDemands {
            diff_id: diff_id(name),
            observed: true,
            touches: blocks.iter().map(touch).collect(),
        };
        Recording::new(
            Digest::of(image.as_bytes()),
            end,
            layers.iter().map(layer).collect(),
        )
    }

    fn profiles() -> (tempfile::TempDir, LayerProfiles) {
        let dir = tempfile::tempdir().unwrap();
        let profiles = LayerProfiles::in_directory(dir.path().join("layers"));
        (dir, profiles)
    }

    /// The blocks that an image of these layers borrows.
    fn borrowed(profiles: &LayerProfiles, layers: &[&str]) -> Vec<(DiffId, Vec<u64>)> {
        let diff_ids: Vec<_> = layers.iter().copied().map(diff_id).collect();
        let profile = profiles.borrow_for(Digest::of(b"new"), &diff_ids);
        let layers = profile.iter().flat_map(Profile::layers);
        let blocks = |layer: &ProfileLayer| {
            layer
                .demands
                .iter()
                .map(|demand| demand.plain_off / 4096)
                .collect()
        };
        layers.map(|layer| (layer.diff_id, blocks(layer))).collect()
    }

    #[test]
    fn an_image_borrows_what_others_read_of_the_layers_that_it_shares() {
        let (_dir, profiles) = profiles();
        assert!(borrowed(&profiles, &["base", "own"]).is_empty());
        let first = start("a", EndReason::Quiet, &[("base", &[1, 5]), ("a", &[0])]);
        profiles.learn(&first).unwrap();
        assert_eq!(
            borrowed(&profiles, &["base", "own"]),
            [(diff_id("base"), vec![1, 5])]
        );
        assert_eq!(
            borrowed(&profiles, &["base", "base"]),
            [(diff_id("base"), vec![1, 5])]
        );
        assert!(borrowed(&profiles, &["own"]).is_empty());
    }

    #[test]
    fn what_few_starts_read_is_not_lent() {
        let (_dir, profiles) = profiles();
        for at in 0..3 {
            let name = format!("image {at}");
            let often: &[u64] = if at == 0 { &[1, 5, 9] } else { &[1, 5] };
            profiles
                .learn(&start(&name, EndReason::Quiet, &[("base", often)]))
                .unwrap();
        }
        assert_eq!(borrowed(&profiles, &["base"]), [(diff_id("base"), vec![1, 5])]);
    }

    #[test]
    fn reading_everything_teaches_nothing() {
        let (_dir, profiles) = profiles();
        let all = start("a", EndReason::TooMuch, &[("base", &[1, 2, 3])]);
        profiles.learn(&all).unwrap();
        assert!(borrowed(&profiles, &["base"]).is_empty());
    }

    #[test]
    fn the_number_of_layers_is_bounded() {
        let (_dir, mut profiles) = profiles();
        profiles.layers_max = 3;
        for at in 0..9 {
            let name = format!("layer {at}");
            let layers: [(&str, &[u64]); 1] = [(&name, &[1])];
            profiles.learn(&start("a", EndReason::Quiet, &layers)).unwrap();
        }
        assert_eq!(std::fs::read_dir(profiles.store.directory()).unwrap().count(), 3);
    }
}
