//! The profile document: what the starts of an image demanded, in order and time.
//!
//! A start reads a few percent of its image, much the same bytes every time. A profile names them, so that the next start
//! can fetch them before they are asked for. It names *plain* ranges of layers by DiffID and never chunks: a conversion keeps
//! image ID and DiffIDs but may cut the layers elsewhere. For the same reason it is keyed by image ID.
//!
//! A profile is a hint. Whoever follows a wrong one fetches in vain; no byte that a reader sees depends on it. How starts
//! are recorded, merged and replayed is not decided here. Byte tables: `docs/format.md`.

mod columns;
mod document;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::Range;

use crate::{DiffId, Digest, FormatError, Limits};

/// Name of this format in errors.
const FORMAT: &str = "profile";

/// One plain range that starts demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Offset of the first byte in the plain layer.
    pub plain_off: u64,
    /// Length in the plain layer, never 0.
    pub plain_len: u64,
    /// When it was first asked for, in milliseconds after the first demand of the start.
    pub first_ms: u32,
    /// Starts that demanded it, at least 1; 255 stands for more.
    pub seen: u8,
    /// Starts since the last one that demanded it; 255 stands for more.
    pub missed: u8,
}

impl Demand {
    /// The range in the plain layer.
    pub fn plain_range(&self) -> Range<u64> {
        self.plain_off..self.plain_off.saturating_add(self.plain_len)
    }
}

/// What starts demanded of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileLayer {
    /// The layer.
    pub diff_id: DiffId,
    /// Sorted by `plain_off`, not overlapping, never empty.
    pub demands: Vec<Demand>,
}

/// What the starts of one image demanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    image_id: Digest,
    runs: u32,
    layers: Vec<ProfileLayer>,
}

impl Profile {
    /// Checks and takes the demands of `runs` starts. The same layers and numbers give the same bytes.
    ///
    /// # Errors
    /// [`FormatError`] when a layer is there twice or without demands, when demands are empty, overlap or are out of order,
    /// or when a limit is passed.
    pub fn new(
        image_id: Digest,
        runs: u32,
        layers: Vec<ProfileLayer>,
        limits: &Limits,
    ) -> Result<Self, FormatError> {
        FormatError::check_limit(
            "number of layers in a profile",
            layers.len() as u64,
            limits.layers.min(u16::MAX.into()) as u64,
        )?;
        let demands: usize = layers.iter().map(|layer| layer.demands.len()).sum();
        FormatError::check_limit(
            "number of demands in a profile",
            demands as u64,
            limits.profile_demands as u64,
        )?;
        let mut known = HashSet::new();
        for layer in &layers {
            if !known.insert(layer.diff_id) {
                return Err(refuse(&layer.diff_id, "the layer is there twice"));
            }
            check_demands(layer, limits)?;
        }
        Ok(Self {
            image_id,
            runs,
            layers,
        })
    }

    /// The image: the digest of its config.
    pub fn image_id(&self) -> Digest {
        self.image_id
    }

    /// Starts that went into this profile. None went into one that was foretold.
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// Whether it is what the files of the image tell, and no start has gone into it.
    pub fn is_foretold(&self) -> bool {
        self.runs == 0
    }

    /// The layers of which anything was demanded.
    pub fn layers(&self) -> &[ProfileLayer] {
        &self.layers
    }

    /// Number of demands of all layers.
    pub fn demand_count(&self) -> usize {
        self.layers.iter().map(|layer| layer.demands.len()).sum()
    }

    /// Plain bytes demanded.
    pub fn plain_len(&self) -> u64 {
        let demands = self.layers.iter().flat_map(|layer| &layer.demands);
        demands.fold(0, |sum, demand| sum.saturating_add(demand.plain_len))
    }

    /// The bytes of the document. Equal profiles give equal bytes.
    ///
    /// # Errors
    /// [`FormatError`] when zstd has no memory.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        document::encode(self)
    }

    /// Reads a document; its own checksum is verified.
    ///
    /// # Errors
    /// [`FormatError::Malformed`], [`FormatError::Corrupt`] or [`FormatError::Limit`] for bad bytes,
    /// [`FormatError::Unsupported`] for a document of a newer Sluice.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, FormatError> {
        document::parse(bytes, limits)
    }
}

fn check_demands(layer: &ProfileLayer, limits: &Limits) -> Result<(), FormatError> {
    if layer.demands.is_empty() {
        return Err(refuse(&layer.diff_id, "the layer has no demands"));
    }
    let mut next = 0;
    for demand in &layer.demands {
        let end = demand.plain_off.checked_add(demand.plain_len);
        let end = end.ok_or_else(|| refuse(&layer.diff_id, "a demand ends after 2^64 bytes"))?;
        FormatError::check_limit("end of a demand in its layer", end, limits.layer_plain_len)?;
        if demand.plain_len == 0 || demand.seen == 0 {
            return Err(refuse(&layer.diff_id, "a demand is empty or was never seen"));
        }
        if demand.plain_off < next {
            return Err(refuse(&layer.diff_id, "demands overlap or are out of order"));
        }
        next = end;
    }
    Ok(())
}

fn refuse(diff_id: &DiffId, reason: &str) -> FormatError {
    FormatError::malformed(FORMAT, format!("layer {diff_id}"), reason)
}
