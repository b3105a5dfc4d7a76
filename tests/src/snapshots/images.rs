//! Images for the engine of plain directories, and their labels.

use std::fs;
use std::path::Path;

use anyhow::Result;
use nix::sys::stat::{Mode, SFlag, mknod};
use sluice_format::{ChainId, DiffId, Digest};
use sluice_snapshotter::labels::{IMAGE_REFERENCE, LAYER_DIGEST, MANIFEST_DIGEST, TARGET};
use sluice_snapshotter::testing::DirectoryImages;

use super::Labels;

/// An image whose layer *i* has a file `layer-i` and its own version of `top`, and takes `layer-(i-2)` away.
#[derive(Clone, Debug)]
pub struct TestImage {
    /// Its reference.
    pub reference: String,
    /// Its layers, lowest first.
    pub layers: Vec<DiffId>,
}

impl TestImage {
    /// Adds an image with one layer for each of `lazy`; where that is false, the engine cannot serve the layer.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(engine: &DirectoryImages, name: &str, lazy: &[bool]) -> Result<Self> {
        let layer = |at: usize| DiffId(Digest::of(format!("{name} {at}").as_bytes()));
        let layers: Vec<DiffId> = (0..lazy.len()).map(layer).collect();
        let reference = format!("registry.example/{name}:1");
        engine.add_image(&reference, &layers)?;
        for (at, layer) in layers.iter().enumerate().filter(|(at, _)| lazy[*at]) {
            Self::fill(&engine.add_layer(*layer)?, at)?;
        }
        Ok(Self { reference, layers })
    }

    /// Writes layer `at` into an empty directory, or unpacks it on what is mounted there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn fill(directory: &Path, at: usize) -> Result<()> {
        fs::write(directory.join(format!("layer-{at}")), format!("{at}"))?;
        fs::write(directory.join("top"), format!("{at}"))?;
        if at >= 2 {
            let gone = directory.join(format!("layer-{}", at - 2));
            if gone.exists() {
                fs::remove_file(gone)?;
            } else {
                mknod(&gone, SFlag::S_IFCHR, Mode::empty(), 0)?;
            }
        }
        Ok(())
    }

    /// Names of the files that `depth` layers show.
    pub fn shown(depth: usize) -> Vec<String> {
        let mut names: Vec<String> = (depth.saturating_sub(2)..depth)
            .map(|at| format!("layer-{at}"))
            .collect();
        names.extend((depth > 0).then(|| "top".to_owned()));
        names
    }

    /// ChainID of the lowest `depth` layers; empty for none.
    pub fn chain_id(&self, depth: usize) -> String {
        ChainId::of_stack(&self.layers[..depth]).map_or_else(String::new, |chain| chain.to_string())
    }

    /// The labels with which containerd's CRI plugin asks for layer `at`.
    pub fn labels(&self, at: usize) -> Labels {
        let layer = self.layers[at].to_string();
        let manifest = Digest::of(self.reference.as_bytes()).to_string();
        Labels::from([
            (TARGET.to_owned(), self.chain_id(at + 1)),
            (IMAGE_REFERENCE.to_owned(), self.reference.clone()),
            (MANIFEST_DIGEST.to_owned(), manifest),
            (LAYER_DIGEST.to_owned(), layer),
        ])
    }
}
