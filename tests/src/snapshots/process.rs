//! The service as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Client;
use crate::{process, scratch};

/// How long it may take to answer.
const START: Duration = Duration::from_secs(30);

/// A running `serve-snapshots`; ended when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    socket: PathBuf,
}

impl Process {
    /// Starts it on `directory`, which may hold the state of an earlier one. `home` is where the engine's images are.
    ///
    /// # Errors
    /// When it was not built or does not come up; the message holds its log.
    pub async fn start(directory: &Path, home: Option<&Path>) -> Result<Self> {
        let program = scratch::profile_directory()?.join("serve-snapshots");
        ensure!(
            program.is_file(),
            "{} is missing. Build it first: cargo build -p sluice-tests",
            program.display()
        );
        let socket = directory.join("p.sock");
        let log = directory.join("service.log");
        let mut command = Command::new(program);
        command.arg(directory.join("root")).arg(&socket).args(home);
        let child = process::spawn_logged(&mut command, &log)?;
        let started = Self { child, socket };
        let deadline = tokio::time::Instant::now() + START;
        while started.connect().await.is_err() {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "the service does not answer:\n{}",
                fs::read_to_string(log).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(started)
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A new connection.
    ///
    /// # Errors
    /// When it does not listen.
    pub async fn connect(&self) -> Result<Client> {
        Client::connect(&self.socket, "sluice", "default").await
    }

    /// Kills it at once.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill the service")?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        process::end(&mut self.child, Duration::from_secs(10));
    }
}
