//! Arguments of `sluice install`.

use std::path::PathBuf;

use clap::Args;

use crate::containerd::release::Release;

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Print what the files would hold, and change nothing.
    #[arg(long)]
    pub(crate) print: bool,
    /// Take back what an earlier run wrote, and nothing else.
    #[arg(long, conflicts_with = "print")]
    pub(crate) uninstall: bool,
    /// containerd's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    pub(crate) containerd_config: PathBuf,
    /// containerd's program, which is asked for its version.
    #[arg(long, value_name = "FILE", default_value = "containerd")]
    pub(crate) containerd: PathBuf,
    /// containerd's version, such as 1.7.20, instead of asking its program.
    #[arg(long, value_name = "VERSION")]
    pub(crate) containerd_version: Option<Release>,
    /// Let Kubernetes start its containers on Sluice: sets the snapshotter of containerd's CRI plugin, and the service gets
    /// the credentials that kubelet sends.
    #[arg(long)]
    pub(crate) cri: bool,
    /// Socket on which `sluice snapshotter` listens.
    #[arg(long, value_name = "FILE", default_value = "/run/sluice/snapshotter.sock")]
    pub(crate) socket: PathBuf,
    /// Directory of fetched bytes, which containerd reports as the image file system.
    #[arg(long, value_name = "DIR", default_value = "/var/cache/sluice")]
    pub(crate) cache: PathBuf,
    /// Directory for the systemd unit.
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    pub(crate) unit_dir: PathBuf,
    /// Write no systemd unit.
    #[arg(long)]
    pub(crate) no_unit: bool,
    /// Print results as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
