//! How long-running work tells how far it is.
//!
//! A [`Progress`] is called from many tasks and threads at once and must return quickly. A layer that occurs several
//! times in an image is reported once. Bytes are stored bytes of the source, so that the total is known beforehand.

use std::fmt::Debug;

use sluice_format::BlobDigest;

use crate::report::Outcome;

/// Hears what happens to each layer.
pub trait Progress: Debug + Send + Sync {
    /// The number of layers to be worked on and the sum of their stored bytes. Called once, before any layer.
    fn planned(&self, layers: usize, stored_len: u64) {
        let _ = (layers, stored_len);
    }

    /// Work on a layer begins; `stored_len` is the length of the source blob in bytes.
    fn layer_started(&self, layer: BlobDigest, stored_len: u64) {
        let _ = (layer, stored_len);
    }

    /// `stored_bytes` more bytes of the source blob have been taken in.
    fn layer_advanced(&self, layer: BlobDigest, stored_bytes: u64) {
        let _ = (layer, stored_bytes);
    }

    /// `plain_bytes` more bytes of a directory have been packed.
    fn packed(&self, plain_bytes: u64) {
        let _ = plain_bytes;
    }

    /// Nothing more will be heard of this layer.
    fn layer_finished(&self, layer: BlobDigest, outcome: Outcome) {
        let _ = (layer, outcome);
    }
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
