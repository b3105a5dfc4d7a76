//! The real `docker-registry` (distribution 2.8) on a free port.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::scratch::Scratch;
use crate::{prerequisites, process};

/// How long the registry may take to listen.
const START: Duration = Duration::from_secs(20);

/// A running `docker-registry`; ends when dropped.
#[derive(Debug)]
pub struct DistributionRegistry {
    child: Child,
    address: String,
    /// Storage, configuration and log.
    pub scratch: Scratch,
}

impl DistributionRegistry {
    /// Starts one with empty storage.
    ///
    /// # Errors
    /// When it is not installed or does not come up.
    pub fn start() -> Result<Self> {
        let program = prerequisites::command("docker-registry", "docker-registry")?;
        let scratch = Scratch::new("registry")?;
        let address = free_address()?;
        // JSON is YAML.
        let config = json!({
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": scratch.directory("storage")?}},
            "http": {"addr": address},
        });
        let config_path = scratch.join("config.yml");
        fs::write(&config_path, config.to_string())?;
        let log = scratch.join("log");
        let child = process::spawn_logged(Command::new(program).arg("serve").arg(config_path), &log)?;
        let registry = Self {
            child,
            address,
            scratch,
        };
        process::wait_until("docker-registry to listen", START, || {
            TcpStream::connect(&registry.address).is_ok()
        })
        .with_context(|| fs::read_to_string(log).unwrap_or_default())?;
        Ok(registry)
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `docker://HOST:PORT/NAME`, with a tag in `name` or without.
    pub fn reference(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }
}

impl Drop for DistributionRegistry {
    fn drop(&mut self) {
        process::end(&mut self.child, Duration::from_secs(3));
    }
}

/// A loopback address with a port that was free a moment ago.
fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.to_string())
}
