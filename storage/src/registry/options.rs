//! How to talk to registries: what a caller may choose.

use std::path::PathBuf;
use std::time::Duration;

use sluice_format::Limits;

/// Where containerd keeps `hosts.toml` files.
const HOSTS_DIR: &str = "/etc/containerd/certs.d";
/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the head of an answer to a request that carries no blob: a registry may have to ask its own storage first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest pause between two reads of a body: the reader of a file waits behind it, and what arrived is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before the first retry; doubled by each one after it.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Retries after the first attempt.
const RETRIES: usize = 4;
/// Longest wait that a registry may ask for: a reader of a file waits behind it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How to talk to registries and web servers.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Plain HTTP for every registry, not just for those on loopback. Hosts that `hosts.toml` names by URL keep their scheme.
    pub plain_http: bool,
    /// The only file to take credentials from. Without it: `REGISTRY_AUTH_FILE`, else the files of podman and docker.
    pub auth_file: Option<PathBuf>,
    /// Directory in containerd's `certs.d` layout: mirrors, certificates and headers per registry. It may be missing.
    pub hosts_dir: PathBuf,
    /// HTTP versions that are offered to HTTPS hosts.
    pub http_version: HttpVersion,
    /// Longest wait for a TCP and TLS connection; `dial_timeout` of a `hosts.toml` goes before it.
    pub connect_timeout: Duration,
    /// Longest wait for the head of an answer. Uploads, which a registry may copy before it answers, have a bound of their own.
    pub answer_timeout: Duration,
    /// Longest pause within a body. What has arrived is kept, and the rest is asked for again.
    pub idle_timeout: Duration,
    /// Wait before the first retry of a temporary failure; later ones wait longer.
    pub first_retry_delay: Duration,
    /// Retries after the first attempt, counted anew whenever a transfer got on.
    pub retries: usize,
    /// Longest wait between attempts in all: a retry that would begin later does not take place. Counted as `retries` are.
    pub patience: Duration,
    /// Bounds on what registries send.
    pub limits: Limits,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            auth_file: None,
            hosts_dir: HOSTS_DIR.into(),
            http_version: HttpVersion::default(),
            connect_timeout: CONNECT_TIMEOUT,
            answer_timeout: ANSWER_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            first_retry_delay: FIRST_RETRY_DELAY,
            retries: RETRIES,
            patience: PATIENCE,
            limits: Limits::default(),
        }
    }
}

/// HTTP versions to speak over TLS. Plain HTTP is always HTTP/1.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1: every range has a connection, and so a TCP window, of its own.
    #[default]
    Http1Only,
    /// HTTP/2 where the host offers it: all ranges share one connection.
    Negotiate,
}
