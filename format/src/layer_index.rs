//! stub
use crate::{ChunkTable, DiffId, Digest, FormatError, LayerTree, Limits};
/// Where a layer index lies in a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexLocation {
    pub digest: Digest,
    pub stored_off: u64,
    pub stored_len: u64,
}
/// Tree and chunk table of one layer.
#[derive(Debug, Clone)]
pub struct LayerIndex {
    pub diff_id: DiffId,
    pub chunks: ChunkTable,
}
impl LayerIndex {
    pub fn new(diff_id: DiffId, chunks: ChunkTable, _layer: &LayerTree) -> Result<Self, FormatError> {
        Ok(Self { diff_id, chunks })
    }
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        Ok(vec![])
    }
    pub fn parse(_bytes: &[u8], _limits: &Limits) -> Result<Self, FormatError> {
        Err(FormatError::malformed("layer index", "x", "not written yet"))
    }
    pub fn layer_tree(&self, _limits: &Limits) -> Result<LayerTree, FormatError> {
        Ok(LayerTree::default())
    }
}
/// Index bytes framed for the end of a blob.
pub fn frame_index(_index: &[u8], _blob_len: u64) -> Result<(Vec<u8>, IndexLocation), FormatError> {
    Err(FormatError::malformed("layer index", "x", "not written yet"))
}
/// Bytes of the footer at the end of a blob.
pub const FOOTER_LEN: u64 = 72;
/// Location from the last [`FOOTER_LEN`] bytes of a blob, or `None` for a blob without one.
pub fn parse_footer(_tail: &[u8], _blob_len: u64) -> Result<Option<IndexLocation>, FormatError> {
    Ok(None)
}
impl std::fmt::Display for IndexLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.digest)
    }
}
impl std::str::FromStr for IndexLocation {
    type Err = FormatError;
    fn from_str(_t: &str) -> Result<Self, FormatError> {
        Err(FormatError::malformed("layer index", "x", "not written yet"))
    }
}
