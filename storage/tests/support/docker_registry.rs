//! The real `docker-registry` on a free port of the loopback interface.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const BINARY: &str = "docker-registry";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running registry; it ends, and its storage goes, with this value.
#[derive(Debug)]
pub(crate) struct DockerRegistry {
    process: Child,
    address: String,
    _dir: TempDir,
}

impl DockerRegistry {
    /// Starts a registry and waits until it answers. A missing binary fails the test.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let address = free_address();
        let config = dir.path().join("config.yml");
        std::fs::write(&config, config_text(dir.path(), &address)).expect("a config file");
        let process = Command::new(BINARY)
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{BINARY} must be installed for this test: {error}"));
        let registry = Self {
            process,
            address,
            _dir: dir,
        };
        registry.wait();
        registry
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "waits for another process, outside of any runtime"
    )]
    fn wait(&self) {
        let begun = Instant::now();
        while std::net::TcpStream::connect(&self.address).is_err() {
            assert!(begun.elapsed() < START_TIMEOUT, "{BINARY} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

fn config_text(dir: &Path, address: &str) -> String {
    format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
         http: {{addr: \"{address}\"}}\n",
        dir.join("data").display()
    )
}
