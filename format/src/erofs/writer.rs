//! Tree → EROFS metadata image.
use crate::{DiffId, FormatError, NodeId, Tree};

/// One external device of an image: a plain layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlot {
    /// Identity of the plain layer; its hex form is the slot's tag.
    pub diff_id: DiffId,
    /// Length of the plain layer in bytes.
    pub plain_len: u64,
}

/// A finished image.
#[derive(Clone, Debug)]
pub struct WrittenImage {
    /// The bytes of the image.
    pub bytes: Vec<u8>,
    nids: Vec<Option<u64>>,
}

impl WrittenImage {
    /// EROFS node number that a node of the tree got, or `None` when no name reaches it.
    pub fn nid(&self, node: NodeId) -> Option<u64> {
        self.nids.get(node.0 as usize).copied().flatten()
    }
}

/// Writes `tree` as an image whose device *i* (from 1) is `devices[i - 1]`. The same tree gives the same bytes.
///
/// # Errors
/// [`FormatError`] when a value does not fit the format.
pub fn write_image(_tree: &Tree, _devices: &[DeviceSlot]) -> Result<WrittenImage, FormatError> {
    Err(FormatError::malformed("EROFS", "writer", "not written yet"))
}
