//! Proof that an image is what it says, and what another image says.
//!
//! Every blob is read. Layers are examined one by one (`layer`): blob digest, DiffID, every chunk, and the tree in the index
//! against the tar itself. The layers must stack into an image tree. Against another image (usually the source of a
//! conversion) the image IDs, the DiffIDs and the merged trees are compared (`trees`). The outcome is a list of problems;
//! an empty one is the proof.

mod layer;
mod trees;

use std::time::Instant;

use sluice_format::{LayerTree, Limits, Tree, merge::merge};
use sluice_storage::Platform;
use tokio::task::spawn_blocking;

use crate::convert::{ImagePlan, Plan, read_plan};
use crate::error::joined;
use crate::progress::Progress;
use crate::report::{CheckReport, CheckedImage, Outcome};
use crate::{Error, Source};

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// The one image of an image index to check; `None` checks all.
    pub platform: Option<Platform>,
    /// Bounds on what the image may contain.
    pub limits: Limits,
}

/// Reads the image `source` completely, and `against` too when it is given.
///
/// # Errors
/// What hinders reading; documents that are no image. What is wrong with the image itself is in the report.
pub async fn check(
    source: &Source,
    against: Option<&Source>,
    options: &CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport, Error> {
    let started = Instant::now();
    let checker = Checker { options, progress };
    let plan = checker.read_plan(source).await?;
    let other = match against {
        Some(other) => Some((other, checker.read_plan(other).await?)),
        None => None,
    };
    let mut problems = checker.check_copies(source, &plan).await?;
    let mut images = Vec::new();
    for image in plan.images() {
        let (mut checked, tree) = checker.check_image(source, image).await?;
        if let Some((other, other_plan)) = &other {
            match counterpart(image, other_plan) {
                Some(expected) => {
                    let found = checker.compare(image, tree.as_ref(), other, expected).await?;
                    checked.problems.extend(found);
                }
                None => checked
                    .problems
                    .push(format!("{other} has no image for its platform")),
            }
        }
        images.push(checked);
    }
    if let Some((other, other_plan)) = &other
        && other_plan.images().len() != images.len()
    {
        let (found, expected) = (images.len(), other_plan.images().len());
        problems.push(format!("holds {found} images, {other} {expected}"));
    }
    Ok(CheckReport {
        name: source.to_string(),
        against: against.map(ToString::to_string),
        digest: plan.digest(),
        images,
        problems,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The image of the other plan that should be the same: of the same image ID, else of the same platform.
fn counterpart<'a>(image: &ImagePlan, other: &'a Plan) -> Option<&'a ImagePlan> {
    let images = other.images();
    let same_id = images
        .iter()
        .find(|other| other.config.digest == image.config.digest);
    let same_platform = || images.iter().find(|other| other.platform == image.platform);
    same_id.or_else(same_platform).copied()
}

struct Checker<'a> {
    options: &'a CheckOptions,
    progress: &'a dyn Progress,
}

impl Checker<'_> {
    async fn read_plan(&self, source: &Source) -> Result<Plan, Error> {
        let platform = self.options.platform.as_ref();
        read_plan(source.repository(), source.name(), platform, &self.options.limits).await
    }

    /// Blobs of manifests that are not images.
    async fn check_copies(&self, source: &Source, plan: &Plan) -> Result<Vec<String>, Error> {
        let mut problems = Vec::new();
        for copy in plan.copies() {
            for blob in &copy.blobs {
                problems.extend(layer::examine_blob(source.repository(), blob).await?);
            }
        }
        Ok(problems)
    }

    /// Examines the layers and stacks their trees. No tree when one of them could not be read.
    async fn check_image(
        &self,
        source: &Source,
        image: &ImagePlan,
    ) -> Result<(CheckedImage, Option<Tree>), Error> {
        let stored_len = image.layers.iter().map(|layer| layer.descriptor.size).sum();
        self.progress.planned(image.layers.len(), stored_len);
        let mut checked = CheckedImage {
            platform: image.platform.clone(),
            digest: image.manifest.digest,
            image_id: image.config.digest.0,
            layers: Vec::new(),
            problems: Vec::new(),
        };
        let mut trees = Vec::new();
        for layer in &image.layers {
            let digest = layer.descriptor.digest;
            self.progress.layer_started(digest, layer.descriptor.size);
            let examined =
                layer::examine(source.repository(), layer, &self.options.limits, self.progress).await;
            let examined = examined.map_err(|error| error.of_layer(digest))?;
            self.progress.layer_finished(digest, Outcome::Kept);
            checked.layers.push(examined.report);
            trees.extend(examined.tree);
        }
        let mut tree = None;
        if trees.len() == image.layers.len() {
            match self.stack(trees).await? {
                Ok(merged) => tree = Some(merged),
                Err(reason) => checked
                    .problems
                    .push(format!("its layers cannot be stacked: {reason}")),
            }
        }
        Ok((checked, tree))
    }

    async fn stack(&self, trees: Vec<LayerTree>) -> Result<Result<Tree, String>, Error> {
        let limits = self.options.limits.clone();
        let merging = spawn_blocking(move || Ok(merge(trees, &limits).map_err(|error| error.to_string())));
        joined(merging.await)
    }

    /// What `image` does not have in common with the image that it should be.
    async fn compare(
        &self,
        image: &ImagePlan,
        tree: Option<&Tree>,
        other: &Source,
        expected: &ImagePlan,
    ) -> Result<Vec<String>, Error> {
        let mut problems = Vec::new();
        if image.config.digest != expected.config.digest {
            let (found, expected) = (image.config.digest, expected.config.digest);
            problems.push(format!("its image ID is {found}, that of {other} is {expected}"));
        }
        let diff_ids = |image: &ImagePlan| image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>();
        if diff_ids(image) != diff_ids(expected) {
            problems.push(format!("its DiffIDs are not those of {other}"));
        }
        let (read, expected_tree) = self.check_image(other, expected).await?;
        problems.extend(read.all_problems().map(|problem| format!("{other}: {problem}")));
        if let (Some(tree), Some(expected)) = (tree, &expected_tree) {
            problems.extend(trees::differences(expected, tree));
        }
        Ok(problems)
    }
}
