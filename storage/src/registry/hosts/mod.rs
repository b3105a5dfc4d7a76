//! The hosts that answer for a registry.
//!
//! Without further words a registry is one host. A `hosts.toml` ([`directory`] finds it, [`config`] parses it) names mirrors that
//! are asked before it, and how each is reached. A [`Host`] is one of them at work: its URL, its connections, and its
//! [`health`], which all repositories of the client share.

pub(super) mod config;
pub(super) mod directory;
pub(super) mod health;

use std::sync::Arc;

use url::Url;

use self::config::{Capabilities, HostConfig};
use self::health::Health;
use super::endpoint::{authority, is_loopback};
use super::transport::Transport;
use super::{Reference, RegistryOptions, TrafficCounters};
use crate::{Error, ErrorKind};

/// Path of the API of a registry.
const API: &str = "v2";

/// One host at work.
#[derive(Debug)]
pub(super) struct Host {
    /// Where its API begins.
    pub(super) base: Url,
    /// The registry that a mirror stands in for; mirrors of several registries tell them apart by it.
    pub(super) namespace: Option<String>,
    pub(super) capabilities: Capabilities,
    pub(super) transport: Transport,
    pub(super) health: Arc<Health>,
}

impl Host {
    /// `shared` serves hosts that need nothing of their own.
    pub(super) fn new(
        config: &HostConfig,
        reference: &Reference,
        options: &RegistryOptions,
        shared: &Transport,
        traffic: &Arc<TrafficCounters>,
    ) -> Result<Self, Error> {
        let mut base = match &config.server {
            Some(server) => server.clone(),
            None => own_address(reference, options.plain_http)?,
        };
        append_api(&mut base, config.override_path);
        let plain = HostConfig {
            server: None,
            capabilities: Capabilities::ALL,
            override_path: false,
            ..config.clone()
        };
        let transport = match plain == HostConfig::default() {
            true => shared.clone(),
            false => Transport::for_host(options, traffic, config, &base)?,
        };
        let is_mirror = config.server.is_some()
            && ![reference.registry(), reference.api_host()].contains(&&*authority(&base));
        Ok(Self {
            namespace: is_mirror.then(|| reference.registry().to_owned()),
            capabilities: config.capabilities,
            base,
            transport,
            health: Arc::default(),
        })
    }

    /// A host that is no registry: a web server.
    pub(super) fn of_web(base: Url, transport: Transport) -> Self {
        Self {
            base,
            namespace: None,
            capabilities: Capabilities {
                pull: true,
                resolve: true,
                push: false,
            },
            transport,
            health: Arc::default(),
        }
    }
}

/// The address that the reference itself names.
fn own_address(reference: &Reference, plain_http: bool) -> Result<Url, Error> {
    let host = reference.api_host();
    let parsed = Url::parse(&format!("https://{host}/")).map_err(|error| {
        let message = format!("registry host \"{host}\" is not valid");
        Error::new(ErrorKind::InvalidInput, message).with_source(error)
    })?;
    if plain_http || is_loopback(&parsed) {
        // Parsed anew: a URL drops the port that its scheme implies, and 443 of plain HTTP must stay.
        return Ok(Url::parse(&format!("http://{host}/")).unwrap_or(parsed));
    }
    Ok(parsed)
}

fn append_api(base: &mut Url, override_path: bool) {
    let last = base.path_segments().and_then(|segments| {
        let mut segments = segments.filter(|segment| !segment.is_empty());
        segments.next_back().map(str::to_owned)
    });
    // An https or http URL always has path segments.
    if let Ok(mut segments) = base.path_segments_mut() {
        segments.pop_if_empty();
        if !override_path && last.as_deref() != Some(API) {
            segments.push(API);
        }
    }
}
