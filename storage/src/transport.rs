//! The names under which users know images, in skopeo's syntax.
//!
//! | form | meaning |
//! |---|---|
//! | `docker://host[:port]/name[:tag][@digest]` | an image in a registry; Docker Hub, `library/` and `latest` are implied |
//! | `oci:path[:tag]`, `oci:path@sha256:…` | an image in an OCI layout directory |
//! | `oci+https://host[:port]/path[:tag]`, `oci+http://…` | the same directory on a web server, for reading |
//! | `oci+s3://bucket/prefix[:tag]`, `oci+oss://…`, `oci+gcs://…`, `oci+azblob://…` | the same in object storage, for reading |
//! | `oci-archive:path[:tag]` | the same inside a tar |
//! | `docker-archive:path[:reference]` | the output of `docker save` |
//!
//! As with skopeo a path ends at its first colon. The path `-` of an archive means standard input. Nothing is opened here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sluice_format::Digest;

use crate::layout::{RemotePlace, Service};
use crate::registry::Reference;
use crate::{Error, ErrorKind, ManifestName};

/// The transports, as they are listed in messages.
const KNOWN: &str = "docker://, oci:, oci+https://, oci-archive:, docker-archive:";

/// Path that means standard input.
const STDIN: &str = "-";

/// The name of an image: where it is and which one there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageName {
    /// In a registry.
    Registry(Reference),
    /// In an OCI layout directory.
    Layout {
        /// The directory.
        path: PathBuf,
        /// Which image; `None` for the only one.
        name: Option<ManifestName>,
    },
    /// In an OCI layout that is read over the network.
    RemoteLayout {
        /// The directory there.
        place: RemotePlace,
        /// Which image; `None` for the only one.
        name: Option<ManifestName>,
    },
    /// In a tar of an OCI layout.
    OciArchive {
        /// The tar, or `-`.
        path: PathBuf,
        /// Which image; `None` for the only one.
        name: Option<ManifestName>,
    },
    /// In a tar as `docker save` writes it.
    DockerArchive {
        /// The tar, or `-`.
        path: PathBuf,
        /// Which image, as the archive names it; `None` for the only one.
        reference: Option<String>,
    },
}

impl ImageName {
    /// Whether the bytes come from standard input, which can be read once and not by ranges.
    pub fn is_stdin(&self) -> bool {
        match self {
            Self::OciArchive { path, .. } | Self::DockerArchive { path, .. } => path == Path::new(STDIN),
            Self::Registry(_) | Self::Layout { .. } | Self::RemoteLayout { .. } => false,
        }
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((transport, rest)) = text.split_once(':') else {
            return Err(unknown_transport(text, text));
        };
        match transport {
            "docker" => match rest.strip_prefix("//") {
                Some(reference) => Ok(Self::Registry(reference.parse()?)),
                None => Err(invalid(text, format!("needs two slashes: docker://{rest}"))),
            },
            "oci" => {
                let (path, name) = path_and_name(text, rest)?;
                if path == Path::new(STDIN) {
                    return Err(invalid(text, "a layout directory cannot be standard input"));
                }
                Ok(Self::Layout { path, name })
            }
            "oci-archive" => {
                let (path, name) = path_and_name(text, rest)?;
                Ok(Self::OciArchive { path, name })
            }
            "docker-archive" => {
                let (path, reference) = path_and_text(text, rest)?;
                Ok(Self::DockerArchive { path, reference })
            }
            _ => {
                let service = transport.strip_prefix("oci+").and_then(Service::from_scheme);
                match service {
                    Some(service) => remote_layout(text, service, rest),
                    None => Err(unknown_transport(text, transport)),
                }
            }
        }
    }
}

/// Takes `//host[:port]/path[:tag]` or `//bucket/prefix[:tag]` apart.
fn remote_layout(whole: &str, service: Service, rest: &str) -> Result<ImageName, Error> {
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(invalid(whole, "needs two slashes after the colon"));
    };
    // The first colon of a web server's part is that of its port.
    let authority_len = match service.is_web() {
        true => rest.find('/').unwrap_or(rest.len()),
        false => 0,
    };
    let (authority, path) = rest.split_at(authority_len);
    let (path, name) = match path.is_empty() {
        true => (PathBuf::new(), None),
        false => path_and_name(whole, path)?,
    };
    let location = format!("{authority}{}", path.display());
    let place = RemotePlace::new(service, &location).map_err(|error| invalid(whole, error))?;
    Ok(ImageName::RemoteLayout { place, name })
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "docker://{reference}"),
            Self::Layout { path, name } => {
                write!(f, "oci:{}", path.display())?;
                write_name(f, name.as_ref())
            }
            Self::RemoteLayout { place, name } => {
                write!(f, "{place}")?;
                write_name(f, name.as_ref())
            }
            Self::OciArchive { path, name } => {
                write!(f, "oci-archive:{}", path.display())?;
                write_name(f, name.as_ref())
            }
            Self::DockerArchive { path, reference } => {
                write!(f, "docker-archive:{}", path.display())?;
                reference.as_ref().map_or(Ok(()), |text| write!(f, ":{text}"))
            }
        }
    }
}

fn write_name(f: &mut fmt::Formatter<'_>, name: Option<&ManifestName>) -> fmt::Result {
    match name {
        None => Ok(()),
        Some(ManifestName::Tag(tag)) => write!(f, ":{tag}"),
        Some(ManifestName::Digest(digest)) => write!(f, "@{digest}"),
    }
}

/// Splits `path[:tag]` or `path@sha256:…`.
fn path_and_name(whole: &str, rest: &str) -> Result<(PathBuf, Option<ManifestName>), Error> {
    if let Some((path, digest)) = rest.split_once("@sha256:") {
        let digest = Digest::from_hex(digest).map_err(|error| invalid(whole, error))?;
        return Ok((checked_path(whole, path)?, Some(ManifestName::Digest(digest))));
    }
    let (path, tag) = path_and_text(whole, rest)?;
    Ok((path, tag.map(ManifestName::Tag)))
}

/// Splits `path[:text]` at the first colon.
fn path_and_text(whole: &str, rest: &str) -> Result<(PathBuf, Option<String>), Error> {
    let (path, text) = match rest.split_once(':') {
        None => (rest, None),
        Some((path, text)) => (path, Some(text)),
    };
    if let Some(text) = text {
        if text.is_empty() {
            return Err(invalid(whole, "has nothing after the last colon"));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(invalid(whole, "has a space or control character in its tag"));
        }
    }
    Ok((checked_path(whole, path)?, text.map(str::to_owned)))
}

fn checked_path(whole: &str, path: &str) -> Result<PathBuf, Error> {
    if path.is_empty() {
        return Err(invalid(whole, "has no path"));
    }
    Ok(PathBuf::from(path))
}

fn invalid(name: &str, reason: impl fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("image name \"{name}\": {reason}"),
    )
}

fn unknown_transport(name: &str, transport: &str) -> Error {
    let reason = format!("\"{transport}\" is not a transport; known are {KNOWN}");
    invalid(name, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ImageName {
        text.parse()
            .unwrap_or_else(|error| panic!("{text} is refused: {error}"))
    }

    fn sha(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    #[test]
    fn every_form_is_understood_and_shown_in_full() {
        let digest = sha("ab");
        for (text, shown) in [
            (
                "docker://busybox",
                "docker://docker.io/library/busybox:latest".to_owned(),
            ),
            ("docker://user/app:1", "docker://docker.io/user/app:1".to_owned()),
            (
                "docker://localhost:5000/a/b:t",
                "docker://localhost:5000/a/b:t".to_owned(),
            ),
            ("docker://[::1]:5000/a:t", "docker://[::1]:5000/a:t".to_owned()),
            (
                &format!("docker://ghcr.io/a/b:t@{digest}"),
                format!("docker://ghcr.io/a/b:t@{digest}"),
            ),
            ("oci:dir", "oci:dir".to_owned()),
            ("oci:/a/b:v1.2", "oci:/a/b:v1.2".to_owned()),
            ("oci:dir:host/name:tag", "oci:dir:host/name:tag".to_owned()),
            (&format!("oci:dir@{digest}"), format!("oci:dir@{digest}")),
            (
                "oci+https://example.com:8443/images/py/:3.12",
                "oci+https://example.com:8443/images/py:3.12".to_owned(),
            ),
            ("oci+http://[::1]:80/a", "oci+http://[::1]:80/a".to_owned()),
            ("oci+https://host", "oci+https://host".to_owned()),
            (
                "oci+s3://bucket/some/prefix:t",
                "oci+s3://bucket/some/prefix:t".to_owned(),
            ),
            ("oci+gcs://bucket:t", "oci+gcs://bucket:t".to_owned()),
            (
                &format!("oci+azblob://box/p@{digest}"),
                format!("oci+azblob://box/p@{digest}"),
            ),
            ("oci-archive:x.tar:t", "oci-archive:x.tar:t".to_owned()),
            ("oci-archive:-", "oci-archive:-".to_owned()),
            ("docker-archive:x.tar", "docker-archive:x.tar".to_owned()),
            (
                "docker-archive:-:busybox:latest",
                "docker-archive:-:busybox:latest".to_owned(),
            ),
        ] {
            assert_eq!(parse(text).to_string(), shown);
            assert_eq!(parse(&shown), parse(text));
        }
    }

    #[test]
    fn names_are_taken_apart() {
        let digest: Digest = sha("cd").parse().unwrap();
        assert_eq!(
            parse(&format!("oci:some/dir@{digest}")),
            ImageName::Layout {
                path: "some/dir".into(),
                name: Some(ManifestName::Digest(digest))
            }
        );
        assert_eq!(
            parse("docker-archive:a.tar:busybox:1"),
            ImageName::DockerArchive {
                path: "a.tar".into(),
                reference: Some("busybox:1".into())
            }
        );
        assert!(parse("docker-archive:-").is_stdin());
        assert!(parse("oci-archive:-:t").is_stdin());
        assert!(!parse("oci-archive:./-").is_stdin());
        assert!(!parse("docker://busybox").is_stdin());
    }

    #[test]
    fn refusals_say_what_to_write_instead() {
        for (text, expected) in [
            ("busybox", "is not a transport; known are docker://, oci:"),
            ("dir:/tmp/x", "\"dir\" is not a transport"),
            ("", "is not a transport"),
            ("docker:busybox", "docker://busybox"),
            ("docker://", "reference"),
            ("docker://UPPER/case", "reference"),
            ("docker://a@sha256:12", "reference"),
            (&format!("docker://a@sha512:{}", "ab".repeat(64)), "sha256"),
            ("oci:", "has no path"),
            ("oci::tag", "has no path"),
            ("oci:dir:", "nothing after"),
            ("oci:-", "standard input"),
            ("oci:dir@sha256:12", "digest"),
            ("oci:dir:a b", "space"),
            ("oci+ftp://host/x", "is not a transport"),
            ("oci+https:/host/x", "two slashes"),
            ("oci+https:///x", "is not a host"),
            ("oci+s3://", "is not a host"),
            ("oci+https://user:secret@host/x", "no password"),
            ("oci+https://host/x?signature=1", "no password, query"),
            ("oci+https://host/a/../b", ".."),
        ] {
            let error = text.parse::<ImageName>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }
}
