//! The error of every operation on whole images.

use sluice_format::{BlobDigest, Digest, FormatError};
use sluice_storage::ErrorKind;
use sluice_storage::decompress::DecompressError;
use thiserror::Error;

/// Why an image could not be converted, packed, checked or looked at. The deepest cause is kept as the source.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Something about one layer; the source says what.
    #[error("layer {digest}")]
    Layer {
        /// The layer as the source image names it.
        digest: BlobDigest,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// Something about one manifest; the source says what.
    #[error("manifest {digest}")]
    Manifest {
        /// The manifest as the source image names it.
        digest: Digest,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// Bytes whose digest is not the expected one.
    #[error("{what} is corrupt: digest is {found}, expected {expected}")]
    Corrupt {
        /// Which bytes: the blob, or the plain layer.
        what: &'static str,
        /// The digest they should have.
        expected: Digest,
        /// The digest they have.
        found: Digest,
    },
    /// A blob that cannot be read through.
    #[error("blob {blob} cannot be read from {place}")]
    Unreadable {
        /// The blob.
        blob: BlobDigest,
        /// Who should have it.
        place: String,
        /// What hinders it.
        source: sluice_storage::Error,
    },
    /// A layer whose stored bytes nobody can be asked for.
    #[error(
        "the original bytes of layer {digest} cannot be had from {place}; when the cache has all plain bytes of the image, --plain exports those"
    )]
    NoOriginal {
        /// The layer.
        digest: BlobDigest,
        /// Who should have it.
        place: String,
        /// What hinders it.
        source: sluice_storage::Error,
    },
    /// Compressed or archived bytes that cannot be decoded.
    #[error("{what} cannot be decoded")]
    Undecodable {
        /// What the bytes should be: a gzip stream, a tar archive.
        what: &'static str,
        /// The decoder's reason.
        source: std::io::Error,
    },
    /// A document (manifest, image index, config, archive member) that breaks the rules of its kind.
    #[error("{what}: {reason}")]
    Document {
        /// Which document.
        what: String,
        /// Which rule.
        reason: String,
    },
    /// Something that exists but that Sluice does not convert; the message says what to do instead.
    #[error("{0}")]
    Unsupported(String),
    /// A request that cannot be met, such as a missing directory or an unknown option value.
    #[error("{0}")]
    Refused(String),
    /// A failed operation on a local file.
    #[error("{what}")]
    Io {
        /// Operation and file.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A place that holds images failed.
    #[error(transparent)]
    Storage(#[from] sluice_storage::Error),
    /// Bytes that break a format of layers or indexes.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl From<DecompressError> for Error {
    fn from(error: DecompressError) -> Self {
        match error {
            DecompressError::Refused(_) => Self::Unsupported(error.to_string()),
            DecompressError::Undecodable { what, source } => Self::Undecodable { what, source },
            DecompressError::Format(error) => Self::Format(error),
        }
    }
}

impl Error {
    /// What kind of failure it is, for exit codes and retries.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Layer { source, .. } | Self::Manifest { source, .. } => source.kind(),
            Self::Corrupt { .. } | Self::Undecodable { .. } | Self::Document { .. } => ErrorKind::Corrupt,
            Self::Unsupported(_)
            | Self::Format(FormatError::Unsupported { .. } | FormatError::NoRestart { .. }) => {
                ErrorKind::Unsupported
            }
            Self::Refused(_) => ErrorKind::InvalidInput,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                _ => ErrorKind::Io,
            },
            Self::Storage(error) => error.kind(),
            Self::Unreadable { source, .. } | Self::NoOriginal { source, .. } => source.kind(),
            Self::Format(_) => ErrorKind::Corrupt,
        }
    }

    /// The same error, said of a layer.
    pub(crate) fn of_layer(self, digest: BlobDigest) -> Self {
        Self::Layer {
            digest,
            source: Box::new(self),
        }
    }

    /// The same error, said of a manifest.
    pub(crate) fn of_manifest(self, digest: Digest) -> Self {
        Self::Manifest {
            digest,
            source: Box::new(self),
        }
    }

    /// A broken document.
    pub(crate) fn document(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Document {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    /// A failed operation on a local file.
    pub(crate) fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
}

/// The outcome of a thread that the runtime ran: its result, or an error when it panicked.
pub(crate) fn joined<T>(outcome: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    outcome.unwrap_or_else(|error| {
        Err(Error::io(
            "a worker thread ended early",
            std::io::Error::other(error),
        ))
    })
}

/// An error with its causes in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
