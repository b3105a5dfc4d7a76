//! The error of every parser in this crate.

use thiserror::Error;

/// Why bytes were refused. Each message says which thing, which value and, for a limit, the bound.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// Text that is not a supported digest.
    #[error("\"{text}\" is not a sha256 digest")]
    Digest {
        /// The refused text.
        text: String,
    },
    /// A name that no directory can hold.
    #[error("entry name \"{name}\" {reason}")]
    Name {
        /// The refused name, escaped.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A bound of [`crate::Limits`] was passed.
    #[error("{what} is {value}, over the limit of {limit}")]
    Limit {
        /// The thing that is bounded.
        what: &'static str,
        /// What the input asked for.
        value: u64,
        /// The bound.
        limit: u64,
    },
    /// Bytes that break the rules of a format.
    #[error("{format} at {place}: {reason}")]
    Malformed {
        /// The format: "tar", "layer index", "EROFS" and so on.
        format: &'static str,
        /// Where: an offset, a path, an inode.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// Stored bytes whose digest is not the expected one.
    #[error("{what} is corrupt: digest is {found}, expected {expected}")]
    Corrupt {
        /// The thing whose digest was computed.
        what: String,
        /// The digest it should have.
        expected: crate::Digest,
        /// The digest it has.
        found: crate::Digest,
    },
    /// A layer that cannot be read by ranges as it is stored.
    #[error(
        "the layer cannot be read by ranges as it is: the {plain_len} plain bytes at offset {plain_off} are one piece of {stored_len} stored bytes, too \
         long to be fetched for a single read; convert the image (sluice convert), or let the layer be streamed"
    )]
    NoRestart {
        /// Where the piece begins in the plain layer.
        plain_off: u64,
        /// Its plain length.
        plain_len: u64,
        /// Its stored length.
        stored_len: u64,
    },
    /// A valid file from a newer Sluice that this one must not interpret.
    #[error("{format} needs a newer Sluice: {reason}")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// Version or feature bits that are not known.
        reason: String,
    },
    /// Layers that cannot be stacked.
    #[error("layer {layer}: {reason}")]
    Stack {
        /// Position of the layer, 1 for the lowest.
        layer: usize,
        /// What is wrong.
        reason: String,
    },
}

impl FormatError {
    /// A [`FormatError::Malformed`] from parts.
    pub fn malformed(format: &'static str, place: impl ToString, reason: impl ToString) -> Self {
        Self::Malformed {
            format,
            place: place.to_string(),
            reason: reason.to_string(),
        }
    }

    /// Refuses `value` when it is over `limit`.
    ///
    /// # Errors
    /// [`FormatError::Limit`] naming `what`.
    pub fn check_limit(what: &'static str, value: u64, limit: u64) -> Result<(), Self> {
        if value > limit {
            Err(Self::Limit { what, value, limit })
        } else {
            Ok(())
        }
    }
}
