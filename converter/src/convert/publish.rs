//! The new documents: manifests after all their blobs, image indexes after their manifests, the tag last.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sluice_format::{Digest, artifact};
use sluice_storage::{Manifest, ManifestName};

use super::documents::{self, NewLayer};
use super::layers::{ConvertedLayer, ConvertedLayers};
use super::plan::{CopyPlan, ImagePlan, IndexPlan, Plan};
use crate::report::ImageReport;
use crate::transfer::transfer;
use crate::{Error, Source, Target};

/// Where a document stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The image's name leads to it.
    Root,
    /// An image index names it.
    InIndex,
}

/// A stored document as its parent names it.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) stored_len: u64,
}

/// Stores documents; collects what the report says of the images.
#[derive(Debug)]
pub(crate) struct Publisher<'a> {
    pub(crate) source: &'a Source,
    pub(crate) target: &'a Target,
    pub(crate) layers: &'a ConvertedLayers,
    pub(crate) images: Vec<ImageReport>,
}

impl Publisher<'_> {
    /// Stores `plan` with everything it names.
    ///
    /// # Errors
    /// What hinders reading or writing.
    pub(crate) fn publish<'s>(
        &'s mut self,
        plan: &'s Plan,
        place: Place,
    ) -> BoxFuture<'s, Result<Published, Error>> {
        Box::pin(async move {
            match plan {
                Plan::Image(image) => self.publish_image(image, place).await,
                Plan::Copy(copy) => self.publish_copy(copy, place).await,
                Plan::Index(index) => self.publish_index(index, place).await,
            }
        })
    }

    async fn publish_image(&mut self, image: &ImagePlan, place: Place) -> Result<Published, Error> {
        transfer(self.source, self.target, &image.config, &|_| ()).await?;
        let layers = self.layers_of(image)?;
        let new: Vec<NewLayer> = layers.iter().map(|layer| named(layer)).collect();
        let document = documents::replace_layers(&image.document, &new);
        let bytes = documents::to_bytes(&image.manifest, &image.document, &document)?;
        let reports = layers.iter().map(|layer| layer.report.clone()).collect();
        let published = self
            .put(&image.manifest, artifact::OCI_MANIFEST, bytes, place)
            .await?;
        self.images.push(ImageReport {
            platform: image.platform.clone(),
            source_digest: image.manifest.digest,
            digest: published.digest,
            image_id: image.config.digest.0,
            layers: reports,
        });
        Ok(published)
    }

    fn layers_of(&self, image: &ImagePlan) -> Result<Vec<&ConvertedLayer>, Error> {
        let converted = |layer: &super::plan::SourceLayer| {
            let missing = || Error::document("layer", "was not converted").of_layer(layer.descriptor.digest);
            self.layers.get(&layer.key()).ok_or_else(missing)
        };
        image.layers.iter().map(converted).collect()
    }

    async fn publish_copy(&self, copy: &CopyPlan, place: Place) -> Result<Published, Error> {
        for blob in &copy.blobs {
            let moved = transfer(self.source, self.target, blob, &|_| ()).await;
            moved.map_err(|error| error.of_layer(blob.digest).of_manifest(copy.manifest.digest))?;
        }
        let media_type = &copy.manifest.media_type;
        self.put(&copy.manifest, media_type, copy.manifest.bytes.clone(), place)
            .await
    }

    async fn publish_index(&mut self, index: &IndexPlan, place: Place) -> Result<Published, Error> {
        let mut document = index.document.clone();
        let mut renamed = Vec::new();
        for (at, plan) in index.entries.iter().enumerate() {
            let entry = self.publish(plan, Place::InIndex).await?;
            let digest = entry.digest.to_string();
            documents::replace_entry(
                &mut document["manifests"][at],
                &entry.media_type,
                &digest,
                entry.stored_len,
            );
            renamed.push((plan.digest().to_string(), digest));
        }
        documents::follow_references(&mut document, &renamed);
        if document != index.document && documents::media_type(&document) == artifact::DOCKER_LIST {
            document["mediaType"] = artifact::OCI_INDEX.into();
        }
        let bytes = documents::to_bytes(&index.manifest, &index.document, &document)?;
        self.put(&index.manifest, artifact::OCI_INDEX, bytes, place).await
    }

    /// Stores a document; an unchanged one keeps the media type that it had.
    async fn put(
        &self,
        old: &Manifest,
        new_media_type: &str,
        bytes: Bytes,
        place: Place,
    ) -> Result<Published, Error> {
        let digest = Digest::of(&bytes);
        let media_type = if digest == old.digest {
            &old.media_type
        } else {
            new_media_type
        };
        let stored_len = bytes.len() as u64;
        match place {
            Place::Root => self.target.put_root(media_type, bytes).await?,
            Place::InIndex => {
                let name = ManifestName::Digest(digest);
                self.target
                    .repository()
                    .put_manifest(&name, media_type, bytes)
                    .await?;
            }
        }
        Ok(Published {
            media_type: media_type.to_owned(),
            digest,
            stored_len,
        })
    }
}

fn named(layer: &ConvertedLayer) -> NewLayer {
    NewLayer {
        media_type: artifact::OCI_LAYER_ZSTD,
        digest: layer.report.digest,
        stored_len: layer.report.stored_len,
        location: Some(layer.location),
    }
}
