//! The service inside the test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_snapshotter::testing::DirectoryImages;
use sluice_snapshotter::{Error, Options, Snapshotter, serve, socket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Client;
use crate::prerequisites;
use crate::scratch::Scratch;

/// How long a stopped service may take to let go of its files.
const HANDOVER: Duration = Duration::from_secs(30);
/// How often that is tried.
const POLL: Duration = Duration::from_millis(5);

/// A running service with its engine and a connected client. What is mounted under its scratch directory is unmounted when
/// it is dropped.
#[derive(Debug)]
pub struct Service {
    /// A client in the namespace `default`.
    pub client: Client,
    /// The engine, to be filled with images and to be watched.
    pub engine: Arc<DirectoryImages>,
    running: Option<Running>,
    options: Options,
    /// For whatever the test needs beside the service's own directories.
    pub scratch: Scratch,
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Error>>,
}

impl Service {
    /// Starts one with empty state, whose trees stay mounted until somebody asks for a cleanup.
    ///
    /// # Errors
    /// When it cannot be started or the test is not allowed to mount.
    pub async fn start(name: &str) -> Result<Self> {
        Self::start_with_linger(name, Duration::from_secs(3600)).await
    }

    /// Starts one whose trees stay mounted for `linger` after their last use.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub async fn start_with_linger(name: &str, linger: Duration) -> Result<Self> {
        let options = Options {
            tree_linger: linger,
            ..Options::default()
        };
        Self::start_with(name, options).await
    }

    /// Starts one with these options.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub async fn start_with(name: &str, options: Options) -> Result<Self> {
        prerequisites::root()?;
        let scratch = Scratch::new(name)?;
        let engine = Arc::new(DirectoryImages::open(&scratch.join("engine"))?);
        let (running, client) = run(&scratch, Arc::clone(&engine), options.clone()).await?;
        Ok(Self {
            client,
            engine,
            running: Some(running),
            options,
            scratch,
        })
    }

    /// The service's root directory.
    pub fn root(&self) -> PathBuf {
        self.scratch.join("root")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("s.sock")
    }

    /// Ends the service as a service manager does; mounts and files stay.
    ///
    /// # Errors
    /// When it does not end well.
    pub async fn stop(&mut self) -> Result<()> {
        let running = self.running.take().context("the service does not run")?;
        // The receiver is gone when the service ended by itself, which the task then tells.
        let _ = running.stop.send(());
        running.task.await??;
        Ok(())
    }

    /// Starts it again on the state it left, with a new engine that remembers nothing.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub async fn start_again(&mut self) -> Result<()> {
        self.engine = Arc::new(DirectoryImages::open(&self.scratch.join("engine"))?);
        let (running, client) = run(&self.scratch, Arc::clone(&self.engine), self.options.clone()).await?;
        self.running = Some(running);
        self.client = client;
        Ok(())
    }
}

async fn run(scratch: &Scratch, engine: Arc<DirectoryImages>, options: Options) -> Result<(Running, Client)> {
    let snapshotter = open(&scratch.join("root"), engine, options).await?;
    let path = scratch.join("s.sock");
    let listener = socket::bind(&path).await?;
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        // A dropped sender means the end as well.
        let _ = stopped.await;
    };
    let task = tokio::spawn(serve(listener, snapshotter, shutdown));
    let client = Client::connect(&path, "sluice", "default").await?;
    Ok((Running { stop, task }, client))
}

/// The one before may still be finishing an operation or a connection in the background: it has the records locked until
/// then.
async fn open(root: &Path, engine: Arc<DirectoryImages>, options: Options) -> Result<Snapshotter> {
    let deadline = Instant::now() + HANDOVER;
    loop {
        match Snapshotter::open(root, engine.clone(), options.clone()).await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
            result => return Ok(result?),
        }
    }
}
