//! Layers that have a layer index already.
//!
//! Such a layer is kept as it is: converting it again would move bytes for nothing and change its digest. Its index is
//! found by the layer annotation or, when annotations were lost, by the footer of the blob; it must parse and describe
//! the layer that the image config names.

use sluice_format::artifact::INDEX_ANNOTATION;
use sluice_format::layer_index::{FOOTER_LEN, parse_footer};
use sluice_format::{IndexLocation, LayerIndex, Limits};
use sluice_storage::decompress::Compression;
use sluice_storage::{Blob, ErrorKind, Repository};

use super::plan::SourceLayer;
use crate::Error;

/// The index of a layer that needs no conversion.
#[derive(Debug)]
pub(crate) struct FoundIndex {
    pub(crate) location: IndexLocation,
    pub(crate) bytes: bytes::Bytes,
    pub(crate) index: LayerIndex,
}

/// Looks for a usable layer index. `Err` inside the result tells the user why one that is there was not used.
///
/// # Errors
/// Only what hinders reading.
pub(crate) async fn find_index(
    source: &dyn Repository,
    layer: &SourceLayer,
    limits: &Limits,
) -> Result<Option<Result<FoundIndex, String>>, Error> {
    let blob = source.open_blob(&layer.descriptor);
    let located = match layer.descriptor.annotations.get(INDEX_ANNOTATION) {
        Some(text) => text.parse().map(Some),
        None if Compression::of_media_type(&layer.descriptor.media_type) == Some(Compression::Zstd) => {
            read_footer(&*blob).await?
        }
        None => Ok(None),
    };
    let location: IndexLocation = match located {
        Ok(Some(location)) => location,
        Ok(None) => return Ok(None),
        Err(error) => return Ok(Some(Err(error.to_string()))),
    };
    if let Err(error) = check_location(&location, blob.stored_len(), limits) {
        return Ok(Some(Err(error.to_string())));
    }
    let bytes = blob
        .read_range(location.stored_off..location.stored_off + location.stored_len)
        .await?;
    Ok(Some(parse_index(location, bytes, layer, limits)))
}

fn check_location(
    location: &IndexLocation,
    blob_len: u64,
    limits: &Limits,
) -> Result<(), sluice_format::FormatError> {
    location.check_within(blob_len)?;
    let what = "stored length of a layer index";
    sluice_format::FormatError::check_limit(what, location.stored_len, limits.index_stored_len)
}

fn parse_index(
    location: IndexLocation,
    bytes: bytes::Bytes,
    layer: &SourceLayer,
    limits: &Limits,
) -> Result<FoundIndex, String> {
    let index = LayerIndex::parse_verified(&bytes, &location.digest, limits).map_err(|e| e.to_string())?;
    if index.diff_id != layer.diff_id {
        return Err(format!(
            "it describes the layer {}, not {}",
            index.diff_id, layer.diff_id
        ));
    }
    let end = index
        .chunks
        .chunks()
        .iter()
        .map(|chunk| chunk.stored_range().end)
        .max();
    if end.is_some_and(|end| end > layer.descriptor.size) {
        return Err("it places a chunk outside the blob".to_owned());
    }
    Ok(FoundIndex {
        location,
        bytes,
        index,
    })
}

async fn read_footer(
    blob: &dyn Blob,
) -> Result<Result<Option<IndexLocation>, sluice_format::FormatError>, Error> {
    let blob_len = blob.stored_len();
    let Some(footer_off) = blob_len.checked_sub(FOOTER_LEN) else {
        return Ok(Ok(None));
    };
    match blob.read_range(footer_off..blob_len).await {
        Ok(tail) => Ok(parse_footer(&tail, blob_len)),
        // A registry without ranges: the layer is converted from a full read.
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Ok(None)),
        Err(error) => Err(error.into()),
    }
}
