//! Arguments of `sluice index`.

use clap::Args as ClapArgs;
use sluice_storage::transport::ImageName;

use super::CommonArgs;

#[derive(Debug, ClapArgs)]
pub(crate) struct IndexArgs {
    /// Image whose layers get indexes: docker:// or oci:. It is not changed.
    pub(crate) image: ImageName,
    /// Where to attach the indexes instead of to the image in its repository: another repository, docker:// or oci:. An oci: directory is made when it is
    /// not there.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) output: Option<ImageName>,
    /// Platform of a multi-platform image. Default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}
