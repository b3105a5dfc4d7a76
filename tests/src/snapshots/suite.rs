//! What the cases of containerd's suite for snapshotters are made of.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::changes::{Change, apply, assert_same};
use super::mounting::Mounted;
use super::{Labels, Service, labels};

/// Keeps containerd's garbage collector away; here a label like any other.
pub fn root_label() -> Labels {
    labels(&[("containerd.io/gc.root", "2026-01-01T00:00:00Z")])
}

/// A service with what the cases need.
#[derive(Debug)]
pub struct Suite {
    /// The service.
    pub service: Service,
    mounts: u32,
}

impl Suite {
    /// Starts it.
    ///
    /// # Errors
    /// When the service or the kernel refuses.
    pub async fn start(name: &str) -> Result<Self> {
        let service = Service::start(name).await?;
        Ok(Self { service, mounts: 0 })
    }

    /// The path of a directory that is not there yet.
    pub fn new_directory(&mut self, name: &str) -> PathBuf {
        self.mounts += 1;
        self.service.scratch.join(format!("{name}-{}", self.mounts))
    }

    /// Prepares and mounts a snapshot.
    ///
    /// # Errors
    /// When the service or the kernel refuses.
    pub async fn prepare(&mut self, key: &str, parent: &str) -> Result<Mounted> {
        let mounts = self.service.client.prepare(key, parent, &root_label()).await?;
        let directory = self.new_directory("prepared");
        Mounted::new(&mounts, directory)
    }

    /// Commits.
    ///
    /// # Errors
    /// When the service or the kernel refuses.
    pub async fn commit(&self, name: &str, key: &str) -> Result<()> {
        Ok(self.service.client.commit(name, key, &root_label()).await?)
    }

    /// Prepares, changes and commits.
    ///
    /// # Errors
    /// When the service or the kernel refuses.
    pub async fn layer(&mut self, name: &str, parent: &str, changes: &[Change]) -> Result<()> {
        let key = format!("{name}-prepare");
        let mounted = self.prepare(&key, parent).await?;
        apply(&mounted.directory, changes)?;
        mounted.unmount()?;
        self.commit(name, &key).await
    }

    /// Checks in a view that `name` shows what `flat` has.
    ///
    /// # Errors
    /// When the service or the kernel refuses.
    pub async fn check(&mut self, name: &str, flat: &Path) -> Result<()> {
        let key = format!("{name}-view");
        let mounts = self.service.client.view(&key, name, &root_label()).await?;
        let directory = self.new_directory("checked");
        let mounted = Mounted::new(&mounts, directory)?;
        assert_same(flat, &mounted.directory)?;
        mounted.unmount()?;
        Ok(self.service.client.remove(&key).await?)
    }

    /// Makes a chain of these layers and checks each of them against a flat directory.
    ///
    /// # Errors
    /// When the service or the kernel refuses.
    pub async fn check_layers(&mut self, layers: &[&[Change]]) -> Result<()> {
        let flat = self.service.scratch.directory("flat")?;
        let mut parent = String::new();
        for (at, changes) in layers.iter().enumerate() {
            let name = format!("layer-{at}");
            self.layer(&name, &parent, changes).await?;
            apply(&flat, changes)?;
            self.check(&name, &flat).await?;
            parent = name;
        }
        Ok(())
    }
}
