//! The JSON of a TOC, entry by entry.
//!
//! Entries are handed over while the document is read and are not kept, so that a hostile document takes no more memory than the tree that it
//! describes.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::FORMAT;
use crate::FormatError;

/// The only version of the document.
const VERSION: u64 = 1;

/// One entry as it is written. Fields that no tree needs (names of users, other times) are left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawEntry<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    pub(super) size: u64,
    #[serde(borrow)]
    pub(super) modtime: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) link_name: Cow<'a, str>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) dev_major: i64,
    pub(super) dev_minor: i64,
    /// Names, and values in base64.
    #[serde(deserialize_with = "bounded_xattrs")]
    pub(super) xattrs: Vec<(String, String)>,
    #[serde(borrow)]
    pub(super) digest: Cow<'a, str>,
    /// Stored offset of the member that the piece begins in.
    pub(super) offset: u64,
    /// Offset of the piece in what the member decodes to.
    pub(super) inner_offset: u64,
    pub(super) chunk_offset: u64,
    pub(super) chunk_size: u64,
    #[serde(borrow)]
    pub(super) chunk_digest: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) chunk_type: Cow<'a, str>,
}

/// More extended attributes of one entry than this are refused while they are read.
const XATTRS_MAX: usize = 1024;

fn bounded_xattrs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    struct Xattrs;

    impl<'de> Visitor<'de> for Xattrs {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("extended attributes")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut xattrs = Vec::new();
            while let Some(xattr) = map.next_entry()? {
                if xattrs.len() == XATTRS_MAX {
                    return Err(A::Error::custom(format!(
                        "an entry has more than {XATTRS_MAX} extended attributes"
                    )));
                }
                xattrs.push(xattr);
            }
            Ok(xattrs)
        }
    }

    deserializer.deserialize_any(Xattrs)
}

/// Reads a document and hands each entry to `take`.
pub(super) fn read_entries(
    json: &[u8],
    mut take: impl FnMut(RawEntry<'_>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut refusal = None;
    let mut read = serde_json::Deserializer::from_slice(json);
    let document = Document {
        take: &mut take,
        refusal: &mut refusal,
    };
    let outcome = document.deserialize(&mut read).and_then(|()| read.end());
    match (outcome, refusal) {
        (_, Some(refusal)) => Err(refusal),
        (Ok(()), None) => Ok(()),
        (Err(error), None) => Err(FormatError::malformed(FORMAT, "JSON", error)),
    }
}

struct Document<'t, F> {
    take: &'t mut F,
    /// What `take` said, since an error of the document has no place for it.
    refusal: &'t mut Option<FormatError>,
}

impl<'de, F: FnMut(RawEntry<'_>) -> Result<(), FormatError>> DeserializeSeed<'de> for Document<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(RawEntry<'_>) -> Result<(), FormatError>> Visitor<'de> for Document<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut has_entries) = (None, false);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "version" => version = Some(map.next_value::<u64>()?),
                "entries" if has_entries => return Err(A::Error::custom("has two lists of entries")),
                "entries" => {
                    has_entries = true;
                    map.next_value_seed(Entries {
                        take: self.take,
                        refusal: self.refusal,
                    })?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match version {
            Some(VERSION) => Ok(()),
            Some(other) => Err(A::Error::custom(format!("has version {other}"))),
            None => Err(A::Error::custom("has no version")),
        }
    }
}

struct Entries<'t, F> {
    take: &'t mut F,
    refusal: &'t mut Option<FormatError>,
}

impl<'de, F: FnMut(RawEntry<'_>) -> Result<(), FormatError>> DeserializeSeed<'de> for Entries<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // Some writers have null for a list without entries.
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(RawEntry<'_>) -> Result<(), FormatError>> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<RawEntry<'de>>()? {
            if let Err(refusal) = (self.take)(entry) {
                let message = refusal.to_string();
                *self.refusal = Some(refusal);
                return Err(A::Error::custom(message));
            }
        }
        Ok(())
    }
}
