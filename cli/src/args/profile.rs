//! Arguments of `sluice profile`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, Subcommand};
use sluice_format::Digest;
use sluice_storage::transport::ImageName;

use super::CommonArgs;

#[derive(Debug, ClapArgs)]
pub(crate) struct ProfileArgs {
    #[command(subcommand)]
    pub(crate) command: ProfileCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// Start a container of an image on this host and keep what its start reads, so that the first start on every other host has it in time.
    /// Ends the container at the first quiet point. Needs runc.
    Record(ProfileRecordArgs),
    /// Show what starts of an image read, in order and time.
    Show(ProfileOfArgs),
    /// Write the profile of an image to a file.
    Export(ProfileExportArgs),
    /// Take a profile from a file; it replaces that of its image.
    Import(ProfileImportArgs),
    /// Attach the profile of an image to the image in its repository, where other hosts find it.
    Push(ProfileImageArgs),
    /// Take the newest profile that is attached to an image; it replaces that of this host.
    Pull(ProfileImageArgs),
    /// List the profiles of this host.
    Ls(ProfileLsArgs),
    /// Remove the profile of an image from this host.
    Rm(ProfileOfArgs),
}

/// What a profile is found by: the image, or its ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProfileName {
    /// The image is asked for its ID.
    Image(ImageName),
    /// The ID, digest of the image config. No repository is asked.
    Id(Digest),
}

impl FromStr for ProfileName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("sha256:") {
            return text.parse().map(Self::Id).map_err(|error| error.to_string());
        }
        text.parse()
            .map(Self::Image)
            .map_err(|error| format!("{error}; or give an image ID, sha256:…"))
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(image) => image.fmt(f),
            Self::Id(image_id) => write!(f, "image {image_id}"),
        }
    }
}

/// Where the profiles of this host are, and how repositories are reached.
#[derive(Debug, ClapArgs)]
pub(crate) struct ProfileStoreArgs {
    /// Cache directory. Default: /var/cache/sluice for root, else ~/.cache/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Platform of a multi-platform image. Default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProfileOfArgs {
    /// Image, docker:// or oci:, or image ID, sha256:…
    pub(crate) image: ProfileName,
    #[command(flatten)]
    pub(crate) store: ProfileStoreArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProfileRecordArgs {
    /// Image: docker:// or oci:.
    pub(crate) image: ImageName,
    /// Arguments for the image's entry point. Default: those of the image (Cmd).
    #[arg(last = true, value_name = "ARG")]
    pub(crate) arguments: Vec<String>,
    /// Environment variable of the container; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Give the container the network of this host. Default: it has none.
    #[arg(long)]
    pub(crate) net_host: bool,
    /// Attach the profile to the image in its repository, as `sluice profile push` does.
    #[arg(long)]
    pub(crate) push: bool,
    /// Directory of run-time state. Default: /run/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) store: ProfileStoreArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ContainerKeeperArgs {
    /// Whether this is the first process of its PID namespace.
    #[arg(long)]
    pub(crate) inner: bool,
    /// Directory of the bundle.
    pub(crate) directory: PathBuf,
    /// Name of the container.
    pub(crate) id: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProfileExportArgs {
    /// Image, docker:// or oci:, or image ID, sha256:…
    pub(crate) image: ProfileName,
    /// File to write; "-" for standard output.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) store: ProfileStoreArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProfileImportArgs {
    /// File to read; "-" for standard input.
    pub(crate) file: PathBuf,
    /// Cache directory. Default: /var/cache/sluice for root, else ~/.cache/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProfileImageArgs {
    /// Image: docker:// or oci:.
    pub(crate) image: ImageName,
    #[command(flatten)]
    pub(crate) store: ProfileStoreArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProfileLsArgs {
    /// Cache directory. Default: /var/cache/sluice for root, else ~/.cache/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Print one JSON document per profile.
    #[arg(long)]
    pub(crate) json: bool,
}
