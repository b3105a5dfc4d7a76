//! SHA-256 identities.
//!
//! Which bytes a digest covers is part of its type: [`BlobDigest`] covers stored bytes, [`DiffId`] the plain bytes of a
//! layer, [`ChunkDigest`] the plain bytes of a chunk, and [`ChainId`] names an ordered stack of layers. They never
//! convert into each other silently.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::FormatError;

/// SHA-256 over some bytes. Shown and parsed in OCI form, `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; Self::LEN]);

impl Digest {
    /// Length of the raw digest in bytes.
    pub const LEN: usize = 32;

    /// Takes the raw bytes of a digest.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The raw digest.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The 64 lower-case hex digits without the algorithm.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Parses 64 lower-case hex digits without the algorithm.
    ///
    /// # Errors
    /// [`FormatError::Digest`] when the text has another length or another character.
    pub fn from_hex(text: &str) -> Result<Self, FormatError> {
        let refuse = || FormatError::Digest {
            text: text.chars().take(100).collect(),
        };
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse());
        }
        let mut raw = [0; Self::LEN];
        hex::decode_to_slice(text, &mut raw).map_err(|_| refuse())?;
        Ok(Self(raw))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let hex = text.strip_prefix("sha256:").ok_or_else(|| FormatError::Digest {
            text: text.chars().take(100).collect(),
        })?;
        Self::from_hex(hex)
    }
}

/// Computes a [`Digest`] over bytes that arrive in pieces.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// A hasher that has seen no byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

macro_rules! digest_of {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = FormatError;

            fn from_str(text: &str) -> Result<Self, FormatError> {
                text.parse().map(Self)
            }
        }
    };
}

digest_of!(
    /// Digest of the stored bytes of a registry blob: what a descriptor names.
    BlobDigest
);
digest_of!(
    /// Digest of the plain (uncompressed) bytes of a layer: what an image config lists in `rootfs.diff_ids`.
    DiffId
);
digest_of!(
    /// Name of an ordered stack of layers, as the OCI image spec defines it.
    ChainId
);
digest_of!(
    /// Digest of the plain bytes of one chunk.
    ChunkDigest
);

impl ChainId {
    /// The ChainID of `layer` put on top of `parent`, or of `layer` alone.
    pub fn extend(parent: Option<Self>, layer: DiffId) -> Self {
        match parent {
            None => Self(layer.0),
            Some(parent) => Self(Digest::of(format!("{parent} {layer}").as_bytes())),
        }
    }

    /// The ChainID of a whole stack, bottom first. `None` for no layer at all.
    pub fn of_stack(layers: &[DiffId]) -> Option<Self> {
        layers
            .iter()
            .fold(None, |parent, layer| Some(Self::extend(parent, *layer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn other_algorithms_lengths_and_cases_are_refused() {
        let upper = Digest::of(b"")
            .to_string()
            .to_uppercase()
            .replace("SHA256", "sha256");
        for text in ["", "sha256:", "sha512:00", "sha256:zz", &upper, &"a".repeat(64)] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn chain_id_follows_the_image_spec() {
        let a = DiffId(Digest::of(b"a"));
        let b = DiffId(Digest::of(b"b"));
        assert_eq!(ChainId::of_stack(&[a]).unwrap().0, a.0);
        let expected = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of_stack(&[a, b]).unwrap().0, expected);
        assert_eq!(ChainId::of_stack(&[]), None);
    }
}
