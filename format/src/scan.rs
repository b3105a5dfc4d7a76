//! Tar stream → layer tree and chunk cuts.
use crate::{FormatError, LayerTree, Limits};

/// What a whole layer turned out to be.
#[derive(Debug)]
pub struct ScannedLayer {
    /// Its entries.
    pub layer: LayerTree,
    /// Its plain length.
    pub plain_len: u64,
    /// Things that containerd's unpack also ignores, each in a line for the user.
    pub warnings: Vec<String>,
}

/// Reads the plain bytes of a layer in pieces of any length.
#[derive(Debug)]
pub struct LayerScanner {}

impl LayerScanner {
    /// `chunk_size` in bytes, a power of two from 16 KiB to 4 MiB.
    pub fn new(_chunk_size: u32, _limits: Limits) -> Result<Self, FormatError> {
        Ok(Self {})
    }
    /// Takes the next bytes; appends to `ends` the plain offsets at which chunks end, as far as they are decided.
    pub fn push(&mut self, _plain: &[u8], _ends: &mut Vec<u64>) -> Result<(), FormatError> {
        Ok(())
    }
    /// After the last byte: the last chunk ends at the plain length.
    pub fn finish(self, _ends: &mut Vec<u64>) -> Result<ScannedLayer, FormatError> {
        Err(FormatError::malformed("tar", "x", "not written yet"))
    }
}
