//! What annotations of a layer descriptor say of a TOC.

use super::footer::of_position;
use super::{FORMAT, TocLocation};
use crate::{Digest, FormatError};

/// Digest of the JSON.
const JSON_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Digest of the stored TOC and its place, `offset:stored length:decoded length:type`, as tools name them today, and as they did before.
const STORED: [(&str, &str); 2] = [
    (
        "io.github.containers.zstd-chunked.manifest-checksum",
        "io.github.containers.zstd-chunked.manifest-position",
    ),
    (
        "io.containers.zstd-chunked.manifest-checksum",
        "io.containers.zstd-chunked.manifest-position",
    ),
];
/// Name of the position in errors.
const POSITION: &str = "annotation of the TOC's position";

/// A TOC whose digest a manifest pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedToc {
    json: Option<Digest>,
    stored: Option<Digest>,
    position: Option<[u64; 4]>,
}

impl PinnedToc {
    /// What the annotations of a layer say, which `get` gives by name; `None` when they pin no TOC.
    ///
    /// # Errors
    /// [`FormatError::Digest`] or [`FormatError::Malformed`] for annotations that are not what they should be.
    pub fn of_annotations<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Self>, FormatError> {
        let digest = |name| get(name).map(str::parse).transpose();
        let json = digest(JSON_DIGEST)?;
        let (mut stored, mut position) = (None, None);
        for (checksum, place) in STORED {
            if let Some(found) = digest(checksum)? {
                stored = Some(found);
                position = get(place).map(parse_position).transpose()?;
                break;
            }
        }
        let is_pinned = json.is_some() || stored.is_some();
        Ok(is_pinned.then_some(Self {
            json,
            stored,
            position,
        }))
    }

    /// Where the TOC lies in a blob of `stored_len` bytes; `None` when only its footer says so.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] for a place outside the blob; [`FormatError::Unsupported`] for another type of TOC.
    pub fn location(&self, stored_len: u64) -> Result<Option<TocLocation>, FormatError> {
        let of = |position| of_position(position, POSITION, stored_len);
        self.position.map(of).transpose()
    }

    /// Checks the stored bytes of a TOC, as far as their digest is pinned.
    pub(super) fn verify_stored(&self, stored: &[u8]) -> Result<(), FormatError> {
        verify("the stored TOC", self.stored, stored)
    }

    /// Checks the JSON, as far as its digest is pinned.
    pub(super) fn verify_json(&self, json: &[u8]) -> Result<(), FormatError> {
        verify("the TOC", self.json, json)
    }
}

fn verify(what: &str, expected: Option<Digest>, bytes: &[u8]) -> Result<(), FormatError> {
    let Some(expected) = expected else { return Ok(()) };
    let found = Digest::of(bytes);
    match found == expected {
        true => Ok(()),
        false => Err(FormatError::Corrupt {
            what: what.to_owned(),
            expected,
            found,
        }),
    }
}

fn parse_position(text: &str) -> Result<[u64; 4], FormatError> {
    let mut numbers = [0; 4];
    let mut parts = text.split(':');
    let well = numbers.iter_mut().all(|number| {
        let part = parts
            .next()
            .filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        part.and_then(|part| part.parse().ok()).is_some_and(|parsed| {
            *number = parsed;
            true
        })
    });
    match well && parts.next().is_none() {
        true => Ok(numbers),
        false => {
            let shown = crate::name::Printable(text.as_bytes());
            let reason = format!("\"{shown}\" is not offset:stored length:length:type");
            Err(FormatError::malformed(FORMAT, POSITION, reason))
        }
    }
}
