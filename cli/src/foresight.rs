//! What an image without a profile is going to read when it starts, told by its config and its files.

use std::sync::Arc;

use sluice_format::Tree;
use sluice_format::startup::ImageFiles;
use sluice_storage::{LazyImage, PlainLayer};

use crate::container::RunConfig;

/// Has fetched what the command of an image is going to read, unless everything is here already: then nobody needs its `tree`. Blocks.
pub(crate) fn foresee(
    image: &LazyImage,
    layers: &[Arc<PlainLayer>],
    tree: impl FnOnce() -> anyhow::Result<Arc<Tree>>,
) {
    if layers.iter().all(|layer| layer.is_complete()) {
        return;
    }
    // A config that nobody can run is no concern of a mount.
    let config = RunConfig::parse(&image.config).unwrap_or_default();
    match tree() {
        Ok(tree) => PlainLayer::foresee(layers, ImageFiles::of(&tree, &config.startup())),
        Err(error) => tracing::debug!(%error, "the files of an image are not looked into"),
    }
}
