//! Arguments of the commands that work with containerd.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use sluice_storage::{LayerMode, OnFailure, Reference};

use super::{CommonArgs, FrontArg};

#[derive(Debug, Args)]
pub(crate) struct SnapshotterArgs {
    /// Directory of snapshots and their records, on a file system that overlayfs can write to.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sluice")]
    pub(crate) root: PathBuf,
    /// Socket that containerd connects to.
    #[arg(long, value_name = "FILE", default_value = "/run/sluice/snapshotter.sock")]
    pub(crate) socket: PathBuf,
    /// Directory of fetched bytes. Default: /var/cache/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Bytes that the cache may take on the disk, such as 20GB. Default: four fifths of what is free plus what it has.
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_quota: Option<ByteSize>,
    /// How the kernel sees image trees.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) front: FrontArg,
    /// What a reader gets when its bytes cannot be fetched: "error" after the deadline, or "stall" until they can be.
    #[arg(long, value_name = "error|stall", default_value_t)]
    pub(crate) on_failure: OnFailure,
    /// Seconds that a read tries before it fails.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) read_deadline: u64,
    /// Fetch images as a whole in the background while containers of them run.
    #[arg(long)]
    pub(crate) fill: bool,
    /// Stored bytes per second and image that --fill may take, such as 10MB. Default: whatever is left.
    #[arg(long, value_name = "BYTES", requires = "fill")]
    pub(crate) fill_rate: Option<ByteSize>,
    /// Which layers come whole, in the background, once a container starts: "auto" for short ones, those that are read from end to end, and images that starts read
    /// nearly all of; "lazy" for none, "whole" for all at once. The label containerd.io/snapshot/sluice.layers on a snapshot goes before it.
    #[arg(long, value_name = "auto|lazy|whole", default_value_t)]
    pub(crate) layers: LayerMode,
    /// Neither fetch what earlier starts of an image demanded nor record starts.
    #[arg(long)]
    pub(crate) no_profile: bool,
    /// Where /metrics and /healthz are served over HTTP: HOST:PORT, or the path of a socket.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<String>,
    /// Serve CRI's image service on the same socket by passing calls on to containerd's socket FILE, and use the credentials that
    /// come with them: for kubelet's imageServiceEndpoint.
    #[arg(long, value_name = "FILE")]
    pub(crate) cri_proxy: Option<PathBuf>,
    /// Option of every overlay mount, as in the configuration of containerd's overlayfs snapshotter; may be repeated.
    #[arg(long, value_name = "OPTION")]
    pub(crate) mount_option: Vec<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Image as containerd names it: HOST/NAME:TAG.
    pub(crate) image: Reference,
    #[command(flatten)]
    pub(crate) containerd: ContainerdArgs,
    /// Name of the snapshotter in containerd's configuration.
    #[arg(long, value_name = "NAME", default_value = "sluice")]
    pub(crate) snapshotter: String,
    /// Platform of a multi-platform image. Default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Which containerd, and which of its namespaces.
#[derive(Debug, Args)]
pub(crate) struct ContainerdArgs {
    /// containerd's socket.
    #[arg(
        long,
        alias = "address",
        value_name = "FILE",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(crate) containerd_address: PathBuf,
    /// containerd's namespace.
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        default_value = "default"
    )]
    pub(crate) namespace: String,
}
