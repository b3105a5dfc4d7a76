//! The distinct layers of all images, several under way at once.
//!
//! A layer that several manifests share is converted once. Large layers begin first, so that the last one to end is a small
//! one. The order changes nothing about the result: a blob depends on its plain bytes, level and chunk size only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sluice_format::{BlobDigest, DiffId, IndexLocation, Limits};
use sluice_storage::decompress::Compression;
use sluice_storage::stream_whole;

use super::kept::{self, FoundIndex};
use super::plan::{Plan, SourceLayer};
use crate::progress::Progress;
use crate::recompress::{Expected, RecompressedLayer, Recompressor};
use crate::report::{LayerReport, Outcome};
use crate::transfer::{Moved, transfer};
use crate::{Error, Source, Target};

/// A layer as the new manifest names it.
#[derive(Debug)]
pub(crate) struct ConvertedLayer {
    pub(crate) report: LayerReport,
    pub(crate) location: IndexLocation,
    /// The encoded index; several times smaller than its parsed form.
    pub(crate) index: Bytes,
}

/// The converted layers by blob digest and DiffID of their sources.
pub(crate) type ConvertedLayers = BTreeMap<(BlobDigest, DiffId), ConvertedLayer>;

/// Converts layers from one place to another.
#[derive(Debug)]
pub(crate) struct LayerConverter<'a> {
    pub(crate) source: &'a Source,
    pub(crate) target: &'a Target,
    pub(crate) recompressor: &'a Recompressor,
    pub(crate) limits: &'a Limits,
    pub(crate) progress: &'a dyn Progress,
}

impl LayerConverter<'_> {
    /// Converts the layers of all images in `plan`, at most `in_flight` at once. The first failure stops all.
    ///
    /// # Errors
    /// [`Error::Layer`] naming the layer.
    pub(crate) async fn convert_all(&self, plan: &Plan, in_flight: usize) -> Result<ConvertedLayers, Error> {
        let layers = distinct(plan);
        let stored_len = layers.iter().map(|layer| layer.descriptor.size).sum();
        self.progress.planned(layers.len(), stored_len);
        let conversions = layers.into_iter().map(|layer| async move {
            let converted = self.convert(&layer).await;
            let converted = converted.map_err(|error| error.of_layer(layer.descriptor.digest))?;
            Ok((layer.key(), converted))
        });
        stream::iter(conversions)
            .buffer_unordered(in_flight)
            .try_collect()
            .await
    }

    async fn convert(&self, layer: &SourceLayer) -> Result<ConvertedLayer, Error> {
        let digest = layer.descriptor.digest;
        self.progress.layer_started(digest, layer.descriptor.size);
        let found = kept::find_index(self.source.repository(), layer, self.limits).await?;
        let converted = match found {
            Some(Ok(index)) => self.keep(layer, index).await?,
            Some(Err(reason)) => {
                let warning = format!("the layer index that it has is not usable and was replaced: {reason}");
                self.recompress(layer, vec![warning]).await?
            }
            None => self.recompress(layer, Vec::new()).await?,
        };
        self.progress.layer_finished(digest, converted.report.outcome);
        Ok(converted)
    }

    async fn keep(&self, layer: &SourceLayer, found: FoundIndex) -> Result<ConvertedLayer, Error> {
        let digest = layer.descriptor.digest;
        let advanced = |len| self.progress.layer_advanced(digest, len);
        let moved = transfer(self.source, self.target, &layer.descriptor, &advanced).await?;
        let report = LayerReport {
            source_digest: digest,
            source_stored_len: layer.descriptor.size,
            digest,
            stored_len: layer.descriptor.size,
            index_stored_len: found.location.stored_len,
            diff_id: layer.diff_id,
            plain_len: found.index.chunks.plain_len(),
            chunks: found.index.chunks.chunks().len(),
            outcome: match moved {
                Moved::Copied => Outcome::Kept,
                Moved::TakenOver | Moved::Present => Outcome::Mounted,
            },
            warnings: Vec::new(),
        };
        Ok(ConvertedLayer {
            report,
            location: found.location,
            index: found.bytes,
        })
    }

    async fn recompress(
        &self,
        layer: &SourceLayer,
        mut warnings: Vec<String>,
    ) -> Result<ConvertedLayer, Error> {
        let descriptor = &layer.descriptor;
        let expected = Expected {
            blob_digest: Some(descriptor.digest),
            stored_len: Some(descriptor.size),
            diff_id: Some(layer.diff_id),
        };
        let advanced = |len| self.progress.layer_advanced(descriptor.digest, len);
        let source = stream_whole(self.source.repository().open_blob(descriptor).as_ref()).await?;
        let target = self.target.repository().begin_blob().await?;
        let new = self
            .recompressor
            .run(source, &expected, target, &advanced)
            .await?;
        warnings.extend(media_type_warning(&descriptor.media_type, new.compression));
        Ok(converted(layer, new, warnings))
    }
}

fn converted(layer: &SourceLayer, new: RecompressedLayer, mut warnings: Vec<String>) -> ConvertedLayer {
    warnings.extend(new.warnings);
    let report = LayerReport {
        source_digest: layer.descriptor.digest,
        source_stored_len: layer.descriptor.size,
        digest: new.digest,
        stored_len: new.stored_len,
        index_stored_len: new.location.stored_len,
        diff_id: layer.diff_id,
        plain_len: new.plain_len,
        chunks: new.chunks,
        outcome: Outcome::Converted,
        warnings,
    };
    ConvertedLayer {
        report,
        location: new.location,
        index: new.index,
    }
}

/// A line for the user when the bytes are not what the media type says.
fn media_type_warning(media_type: &str, found: Compression) -> Option<String> {
    let said = Compression::of_media_type(media_type)?;
    (said != found).then(|| {
        format!(
            "its media type says {}, its bytes are {}",
            said.name(),
            found.name()
        )
    })
}

/// Each layer once, the largest first.
fn distinct(plan: &Plan) -> Vec<SourceLayer> {
    let mut seen = HashSet::new();
    let all = plan.images().into_iter().flat_map(|image| &image.layers);
    let mut layers: Vec<_> = all.filter(|layer| seen.insert(layer.key())).cloned().collect();
    layers.sort_by_key(|layer| Reverse(layer.descriptor.size));
    layers
}
