//! The name of an image in a registry.
//!
//! Parsing follows Docker's grammar (`distribution/reference`): `docker.io`, `library/` and `latest` are implied. IPv6 hosts in brackets,
//! which that grammar lacks, are taken too, and of digests only sha256. The parser of oci-spec is a regular expression that takes 40 ms and
//! 20 MB to compile, once in each process, which a start of a container would wait for twice; it is what the tests compare with.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use sluice_format::Digest;

use crate::{Error, ErrorKind, ManifestName};

/// Docker Hub as users write it.
const DOCKER_HUB: &str = "docker.io";
/// The host that answers Docker Hub's API.
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// Its older name.
const DOCKER_HUB_LEGACY: &str = "index.docker.io";
/// Where Docker Hub has images without a namespace.
const DOCKER_HUB_OFFICIAL: &str = "library";
/// The tag of a reference that names none.
const DEFAULT_TAG: &str = "latest";
/// Longest repository, in bytes.
const REPOSITORY_MAX: usize = 255;
/// Longest tag, in bytes.
const TAG_MAX: usize = 128;

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
        let refuse = |reason: &dyn fmt::Display| refuse(text, reason);
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|error| refuse(&error))?)),
        };
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].find(':') {
            None => (rest, None),
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse(
                &"the tag must be up to 128 letters, digits, \"_\", \".\" or \"-\"",
            ));
        }
        let (registry, repository) = split_host(name);
        check_host(registry).map_err(|reason| refuse(&reason))?;
        let repository = match registry == DOCKER_HUB && !repository.contains('/') {
            true => format!("{DOCKER_HUB_OFFICIAL}/{repository}"),
            false => repository.to_owned(),
        };
        check_repository(&repository).map_err(|reason| refuse(&reason))?;
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: match (tag, &digest) {
                (None, None) => Some(DEFAULT_TAG.to_owned()),
                (tag, _) => tag.map(str::to_owned),
            },
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

/// Takes the host off a name. A first part that cannot be told from a namespace is one.
fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((DOCKER_HUB_LEGACY, rest)) => (DOCKER_HUB, rest),
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (DOCKER_HUB, name),
    }
}

/// Checks `host`, `host:port`, `[address]` or `[address]:port`.
fn check_host(host: &str) -> Result<(), &'static str> {
    let (is_valid, rest) = match host.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']').unwrap_or((bracketed, "]"));
            if address.parse::<Ipv6Addr>().is_err() {
                return Err("the address in brackets is not an IPv6 address");
            }
            (true, rest)
        }
        None => {
            let (name, rest) = host.split_at(host.find(':').unwrap_or(host.len()));
            // The grammar takes a host without a port for a part of the repository first, which may have underlines.
            let is_name = name.split('.').all(is_host_part) || is_repository_part(host);
            (is_name, rest)
        }
    };
    let has_valid_port = match rest.strip_prefix(':') {
        None => rest.is_empty(),
        Some(port) => port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit()),
    };
    match is_valid && has_valid_port {
        true => Ok(()),
        false => Err("the registry must be a host name or an address, and maybe a port"),
    }
}

fn is_host_part(part: &str) -> bool {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !part.is_empty() && part.bytes().all(is_valid) && !part.starts_with('-') && !part.ends_with('-')
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.len() > REPOSITORY_MAX {
        return Err("the repository is longer than 255 bytes");
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository must be lower-case");
    }
    match repository.split('/').all(is_repository_part) {
        true => Ok(()),
        false => Err(
            "the repository must be names of letters and digits, with \".\", \"_\", \"__\" or \"-\" within them",
        ),
    }
}

/// Letters and digits, with separators between them: one dot, one or two underlines, or any number of hyphens.
fn is_repository_part(part: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |separator: &str| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    };
    part.starts_with(is_plain) && part.ends_with(is_plain) && part.split(is_plain).all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let begins_well = !tag.starts_with(['.', '-']);
    (1..=TAG_MAX).contains(&tag.len()) && begins_well && tag.bytes().all(is_valid)
}

fn refuse(text: &str, reason: &dyn fmt::Display) -> Error {
    let message = format!("image reference \"{text}\": {reason}");
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use oci_spec::distribution::Reference as OciReference;
    use proptest::prelude::*;

    use super::*;

    /// What the parser of oci-spec makes of a text, as far as it goes by the same rules: ports have no bound there, names of namespaces may
    /// have upper case, and all of Unicode's letters are good for a tag.
    fn oracle(text: &str) -> Option<(String, String, Option<String>, Option<String>)> {
        let parsed: OciReference = text.parse().ok()?;
        let is_lower = !parsed.repository().bytes().any(|byte| byte.is_ascii_uppercase());
        let port = parsed
            .registry()
            .split_once(':')
            .map(|(_, port)| port.parse::<u16>());
        let is_sha256 = parsed
            .digest()
            .is_none_or(|digest| digest.parse::<Digest>().is_ok());
        let is_ours = text.is_ascii() && is_lower && is_sha256 && port.is_none_or(|port| port.is_ok());
        is_ours.then(|| {
            (
                parsed.registry().to_owned(),
                parsed.repository().to_owned(),
                parsed.tag().map(str::to_owned),
                parsed.digest().map(str::to_owned),
            )
        })
    }

    fn parts(text: &str) -> Option<(String, String, Option<String>, Option<String>)> {
        let parsed: Reference = text.parse().ok()?;
        let digest = parsed.digest.map(|digest| digest.to_string());
        Some((parsed.registry, parsed.repository, parsed.tag, digest))
    }

    #[test]
    fn references_mean_what_they_mean_elsewhere() {
        let digest = Digest::of(b"x");
        let long = "a".repeat(255 - "library/".len());
        for name in [
            "busybox",
            "a/b",
            "localhost/a",
            "index.docker.io/a",
            "docker.io/a",
            "docker.io/a/b",
            "test.com:tag",
            "test:5000/repo",
            "a:5000",
            "foo_bar.com:8080",
            "foo/foo_bar.com:8080",
            "xn--7o8h.com/x:xn--7o8h.com",
            "a--b/c",
            "a__b/c.d/e_f",
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ":t",
            "a:",
            "a.b/",
            "a.b:/c",
            "-a.b/c",
            "a-.b/c",
            "a..b/c",
            "a/b..c",
            "a/b___c",
            "a/_b",
            "a/b-",
            "A/b",
            "A.b/c",
            "a b",
            "a/b:.t",
            "a/b:-t",
            "a/b:_t",
            "a.b:99999/c",
            "a.b:+1/c",
            "aa/asdf$$^/aa",
            long.as_str(),
        ] {
            for text in [
                name.to_owned(),
                format!("{name}:t"),
                format!("{name}@{digest}"),
                format!("{name}:T-1@{digest}"),
                format!("{name}@x"),
                format!("b.c/{name}"),
            ] {
                assert_eq!(parts(&text), oracle(&text), "{text}");
            }
        }
        assert!(format!("{long}a").parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_means_what_it_means_elsewhere(text in "[a-cA-B0-9./:@_-]{0,24}") {
            prop_assert_eq!(parts(&text), oracle(&text));
        }

        #[test]
        fn no_text_is_too_odd(text in "\\PC*") {
            let _ = text.parse::<Reference>();
        }
    }

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
