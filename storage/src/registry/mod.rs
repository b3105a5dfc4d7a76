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
mod clients;
mod credentials;
mod endpoint;
mod exchange;
mod handed_over;
mod hosts;
mod options;
mod part;
mod pull;
mod push;
mod reference;
mod referrers;
mod repository;
mod retry;
mod route;
mod tls;
mod transfer;
mod transport;
mod web;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub use self::credentials::Credential;
use self::endpoint::Endpoint;
use self::exchange::Exchange;
use self::hosts::Host;
use self::hosts::config::HostConfig;
pub use self::options::{HttpVersion, RegistryOptions};
pub use self::reference::Reference;
pub use self::repository::RegistryRepository;
#[cfg(feature = "object-storage")]
pub(crate) use self::retry::Patience;
use self::transport::Transport;
pub(crate) use self::web::WebDirectory;
use crate::layout::RemotePlace;
use crate::sync::lock;
use crate::{Error, ErrorKind};

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

/// The hosts of a registry, as `hosts.toml` listed them when they were last asked for.
type KnownHosts = (Vec<HostConfig>, Vec<Arc<Host>>);

/// The connections, tokens and counters of all registries that a process talks to.
#[derive(Debug)]
pub struct RegistryClient {
    options: RegistryOptions,
    exchange: Exchange,
    /// Connections for hosts that need nothing of their own.
    transport: Transport,
    hosts: Mutex<HashMap<String, KnownHosts>>,
    traffic: Arc<TrafficCounters>,
}

impl RegistryClient {
    /// A client without open connections. With its first connection it installs ring as the TLS provider of the process when that has none.
    pub fn new(options: RegistryOptions) -> Arc<Self> {
        let traffic = Arc::new(TrafficCounters::default());
        Arc::new(Self {
            exchange: Exchange::new(&options),
            transport: Transport::new(&options, &traffic),
            options,
            hosts: Mutex::default(),
            traffic,
        })
    }

    /// Reads the trust store of the system, so that no request has to wait for that. Where there is none, the first request over TLS says so.
    pub async fn prepare(&self) {
        self.transport.prepare().await;
    }

    /// The repository that `reference` names; its tag or digest does not matter. Looks for a `hosts.toml`, which blocks on the
    /// disk for a moment; one that was changed counts from the next call on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a host that no URL can hold, and for a `hosts.toml` or
    /// a certificate that is not valid.
    pub fn repository(self: &Arc<Self>, reference: &Reference) -> Result<Arc<RegistryRepository>, Error> {
        let hosts = self.hosts(reference)?;
        let mut endpoints: Vec<Endpoint> = hosts
            .into_iter()
            .map(|host| Endpoint::new(reference, host))
            .collect();
        let origin = endpoints.pop().ok_or_else(|| {
            let message = format!("there is no host for {}", reference.registry());
            Error::new(ErrorKind::InvalidInput, message)
        })?;
        Ok(Arc::new(RegistryRepository::new(self.clone(), endpoints, origin)))
    }

    /// The hosts that answer for the registry of `reference`; the same ones as before while their configuration stays.
    fn hosts(&self, reference: &Reference) -> Result<Vec<Arc<Host>>, Error> {
        let registry = reference.registry();
        let configs = hosts::directory::load(&self.options.hosts_dir, registry)?;
        if let Some((known, hosts)) = lock(&self.hosts).get(registry)
            && *known == configs
        {
            return Ok(hosts.clone());
        }
        let make = |config| {
            let host = Host::new(config, reference, &self.options, &self.transport, &self.traffic)?;
            Ok(Arc::new(host))
        };
        let hosts: Vec<Arc<Host>> = configs.iter().map(make).collect::<Result<_, Error>>()?;
        lock(&self.hosts).insert(registry.to_owned(), (configs, hosts.clone()));
        Ok(hosts)
    }

    /// Uses `credential` for the repository of `reference` from now on, before what files have for it; `None` for files only.
    /// Gives what was used before. What a registry has granted already is used until it expires or is refused.
    pub fn hand_over(&self, reference: &Reference, credential: Option<Credential>) -> Option<Credential> {
        self.exchange.handed_over().put(reference, credential)
    }

    /// A directory of a web server.
    pub(crate) fn web_directory(self: &Arc<Self>, place: &RemotePlace) -> Result<Arc<WebDirectory>, Error> {
        Ok(Arc::new(WebDirectory::new(self, place)?))
    }

    /// Connections for whatever needs nothing of the rest.
    #[cfg(feature = "object-storage")]
    pub(crate) fn plain_http_client(&self) -> Result<reqwest::Client, Error> {
        self.transport.client()
    }

    /// How this client talks.
    pub fn options(&self) -> &RegistryOptions {
        &self.options
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
