//! What one start demanded.

use std::ops::Range;

use sluice_format::{DiffId, Digest};

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// No chunk was new for a while.
    Quiet,
    /// It was ended from outside: the mount went away.
    Finished,
    /// It lasted as long as a recording may.
    TooLong,
    /// Readers demanded so much of the image that this was no start.
    TooMuch,
}

/// One range, first demanded `ms` milliseconds after the first demand of the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Touch {
    pub(super) plain: Range<u64>,
    pub(super) ms: u32,
}

/// What was demanded of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LayerDemands {
    pub(super) diff_id: DiffId,
    pub(super) observed: bool,
    /// In plain order, not overlapping.
    pub(super) touches: Vec<Touch>,
}

/// What one start demanded of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    pub(super) image_id: Digest,
    pub(super) end: EndReason,
    /// Every layer of the image once, lowest first.
    pub(super) layers: Vec<LayerDemands>,
}

impl Recording {
    pub(super) fn new(image_id: Digest, end: EndReason, mut layers: Vec<LayerDemands>) -> Self {
        for layer in &mut layers {
            settle(&mut layer.touches);
        }
        Self {
            image_id,
            end,
            layers,
        }
    }

    /// The image.
    pub fn image_id(&self) -> Digest {
        self.image_id
    }

    /// Why it ended.
    pub fn end_reason(&self) -> EndReason {
        self.end
    }

    /// Whether nothing was demanded.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(|layer| layer.touches.is_empty())
    }

    /// Plain bytes demanded.
    pub fn plain_len(&self) -> u64 {
        let touches = self.layers.iter().flat_map(|layer| &layer.touches);
        touches.map(|touch| touch.plain.end - touch.plain.start).sum()
    }
}

/// Sorts ranges. Two positions with one DiffID may have noted the same range; where they are cut differently the later range
/// gives way.
fn settle(touches: &mut Vec<Touch>) {
    touches.sort_by_key(|touch| (touch.plain.start, touch.plain.end, touch.ms));
    let mut next = 0;
    for touch in touches.iter_mut() {
        touch.plain.start = touch.plain.start.max(next).min(touch.plain.end);
        next = touch.plain.end.max(next);
    }
    touches.retain(|touch| !touch.plain.is_empty());
}
