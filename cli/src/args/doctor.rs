//! Arguments of `sluice doctor`.

use std::path::PathBuf;

use clap::Args;
use sluice_storage::Reference;

use super::CommonArgs;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Image whose registry, credentials and layers are looked at too: HOST/NAME:TAG.
    pub(crate) image: Option<Reference>,
    /// containerd's socket.
    #[arg(
        long,
        value_name = "FILE",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(crate) containerd_address: PathBuf,
    /// containerd's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    pub(crate) containerd_config: PathBuf,
    /// containerd's program, which is asked what it makes of its configuration.
    #[arg(long, value_name = "FILE", default_value = "containerd")]
    pub(crate) containerd: PathBuf,
    /// Socket of `sluice snapshotter`.
    #[arg(long, value_name = "FILE", default_value = "/run/sluice/snapshotter.sock")]
    pub(crate) socket: PathBuf,
    /// Directory of fetched bytes.
    #[arg(long, value_name = "DIR", default_value = "/var/cache/sluice")]
    pub(crate) cache: PathBuf,
    /// Platform of a multi-platform image. Default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}
