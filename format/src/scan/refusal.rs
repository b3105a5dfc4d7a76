//! Why an entry is refused, before the place is known.
//!
//! Parsers deep inside a header or a map do not know which entry they work for; the scanner adds the path or the offset
//! with [`Refusal::at`].

use std::borrow::Cow;

use crate::FormatError;

/// A reason still without a place, or a finished error.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// What is wrong.
    Reason(Cow<'static, str>),
    /// An error that names its thing itself.
    Finished(FormatError),
}

impl Refusal {
    /// The error of a thing at `place` in a tar.
    pub(super) fn at(self, place: impl ToString) -> FormatError {
        self.in_format("tar", place)
    }

    /// The error of a thing at `place`.
    pub(crate) fn in_format(self, format: &'static str, place: impl ToString) -> FormatError {
        match self {
            Self::Reason(reason) => FormatError::malformed(format, place, reason),
            Self::Finished(error) => error,
        }
    }
}

impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Self {
        Self::Reason(reason.into())
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Reason(reason.into())
    }
}

impl From<FormatError> for Refusal {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Name { .. } => Self::Reason(error.to_string().into()),
            error => Self::Finished(error),
        }
    }
}
