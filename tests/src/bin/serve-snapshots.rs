//! The snapshots service as a process of its own, on an engine of plain directories.
//!
//! `serve-snapshots ROOT SOCKET [HOME]`: state in ROOT, listening on SOCKET, images in HOME or none. Ends on SIGTERM.

use std::env;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use sluice_snapshotter::testing::DirectoryImages;
use sluice_snapshotter::{Images, NoImages, Options, Snapshotter, serve, socket};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (root, path, engine): (_, _, Arc<dyn Images>) = match words[..] {
        [root, path] => (root, path, Arc::new(NoImages)),
        [root, path, home] => (root, path, Arc::new(DirectoryImages::open(Path::new(home))?)),
        _ => bail!("usage: serve-snapshots ROOT SOCKET [HOME]"),
    };
    let snapshotter = Snapshotter::open(Path::new(root), engine, Options::default()).await?;
    let listener = socket::bind(Path::new(path)).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        terminate.recv().await;
    };
    serve(listener, snapshotter, shutdown).await?;
    Ok(())
}
