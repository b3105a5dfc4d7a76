//! The URLs of one repository at one host.

use std::fmt;
use std::sync::Arc;

use sluice_format::{BlobDigest, Digest};
use url::{Host as UrlHost, Url};

use super::Reference;
use super::hosts::Host;
use super::hosts::health::{Health, Standing};
use crate::ManifestName;

/// Where the API of one repository is.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) host: Arc<Host>,
    registry: Arc<str>,
    repository: Arc<str>,
    health: Arc<Health>,
}

impl Endpoint {
    pub(super) fn new(reference: &Reference, host: Arc<Host>) -> Self {
        Self {
            host,
            registry: reference.registry().into(),
            repository: reference.repository().into(),
            health: Arc::default(),
        }
    }

    /// The registry's host, as the reference names it.
    pub(super) fn registry(&self) -> Arc<str> {
        self.registry.clone()
    }

    /// The repository's name within the registry.
    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// How the host stands with this repository; the narrowest part is new.
    pub(super) fn standing(&self) -> Standing {
        Standing {
            host: self.host.health.clone(),
            repository: self.health.clone(),
            blob: Arc::default(),
        }
    }

    /// The root of the API, at which nothing happens.
    pub(super) fn root(&self) -> Url {
        let mut url = self.host.base.clone();
        // An https or http URL always has path segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("");
        }
        url
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
        let mut url = self.host.base.clone();
        // An https or http URL always has path segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .pop_if_empty()
                .extend(self.repository.split('/'))
                .extend(path);
        }
        if let Some(namespace) = &self.host.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
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
        Some(UrlHost::Domain(name)) => name == "localhost",
        Some(UrlHost::Ipv4(address)) => address.is_loopback(),
        Some(UrlHost::Ipv6(address)) => address.is_loopback(),
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
    use std::path::Path;

    use super::super::hosts::config::{self, HostConfig};
    use super::super::transport::Transport;
    use super::super::{RegistryOptions, TrafficCounters};
    use super::*;

    fn endpoint(reference: &Reference, plain_http: bool, config: &HostConfig) -> Endpoint {
        let options = RegistryOptions {
            plain_http,
            ..RegistryOptions::default()
        };
        let traffic = Arc::new(TrafficCounters::default());
        let shared = Transport::new(&options, &traffic);
        let host = Host::new(config, reference, &options, &shared, &traffic).unwrap();
        Endpoint::new(reference, Arc::new(host))
    }

    fn manifest_url(reference: &str, plain_http: bool) -> String {
        let reference: Reference = reference.parse().unwrap();
        let endpoint = endpoint(&reference, plain_http, &HostConfig::default());
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
    fn mirrors_are_told_whose_place_they_take() {
        let reference: Reference = "busybox:t".parse().unwrap();
        for (host, url) in [
            (
                "server = \"https://registry-1.docker.io\"",
                "https://registry-1.docker.io/v2/library/busybox/manifests/t",
            ),
            (
                "[host.\"http://m:81\"]",
                "http://m:81/v2/library/busybox/manifests/t?ns=docker.io",
            ),
            (
                "[host.\"https://m/p/\"]",
                "https://m/p/v2/library/busybox/manifests/t?ns=docker.io",
            ),
            (
                "[host.\"https://m/p/v2\"]",
                "https://m/p/v2/library/busybox/manifests/t?ns=docker.io",
            ),
            (
                "[host.\"https://m/p\"]\noverride_path = true",
                "https://m/p/library/busybox/manifests/t?ns=docker.io",
            ),
        ] {
            let hosts = config::parse(host, Path::new("hosts.toml")).unwrap();
            let endpoint = endpoint(&reference, false, &hosts[0]);
            assert_eq!(endpoint.manifest(&reference.manifest_name()).to_string(), url);
        }
    }

    #[test]
    fn tags_and_repositories_cannot_leave_their_place() {
        let reference: Reference = "example.com/a".parse().unwrap();
        let endpoint = endpoint(&reference, false, &HostConfig::default());
        let url = endpoint.manifest(&ManifestName::Tag("../../x?y".into()));
        assert_eq!(url.path(), "/v2/a/manifests/..%2F..%2Fx%3Fy");
        let digest = BlobDigest(Digest::of(b""));
        let url = endpoint.mount(&digest, "b&c=d");
        assert!(url.query().unwrap().ends_with("from=b%26c%3Dd"), "{url}");
        assert_eq!(url.path(), "/v2/a/blobs/uploads/");
    }
}
