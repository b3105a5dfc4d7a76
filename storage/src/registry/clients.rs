//! HTTP clients of one host, or of all hosts that need nothing of their own.
//!
//! A client that speaks TLS reads the trust store of the system when it is made: 290 files on Debian, 30 ms with all of them in memory and 60 ms
//! without. So each client is made when it is first needed, and one for plain HTTP trusts nobody. Loopback hosts are reached without the proxy
//! that the environment may name.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity};
use tokio::sync::OnceCell;
use url::Url;

use super::endpoint::{authority, is_loopback};
use super::hosts::config::HostConfig;
use super::{HttpVersion, RegistryOptions, tls};
use crate::{Error, ErrorKind, blocking};

/// Idle connections kept per host: as many as a fetcher uses at a time.
const IDLE_CONNECTIONS: usize = 32;
/// How long one is kept: shorter than the minute after which most servers and balancers close it.
const IDLE_LIFETIME: Duration = Duration::from_secs(50);
const USER_AGENT: &str = concat!("sluice/", env!("CARGO_PKG_VERSION"));
/// Where the environment names the proxy of plain HTTP, which may itself be spoken to with TLS.
const PROXIES_OF_HTTP: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// What tells one client from another.
#[derive(Clone, Copy, Debug)]
struct Kind {
    verifies: bool,
    is_direct: bool,
}

impl Kind {
    /// That of the client for hosts elsewhere that are reached over TLS.
    const TLS: Self = Self {
        verifies: true,
        is_direct: false,
    };

    /// That of the client for a URL, where plain HTTP goes through a proxy that speaks TLS, or not.
    fn of(url: &Url, proxy_speaks_tls: bool) -> Self {
        let is_direct = is_loopback(url);
        Self {
            verifies: url.scheme() != "http" || !is_direct && proxy_speaks_tls,
            is_direct,
        }
    }
}

fn has_proxy_with_tls() -> bool {
    let speaks_tls = |name| env::var(name).is_ok_and(|proxy| proxy.starts_with("https:"));
    PROXIES_OF_HTTP.into_iter().any(speaks_tls)
}

/// The clients, as far as they were needed.
#[derive(Debug)]
pub(super) struct Clients {
    settings: Arc<Settings>,
    proxy_speaks_tls: bool,
    made: [[OnceCell<Client>; 2]; 2],
}

impl Clients {
    /// Those of hosts that need nothing of their own.
    pub(super) fn shared(options: &RegistryOptions) -> Self {
        Self::new(Settings {
            http_version: options.http_version,
            connect_timeout: options.connect_timeout,
            trusted: Vec::new(),
            identity: None,
            skip_verify: false,
        })
    }

    /// Those of a host with settings of its own, at `base`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for certificates that cannot be used.
    pub(super) fn of_host(options: &RegistryOptions, config: &HostConfig, base: &Url) -> Result<Self, Error> {
        let clients = Self::new(Settings {
            http_version: options.http_version,
            connect_timeout: config.dial_timeout.unwrap_or(options.connect_timeout),
            trusted: tls::trusted(&config.ca)?,
            identity: tls::identity(&config.client)?,
            skip_verify: config.skip_verify,
        });
        if !clients.settings.trusted.is_empty() || clients.settings.identity.is_some() {
            // Only making a client tells whether they are any good, and whoever wrote them down is to hear of it at once.
            clients.tls().map_err(|error| {
                let message = format!("the certificates for {} cannot be used", authority(base));
                Error::new(ErrorKind::InvalidInput, message).with_source(error)
            })?;
        }
        Ok(clients)
    }

    fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            proxy_speaks_tls: has_proxy_with_tls(),
            made: Default::default(),
        }
    }

    /// The client for a URL.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the system has no trust store.
    pub(super) async fn of(&self, url: &Url) -> Result<&Client, Error> {
        self.get(Kind::of(url, self.proxy_speaks_tls)).await
    }

    /// Makes the client for hosts that are reached over TLS. That it cannot be made is told to whoever needs it.
    pub(super) async fn prepare(&self) {
        let _ = self.get(Kind::TLS).await;
    }

    async fn get(&self, kind: Kind) -> Result<&Client, Error> {
        let make = || {
            let settings = self.settings.clone();
            blocking::run("read the trust store", move || {
                settings.make(kind).map_err(failed)
            })
        };
        self.cell(kind).get_or_try_init(make).await
    }

    fn cell(&self, kind: Kind) -> &OnceCell<Client> {
        &self.made[usize::from(kind.verifies)][usize::from(kind.is_direct)]
    }

    /// The client for hosts that are reached over TLS. Blocks on the disk.
    fn tls(&self) -> reqwest::Result<Client> {
        let cell = self.cell(Kind::TLS);
        if let Some(client) = cell.get() {
            return Ok(client.clone());
        }
        let client = self.settings.make(Kind::TLS)?;
        // Fails only when another thread has just made one, which serves as well.
        let _ = cell.set(client.clone());
        Ok(client)
    }

    /// A client for URLs of any kind, for other protocols. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Self::of`].
    #[cfg(feature = "object-storage")]
    pub(super) fn any(&self) -> Result<Client, Error> {
        self.tls().map_err(failed)
    }
}

fn failed(error: reqwest::Error) -> Error {
    Error::new(ErrorKind::Io, "the HTTP client cannot be set up").with_source(error)
}

#[derive(Debug)]
struct Settings {
    http_version: HttpVersion,
    connect_timeout: Duration,
    /// Certificates beside those of the system. They also count for hosts that this one redirects to, as with containerd.
    trusted: Vec<Certificate>,
    identity: Option<Identity>,
    skip_verify: bool,
}

impl Settings {
    fn make(&self, kind: Kind) -> reqwest::Result<Client> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Fails only when another thread has just installed one, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let mut builder = self.common();
        if kind.is_direct {
            builder = builder.no_proxy();
        }
        if !kind.verifies {
            return builder.tls_certs_only([]).build();
        }
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        builder
            .tls_certs_merge(self.trusted.clone())
            .tls_danger_accept_invalid_certs(self.skip_verify)
            .build()
    }

    fn common(&self) -> ClientBuilder {
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .tcp_nodelay(true)
            .connect_timeout(self.connect_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_LIFETIME);
        match self.http_version {
            HttpVersion::Http1Only => builder.http1_only(),
            HttpVersion::Negotiate => builder.http2_adaptive_window(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_needs_no_trust_store() {
        let verifies = |url: &str| Kind::of(&url.parse().unwrap(), false).verifies;
        assert!(verifies("https://registry.example/v2/") && verifies("https://localhost:5000/v2/"));
        assert!(!verifies("http://localhost:5000/v2/") && !verifies("http://[::1]:5000/v2/"));
        let proxied = |url: &str| Kind::of(&url.parse().unwrap(), true).verifies;
        assert!(proxied("http://registry.example/v2/") && !proxied("http://localhost:5000/v2/"));
        let is_direct = |url: &str| Kind::of(&url.parse().unwrap(), false).is_direct;
        assert!(is_direct("http://127.0.0.1:5000/v2/") && !is_direct("http://registry.example/v2/"));
    }

    #[tokio::test]
    async fn clients_are_made_when_they_are_needed() {
        let clients = Clients::shared(&RegistryOptions::default());
        let made = |clients: &Clients| {
            clients
                .made
                .iter()
                .flatten()
                .filter(|cell| cell.initialized())
                .count()
        };
        assert_eq!(made(&clients), 0);
        for url in ["http://localhost:1/a", "http://localhost:2/b"] {
            clients.of(&url.parse().unwrap()).await.unwrap();
        }
        assert_eq!(made(&clients), 1);
    }
}
