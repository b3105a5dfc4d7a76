//! What an image without a profile is going to read when it starts, told by its config and its files.

use std::sync::Arc;

use sluice_format::Tree;
use sluice_format::startup::ImageFiles;
use sluice_storage::{LazyImage, PlainLayer};

use crate::container::RunConfig;

/// Has fetched what the command of an image is going to read, unless everything is here already. Blocks.
pub(crate) fn foresee(image: &LazyImage, tree: &Tree, layers: &[Arc<PlainLayer>]) {
    if layers.iter().all(|layer| layer.is_complete()) {
        return;
    }
    // A config that nobody can run is no concern of a mount.
    let config = RunConfig::parse(&image.config).unwrap_or_default();
    PlainLayer::foresee(layers, ImageFiles::of(tree, &config.startup()));
}
