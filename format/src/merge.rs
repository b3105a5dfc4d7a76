//! Layer trees → image tree.
use crate::{FormatError, LayerTree, Limits, Tree};

/// Stacks `layers`, lowest first; device *i* of the result is the plain layer of `layers[i - 1]`.
///
/// # Errors
/// [`FormatError::Stack`] naming the layer that cannot be put on those below it.
pub fn merge(_layers: Vec<LayerTree>, _limits: &Limits) -> Result<Tree, FormatError> {
    Err(FormatError::malformed("merge", "x", "not written yet"))
}
