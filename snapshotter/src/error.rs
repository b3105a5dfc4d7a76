//! The error of every operation, and its gRPC status.
//!
//! containerd decides by the code alone: `AlreadyExists` on a Prepare with a target ends the pull of that layer,
//! `NotFound` makes it try again, `FailedPrecondition` keeps its garbage collector from removing parents. The table in
//! [`ErrorKind::code`] is therefore part of the protocol.

use std::error::Error as StdError;
use std::fmt;

use tonic::{Code, Status};

/// What kind of answer a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The snapshot or its parent is not there.
    NotFound,
    /// The key or name is taken, or the target of a Prepare is there already.
    AlreadyExists,
    /// The snapshot is in a state that forbids the operation.
    FailedPrecondition,
    /// The request can never succeed as it is.
    InvalidArgument,
    /// An image tree cannot be mounted now; the same request may succeed later.
    Unavailable,
    /// Our records or our disk failed.
    Internal,
}

impl ErrorKind {
    /// The gRPC status code.
    pub const fn code(self) -> Code {
        match self {
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::FailedPrecondition => Code::FailedPrecondition,
            Self::InvalidArgument => Code::InvalidArgument,
            Self::Unavailable => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

/// Why an operation on snapshots failed.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error whose message names the snapshot, path or value.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Adds what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A failure of our records or our disk.
    pub(crate) fn internal(
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::new(ErrorKind::Internal, message).with_source(source)
    }

    /// No snapshot is called `name`.
    pub(crate) fn no_snapshot(name: &str) -> Self {
        Self::new(ErrorKind::NotFound, format!("snapshot \"{name}\" does not exist"))
    }

    /// What kind of answer it is.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
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

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.kind.code(), Chain(&error).to_string())
    }
}

/// An error with everything that caused it, on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_code_and_the_whole_chain() {
        let error = Error::internal("snapshot \"a\"", std::io::Error::other("disk on fire"));
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "snapshot \"a\": disk on fire");
    }
}
