//! Registries that speak the OCI distribution API.
//!
//! A [`RegistryClient`] holds what all requests of a process share: connection pools, tokens, counters. It hands out a
//! [`RegistryRepository`] per repository. Inside, one request goes through these parts: `endpoint` builds its URL, `exchange`
//! follows redirects and has `auth` answer challenges with tokens or passwords from `credentials`, `transport` sends it, `answer`
//! reads what came back, `retry` decides whether and when to try again. `pull` reads blobs by ranges, `push` uploads them, `referrers` lists artifacts.
//!
//! Secrets (passwords, tokens, signed URLs) live in memory only and appear in no message, log or `Debug` output.
//!
//! Plain HTTP is used for hosts on the loopback interface, as Docker and containerd do, and where
//! [`RegistryOptions::plain_http`] asks for it; everything else is HTTPS. Sources: OCI distribution spec 1.1; Docker registry
//! token authentication.

mod answer;
mod auth;
mod credentials;
mod endpoint;
mod exchange;
mod pull;
mod push;
mod reference;
mod referrers;
mod repository;
mod retry;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_format::Limits;

use self::endpoint::Endpoint;
use self::exchange::Exchange;
pub use self::reference::Reference;
pub use self::repository::RegistryRepository;
use crate::Error;

/// Wait before the first retry; doubled by each one after it.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(250);

/// How to talk to registries.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Plain HTTP for every registry, not just for those on loopback.
    pub plain_http: bool,
    /// The only file to take credentials from. Without it: `REGISTRY_AUTH_FILE`, else the files of podman and docker.
    pub auth_file: Option<PathBuf>,
    /// Wait before the first retry of a temporary failure; later ones wait longer.
    pub first_retry_delay: Duration,
    /// Bounds on what registries send.
    pub limits: Limits,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            auth_file: None,
            first_retry_delay: FIRST_RETRY_DELAY,
            limits: Limits::default(),
        }
    }
}

/// Requests and bytes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests sent, retries, redirects and token requests included.
    pub requests: u64,
    /// Body bytes received.
    pub received_bytes: u64,
    /// Body bytes sent.
    pub sent_bytes: u64,
}

#[derive(Debug, Default)]
struct TrafficCounters {
    requests: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

/// The connections, tokens and counters of all registries that a process talks to.
#[derive(Debug)]
pub struct RegistryClient {
    options: RegistryOptions,
    exchange: Exchange,
    traffic: Arc<TrafficCounters>,
}

impl RegistryClient {
    /// A client without open connections. Installs ring as the TLS provider of the process when it has none.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when the TLS roots of the system cannot be loaded.
    pub fn new(options: RegistryOptions) -> Result<Arc<Self>, Error> {
        let traffic = Arc::new(TrafficCounters::default());
        let exchange = Exchange::new(&options, &traffic)?;
        Ok(Arc::new(Self {
            options,
            exchange,
            traffic,
        }))
    }

    /// The repository that `reference` names; its tag or digest does not matter.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a host that no URL can hold.
    pub fn repository(self: &Arc<Self>, reference: &Reference) -> Result<Arc<RegistryRepository>, Error> {
        let endpoint = Endpoint::new(reference, self.options.plain_http)?;
        Ok(Arc::new(RegistryRepository::new(self.clone(), endpoint)))
    }

    /// What all requests of this client moved so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.traffic.requests.load(Ordering::Relaxed),
            received_bytes: self.traffic.received_bytes.load(Ordering::Relaxed),
            sent_bytes: self.traffic.sent_bytes.load(Ordering::Relaxed),
        }
    }
}
