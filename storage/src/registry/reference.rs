//! The name of an image in a registry.
//!
//! Parsing follows Docker's grammar through [`oci_spec::distribution::Reference`]: `docker.io`, `library/` and `latest` are
//! implied. IPv6 hosts in brackets, which that grammar lacks, are cut off first. Only sha256 digests are taken.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference as OciReference;
use sluice_format::Digest;

use crate::{Error, ErrorKind, ManifestName};

/// Docker Hub as users write it.
const DOCKER_HUB: &str = "docker.io";
/// The host that answers Docker Hub's API.
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// The tag of a reference that names none.
const DEFAULT_TAG: &str = "latest";
/// A host that the grammar takes, in place of a bracketed address while the rest is parsed.
const PLACEHOLDER_HOST: &str = "ipv6.invalid";

/// Registry, repository, and tag or digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as users know it: `docker.io`, `host`, `host:port`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `host` or `host:port` that answers the registry's API.
    pub fn api_host(&self) -> &str {
        if self.registry == DOCKER_HUB {
            DOCKER_HUB_API
        } else {
            &self.registry
        }
    }

    /// The repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, when one is named or implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when one is named.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// How to ask for the manifest: by digest when there is one, else by tag.
    pub fn manifest_name(&self) -> ManifestName {
        match (self.digest, &self.tag) {
            (Some(digest), _) => ManifestName::Digest(digest),
            (None, Some(tag)) => ManifestName::Tag(tag.clone()),
            (None, None) => ManifestName::Tag(DEFAULT_TAG.to_owned()),
        }
    }

    /// The same repository with another tag or digest.
    #[must_use]
    pub fn with_name(&self, name: &ManifestName) -> Self {
        let (tag, digest) = match name {
            ManifestName::Tag(tag) => (Some(tag.clone()), None),
            ManifestName::Digest(digest) => (None, Some(*digest)),
        };
        Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag,
            digest,
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (address, parsed) = match text.strip_prefix('[').and_then(|rest| rest.split_once('/')) {
            None => (None, text.parse::<OciReference>()),
            Some((address, rest)) => {
                check_address(text, address)?;
                let whole = format!("{PLACEHOLDER_HOST}/{rest}");
                (Some(format!("[{address}")), whole.parse::<OciReference>())
            }
        };
        let parsed = parsed.map_err(|error| refuse(text, error))?;
        // The grammar lets a first component through that looks like a host and turns out to be none.
        if parsed.repository().chars().any(|c| c.is_ascii_uppercase()) {
            return Err(refuse(text, "the repository must be lower-case"));
        }
        let digest = match parsed.digest() {
            None => None,
            Some(digest) => Some(digest.parse().map_err(|error| refuse(text, error))?),
        };
        Ok(Self {
            registry: address.unwrap_or_else(|| parsed.registry().to_owned()),
            repository: parsed.repository().to_owned(),
            tag: parsed.tag().map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Checks `address]` or `address]:port`.
fn check_address(text: &str, address: &str) -> Result<(), Error> {
    let valid = address.split_once(']').is_some_and(|(ip, port)| {
        let port_valid = match port.strip_prefix(':') {
            None => port.is_empty(),
            Some(port) => port.parse::<u16>().is_ok(),
        };
        ip.parse::<std::net::Ipv6Addr>().is_ok() && port_valid
    });
    if valid {
        Ok(())
    } else {
        Err(refuse(text, "the address in brackets is not an IPv6 address"))
    }
}

fn refuse(text: &str, reason: impl fmt::Display) -> Error {
    let message = format!("image reference \"{text}\": {reason}");
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_is_asked_at_its_api_host() {
        let hub: Reference = "busybox".parse().unwrap();
        assert_eq!(
            (hub.registry(), hub.api_host()),
            ("docker.io", "registry-1.docker.io")
        );
        assert_eq!(hub.repository(), "library/busybox");
        let own: Reference = "example.com:5000/a".parse().unwrap();
        assert_eq!(
            (own.registry(), own.api_host()),
            ("example.com:5000", "example.com:5000")
        );
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let digest = Digest::of(b"x");
        let both: Reference = format!("a/b:t@{digest}").parse().unwrap();
        assert_eq!(both.tag(), Some("t"));
        assert_eq!(both.manifest_name(), ManifestName::Digest(digest));
        let tag = ManifestName::Tag("u".into());
        assert_eq!(both.with_name(&tag).manifest_name(), tag);
    }

    #[test]
    fn bracketed_addresses_are_checked() {
        let host: Reference = "[fe80::1]:443/x/y:t".parse().unwrap();
        assert_eq!(host.registry(), "[fe80::1]:443");
        assert_eq!(host.repository(), "x/y");
        for bad in ["[::1/x", "[zz]/x", "[::1]:99999/x", "[::1]x/y"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
