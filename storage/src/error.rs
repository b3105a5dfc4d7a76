//! The error of everything that moves or keeps bytes.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use sluice_format::FormatError;

/// What kind of failure it is: decides retries, fail-over, exit codes and errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The thing does not exist there.
    NotFound,
    /// Credentials are missing or do not suffice.
    Denied,
    /// The other side did not answer, or asked to come back later. Worth a retry.
    Unavailable,
    /// Bytes do not match their digest or their format.
    Corrupt,
    /// The caller asked for something that cannot be.
    InvalidInput,
    /// The other side lacks a feature that is needed (ranges, uploads).
    Unsupported,
    /// No space left on a local disk.
    NoSpace,
    /// A local file or device failed.
    Io,
}

/// An error with its kind, what was being done to which thing, and its cause. Clones share the cause: everybody who waits
/// for one fetch gets the same error.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause. `message` says what happened to which thing.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// The same with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// A failed operation on a local file; `what` names operation and file.
    pub fn io(what: impl fmt::Display, error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self::new(kind, what.to_string()).with_source(error)
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        self.kind == ErrorKind::Unavailable
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        let kind = match error {
            FormatError::Unsupported { .. } | FormatError::NoRestart { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Corrupt,
        };
        Self::new(kind, error.to_string())
    }
}
