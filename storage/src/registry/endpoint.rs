//! The URLs of one repository.

use std::fmt;
use std::sync::Arc;

use sluice_format::{BlobDigest, Digest};
use url::{Host, Url};

use super::Reference;
use crate::{Error, ErrorKind, ManifestName};

/// Where the API of one repository is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    base: Url,
    registry: String,
    repository: String,
}

impl Endpoint {
    pub(super) fn new(reference: &Reference, plain_http: bool) -> Result<Self, Error> {
        let host = reference.api_host();
        let parsed = Url::parse(&format!("https://{host}/")).map_err(|error| {
            let message = format!("registry host \"{host}\" is not valid");
            Error::new(ErrorKind::InvalidInput, message).with_source(error)
        })?;
        let base = if plain_http || is_loopback(&parsed) {
            // Parsed anew: a URL drops the port that its scheme implies, and 443 of plain HTTP must stay.
            Url::parse(&format!("http://{host}/")).unwrap_or(parsed)
        } else {
            parsed
        };
        Ok(Self {
            base,
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
        })
    }

    /// The registry's host, as the reference names it.
    pub(super) fn host(&self) -> Arc<str> {
        self.registry.as_str().into()
    }

    /// The repository's name within the registry.
    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    pub(super) fn manifest(&self, name: &ManifestName) -> Url {
        self.url(&["manifests", &name.to_string()])
    }

    pub(super) fn blob(&self, digest: &BlobDigest) -> Url {
        self.url(&["blobs", &digest.to_string()])
    }

    /// The list of a manifest's referrers.
    pub(super) fn referrers(&self, subject: &Digest, artifact_type: &str) -> Url {
        let mut url = self.url(&["referrers", &subject.to_string()]);
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
        url
    }

    /// Where uploads begin: with a slash at the end.
    pub(super) fn uploads(&self) -> Url {
        self.url(&["blobs", "uploads", ""])
    }

    pub(super) fn mount(&self, digest: &BlobDigest, from: &str) -> Url {
        let mut url = self.uploads();
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from);
        url
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // An https or http URL always has path segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .clear()
                .push("v2")
                .extend(self.repository.split('/'))
                .extend(path);
        }
        url
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "docker://{}/{}", self.registry, self.repository)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a URL's host is this machine by its very name.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// `host` or `host:port` of a URL, for messages and for finding credentials.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest_url(reference: &str, plain_http: bool) -> String {
        let reference: Reference = reference.parse().unwrap();
        let endpoint = Endpoint::new(&reference, plain_http).unwrap();
        endpoint.manifest(&reference.manifest_name()).to_string()
    }

    #[test]
    fn only_loopback_hosts_are_plain_unless_asked() {
        for (reference, plain_http, url) in [
            (
                "busybox",
                false,
                "https://registry-1.docker.io/v2/library/busybox/manifests/latest",
            ),
            (
                "localhost:5000/a/b:t",
                false,
                "http://localhost:5000/v2/a/b/manifests/t",
            ),
            ("127.9.0.1:80/a:t", false, "http://127.9.0.1/v2/a/manifests/t"),
            ("[::1]:5000/a:t", false, "http://[::1]:5000/v2/a/manifests/t"),
            (
                "localhost:443/a:t",
                false,
                "http://localhost:443/v2/a/manifests/t",
            ),
            (
                "localhost.example.com/a:t",
                false,
                "https://localhost.example.com/v2/a/manifests/t",
            ),
            (
                "192.168.0.1:5000/a:t",
                false,
                "https://192.168.0.1:5000/v2/a/manifests/t",
            ),
            (
                "192.168.0.1:5000/a:t",
                true,
                "http://192.168.0.1:5000/v2/a/manifests/t",
            ),
        ] {
            assert_eq!(manifest_url(reference, plain_http), url);
        }
    }

    #[test]
    fn tags_and_repositories_cannot_leave_their_place() {
        let reference: Reference = "example.com/a".parse().unwrap();
        let endpoint = Endpoint::new(&reference, false).unwrap();
        let url = endpoint.manifest(&ManifestName::Tag("../../x?y".into()));
        assert_eq!(url.path(), "/v2/a/manifests/..%2F..%2Fx%3Fy");
        let digest = BlobDigest(Digest::of(b""));
        let url = endpoint.mount(&digest, "b&c=d");
        assert!(url.query().unwrap().ends_with("from=b%26c%3Dd"), "{url}");
        assert_eq!(url.path(), "/v2/a/blobs/uploads/");
    }
}
