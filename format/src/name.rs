//! Validated names.

use std::borrow::Borrow;
use std::fmt;

use crate::FormatError;

/// Name of one directory entry: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`. Not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryName(Box<[u8]>);

impl EntryName {
    /// Longest name that Linux file systems take, in bytes.
    pub const MAX_LEN: usize = 255;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`FormatError::Name`] when the bytes cannot be the name of a directory entry.
    pub fn new(bytes: &[u8]) -> Result<Self, FormatError> {
        let reason = match bytes {
            b"" => "is empty",
            b"." | b".." => "is a reserved name",
            _ if bytes.len() > Self::MAX_LEN => "is longer than 255 bytes",
            _ if bytes.contains(&b'/') => "holds a slash",
            _ if bytes.contains(&0) => "holds a NUL byte",
            _ => return Ok(Self(bytes.into())),
        };
        Err(FormatError::Name {
            name: Printable(bytes).to_string(),
            reason,
        })
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for EntryName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&self.0).fmt(f)
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Shows untrusted bytes in a message: control and non-ASCII bytes escaped, long text cut.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

/// Longest part of an untrusted name that a message repeats, in bytes.
const PRINTED_MAX: usize = 300;

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..PRINTED_MAX) {
            Some(start) if self.0.len() > PRINTED_MAX => write!(f, "{}…", start.escape_ascii()),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_a_directory_can_hold_are_taken() {
        for good in [&b"a"[..], b"...", b"\xff\xfe", b" ", &[b'x'; 255]] {
            assert_eq!(EntryName::new(good).unwrap().as_bytes(), good);
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(EntryName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn untrusted_bytes_are_escaped_in_messages() {
        assert_eq!(Printable(b"a\n\xff").to_string(), "a\\n\\xff");
    }
}
