//! Command-line arguments.

mod cache;
mod containerd;
mod doctor;
pub(crate) mod export;
pub(crate) mod index;
mod install;
pub(crate) mod profile;
pub(crate) mod supervise;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use sluice_converter::PackFormat;
use sluice_storage::transport::ImageName;
use sluice_storage::{LayerMode, OnFailure};

pub(crate) use self::cache::{CacheArgs, CacheCommand, PruneArgs};
pub(crate) use self::containerd::{ContainerdArgs, PullArgs, SnapshotterArgs};
pub(crate) use self::doctor::DoctorArgs;
pub(crate) use self::install::InstallArgs;

/// Starts gigabyte-sized container images in seconds: convert an image once, then mount it and fetch only what is read.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 110)]
pub(crate) struct Args {
    /// Say more on standard error (-vv for every request). SLUICE_LOG takes a filter such as "debug" instead.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// How much is said on standard error. A service says when it starts something, also unasked.
    pub(crate) fn verbosity(&self) -> u8 {
        let unasked = u8::from(matches!(self.command, Command::Snapshotter(_)));
        self.verbose.saturating_add(unasked)
    }

    /// Whether the process leaves its terminal.
    pub(crate) fn detaches(&self) -> bool {
        matches!(&self.command, Command::Mount(mount) if mount.detach)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Rewrite an image so that it can be started lazily; it stays an ordinary image with the same image ID.
    Convert(ConvertArgs),
    /// Attach layer indexes to an image as it is, so that it can be started lazily without being rewritten.
    Index(index::IndexArgs),
    /// Give the image back as it is, every blob with its digest: what a lazily pulled image lacks comes from its registry, or from the cache.
    Export(export::ExportArgs),
    /// Make an image from a directory tree.
    Pack(PackArgs),
    /// Read a whole image and verify every digest, alone or against its original.
    Check(CheckArgs),
    /// Show what an image consists of.
    Inspect(LookArgs),
    /// List files of an image without mounting it.
    Ls(LsArgs),
    /// Print a file of an image without mounting it.
    Cat(CatArgs),
    /// Mount an image and serve it until it is unmounted or interrupted.
    Mount(MountArgs),
    /// Unmount an image that `sluice mount` serves.
    Umount(UmountArgs),
    /// Show and exchange what starts of an image read, so that the next one has it in time.
    Profile(profile::ProfileArgs),
    /// Look into the cache of fetched bytes, make room in it, and check it. Mounts may run meanwhile.
    Cache(CacheArgs),
    /// Run a command, start it again when it dies, and keep the descriptors that it has stored meanwhile, as systemd does: for hosts without systemd.
    /// SIGHUP restarts the command for an upgrade, SIGTERM ends it.
    Supervise(supervise::SuperviseArgs),
    /// Become the command of `sluice supervise`.
    #[command(hide = true)]
    Supervised(supervise::SupervisedArgs),
    /// Serve snapshots to containerd until interrupted: layers are mounted instead of unpacked.
    Snapshotter(SnapshotterArgs),
    /// Pull an image into containerd so that a snapshotter can serve its layers.
    Pull(PullArgs),
    /// Tell containerd and systemd on this host about Sluice, or with --uninstall take that back.
    Install(InstallArgs),
    /// Find out why containers would not start lazily on this host, and what to do. Changes nothing; ends with 1 when something
    /// is in the way.
    Doctor(DoctorArgs),
    /// Watch over the mounts of one `sluice mount`.
    #[command(hide = true)]
    MountGuard,
    /// Run a container until standard input ends.
    #[command(hide = true)]
    ContainerKeeper(profile::ContainerKeeperArgs),
    /// Wait for the kernel while it mounts, on behalf of a process that serves what it asks for.
    #[command(hide = true)]
    MountHelper,
    /// Have the kernel read files of an image before programs ask for them.
    #[command(hide = true)]
    PageReader,
}

/// What most commands take: the form of the result, and how registries are reached.
#[derive(Debug, ClapArgs)]
pub(crate) struct CommonArgs {
    /// Print results as JSON, one document per line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Talk plain HTTP to registries that are not on this machine too. Loopback addresses are always reached by plain HTTP.
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Credentials in the format of docker's config.json, instead of the usual places.
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub(crate) auth_file: Option<PathBuf>,
    /// Directory of hosts.toml files (mirrors, certificates, headers), as containerd has it. Default: /etc/containerd/certs.d.
    #[arg(long, value_name = "DIR", env = "SLUICE_HOSTS_DIR")]
    pub(crate) hosts_dir: Option<PathBuf>,
}

/// How layers are cut and compressed.
#[derive(Debug, ClapArgs)]
pub(crate) struct EncodingArgs {
    /// zstd level, 1 (fast) to 19 (small).
    #[arg(long, value_name = "N", default_value_t = sluice_converter::DEFAULT_LEVEL, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub(crate) level: i32,
    /// Plain bytes per chunk: a power of two from 16K to 4M, with or without K or M.
    #[arg(long, value_name = "BYTES", default_value = "256K", value_parser = parse_bytes)]
    pub(crate) chunk_size: u32,
    /// Threads that decompress and compress. Default: all cores. The result does not depend on it.
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<NonZeroUsize>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ConvertArgs {
    /// Image to read: docker://, oci:, oci+https://, oci-archive: or docker-archive: ("-" as the path reads an archive from standard input).
    pub(crate) source: ImageName,
    /// Where to write it: docker://, oci: or oci-archive:.
    pub(crate) target: ImageName,
    #[command(flatten)]
    pub(crate) encoding: EncodingArgs,
    /// Platform to convert: os/arch[/variant], or "all" to keep a multi-platform image whole.
    #[arg(long, value_name = "PLATFORM", default_value = "all")]
    pub(crate) platform: String,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PackFormatArg {
    /// Chunked zstd with a layer index: can be mounted at once.
    Sluice,
    /// An ordinary gzip layer.
    Gzip,
    /// An ordinary uncompressed layer.
    Tar,
}

impl From<PackFormatArg> for PackFormat {
    fn from(format: PackFormatArg) -> Self {
        match format {
            PackFormatArg::Sluice => Self::Sluice,
            PackFormatArg::Gzip => Self::Gzip,
            PackFormatArg::Tar => Self::Tar,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PackArgs {
    /// Directory that becomes the root of the image.
    pub(crate) dir: PathBuf,
    /// Where to write the image: docker://, oci: or oci-archive:.
    pub(crate) target: ImageName,
    /// Entry point; repeat for each word.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) entrypoint: Vec<String>,
    /// Default arguments; repeat for each word.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,
    /// Environment variable; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working directory.
    #[arg(long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// User of the container's first process.
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Label; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,
    /// Image config to start from (JSON, as in the OCI image spec); the options above override its fields.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Platform to write into the config. Default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Kind of layer.
    #[arg(long, value_enum, default_value = "sluice")]
    pub(crate) format: PackFormatArg,
    #[command(flatten)]
    pub(crate) encoding: EncodingArgs,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CheckArgs {
    /// Image to read.
    pub(crate) source: ImageName,
    /// Original to compare with: image ID, DiffIDs and trees must be equal.
    #[arg(long, value_name = "ORIGINAL")]
    pub(crate) against: Option<ImageName>,
    /// Platform of a multi-platform image: os/arch[/variant], or "all".
    #[arg(long, value_name = "PLATFORM", default_value = "all")]
    pub(crate) platform: String,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LookArgs {
    /// Image to look into.
    pub(crate) source: ImageName,
    /// Platform of a multi-platform image. Default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// File or directory in the image.
    #[arg(default_value = "/")]
    pub(crate) path: PathBuf,
    /// List everything below it.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CatArgs {
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// File in the image.
    pub(crate) path: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FrontArg {
    /// EROFS where the kernel allows it, else FUSE.
    Auto,
    /// The kernel reads the tree; only missing bytes are asked from Sluice. Linux 6.12 or newer, root.
    Erofs,
    /// Sluice serves the tree.
    Fuse,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MountArgs {
    /// Image: docker://, oci:, oci+https://, oci-archive: or docker-archive:.
    pub(crate) source: ImageName,
    /// Directory to mount it on.
    pub(crate) dir: PathBuf,
    /// Return when the image is mounted, and serve it in the background.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File that a mount in the background adds its messages to. Default: nobody gets them.
    #[arg(long, value_name = "FILE", requires = "detach")]
    pub(crate) log_file: Option<PathBuf>,
    /// How the kernel sees the tree.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) front: FrontArg,
    /// Directory of fetched bytes. Default: /var/cache/sluice for root, else ~/.cache/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Bytes that the cache may take on the disk, such as 20GB. Default: four fifths of what is free plus what it has.
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_quota: Option<ByteSize>,
    /// Directory of run-time state. Default: /run/sluice for root, else $XDG_RUNTIME_DIR/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Platform of a multi-platform image. Default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// What a reader gets when its bytes cannot be fetched: "error" after the deadline, or "stall" until they can be.
    #[arg(long, value_name = "error|stall", default_value_t)]
    pub(crate) on_failure: OnFailure,
    /// Seconds that a read tries before it fails.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) read_deadline: u64,
    /// Which layers come whole, in the background: "auto" for short ones, those that are read from end to end, and images that starts read nearly all of; "lazy" for
    /// none, "whole" for all at once.
    #[arg(
        long,
        value_name = "auto|lazy|whole",
        default_value_t,
        conflicts_with = "fill"
    )]
    pub(crate) layers: LayerMode,
    /// Fetch the whole image in the background, one layer after the other.
    #[arg(long)]
    pub(crate) fill: bool,
    /// Stored bytes per second that --fill may take, such as 10MB. Default: whatever is left.
    #[arg(long, value_name = "BYTES", requires = "fill")]
    pub(crate) fill_rate: Option<ByteSize>,
    /// Neither fetch what earlier starts of the image demanded nor record this one.
    #[arg(long)]
    pub(crate) no_profile: bool,
    /// File that gets a JSON timeline of the mount when it ends: phases, first touches, waits, and bytes by reason.
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UmountArgs {
    /// Directory that an image is mounted on.
    pub(crate) dir: PathBuf,
    /// Detach now even if files are in use; the mount goes away when the last one is closed.
    #[arg(long)]
    pub(crate) lazy: bool,
    /// Directory of run-time state given to `sluice mount`.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
}

/// Reads "262144", "256K" or "1M".
fn parse_bytes(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text
        .trim_end_matches("iB")
        .split_at_checked(text.trim_end_matches("iB").len().saturating_sub(1))
    {
        Some((digits, "K" | "k")) => (digits, 1 << 10),
        Some((digits, "M" | "m")) => (digits, 1 << 20),
        _ => (text, 1),
    };
    let value = digits
        .parse::<u32>()
        .ok()
        .and_then(|value| value.checked_mul(unit));
    value.ok_or_else(|| format!("\"{text}\" is not a number of bytes such as 262144, 256K or 1M"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn byte_counts_take_units() {
        assert_eq!(parse_bytes("262144"), Ok(262_144));
        assert_eq!(parse_bytes("256K"), Ok(262_144));
        assert_eq!(parse_bytes("256KiB"), Ok(262_144));
        assert_eq!(parse_bytes("1M"), Ok(1 << 20));
        for bad in ["", "K", "1G", "-1", "99999M"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
