//! Arguments of `sluice export`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::ensure;
use clap::Args as ClapArgs;
use sluice_storage::transport::ImageName;

use super::{CommonArgs, ContainerdArgs};

/// Transport of a destination in containerd.
const CONTAINERD: &str = "containerd";

/// Where an image is exported to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A place with a name in skopeo's syntax.
    Place(ImageName),
    /// containerd's content store, under this name or that of the source.
    Containerd(Option<String>),
}

impl FromStr for Destination {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == CONTAINERD {
            return Ok(Self::Containerd(None));
        }
        match text
            .strip_prefix(CONTAINERD)
            .and_then(|rest| rest.strip_prefix(':'))
        {
            Some(name) => {
                ensure!(!name.is_empty(), "{text} has nothing after the colon");
                Ok(Self::Containerd(Some(name.to_owned())))
            }
            None => Ok(Self::Place(text.parse()?)),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExportArgs {
    /// Image to export: docker://, oci:, oci+https://, oci-archive: or docker-archive:.
    pub(crate) image: ImageName,
    /// Where to: docker://, oci:, oci-archive:, or "containerd" for what the image lacks in containerd's content store ("containerd:NAME" when the image
    /// has another name there).
    pub(crate) destination: Destination,
    /// Export the same image with uncompressed layers, from the cache: for when the registry is gone. The image ID stays, the manifest is
    /// another one.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Platform to export: os/arch[/variant], or "all" to keep a multi-platform image whole. Default: all; for containerd and with --plain this
    /// machine's.
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Directory of fetched bytes. Default: /var/cache/sluice for root, else ~/.cache/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) containerd: ContainerdArgs,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_containerd_or_a_place() {
        let parse = |text: &str| text.parse::<Destination>();
        assert_eq!(parse("containerd").unwrap(), Destination::Containerd(None));
        let named = Destination::Containerd(Some("host/a:t".to_owned()));
        assert_eq!(parse("containerd:host/a:t").unwrap(), named);
        assert!(matches!(parse("oci:dir:t").unwrap(), Destination::Place(_)));
        for bad in ["containerd:", "containerdx", "dir"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
