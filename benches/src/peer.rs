//! Hosts that run an image through containerd, each in another way: with Sluice, and with the snapshotters that it is measured beside.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use sluice_tests::containerd::{Containerd, Proxy, Release};
use sluice_tests::installed::{self, Service};
use sluice_tests::process;
use sluice_tests::scratch::Disk;

use super::command::sluice;
use super::daemons::{cpu_seconds, peak_memory};

/// What runs the image. Each begins with empty state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// `sluice snapshotter` with containerd 1.6.
    Sluice,
    /// containerd 1.6 with the overlayfs snapshotter.
    Overlayfs,
    /// containerd 2 with the EROFS snapshotter.
    Erofs,
    /// The SOCI snapshotter with containerd 1.6. It needs --soci and, for a certificate of its registry, `SSL_CERT_FILE`.
    Soci,
}

impl Way {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sluice => "sluice",
            Self::Overlayfs => "overlayfs",
            Self::Erofs => "erofs",
            Self::Soci => "soci",
        }
    }

    /// Its name in containerd.
    pub fn snapshotter(self) -> &'static str {
        self.name()
    }
}

/// Where SOCI is, which is not among the programs of this system.
#[derive(Clone, Debug, clap::Args)]
pub struct SociArgs {
    /// Directory with `soci` and `soci-snapshotter-grpc`.
    #[arg(long, value_name = "DIR")]
    soci: Option<PathBuf>,
    /// The image for SOCI, where that has another name: its old versions speak TLS only.
    #[arg(long, value_name = "IMAGE")]
    soci_image: Option<String>,
}

impl SociArgs {
    fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self
            .soci
            .as_ref()
            .context("where SOCI is must be said with --soci")?;
        Ok(directory.join(name))
    }
}

/// SOCI keeps what it fetched there, whatever its options say.
const SOCI_STORE: &str = "/var/lib/soci-snapshotter-grpc";

/// How long SOCI's service may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A host that has never seen an image. Its parts end in this order.
#[derive(Debug)]
pub struct Host {
    way: Way,
    plain_http: bool,
    soci: SociArgs,
    containerd: Containerd,
    daemon: Daemon,
    _disk: Option<Disk>,
}

/// What runs beside containerd.
#[derive(Debug)]
enum Daemon {
    None,
    Sluice(Service),
    Soci(Soci),
}

#[derive(Debug)]
struct Soci(Child);

impl Drop for Soci {
    fn drop(&mut self) {
        process::end(&mut self.0, PATIENCE);
    }
}

impl Host {
    /// Starts its daemons.
    ///
    /// # Errors
    /// When one of them is not installed or does not come up.
    pub fn start(way: Way, plain_http: bool, soci: &SociArgs) -> anyhow::Result<Self> {
        let (containerd, daemon, disk) = match way {
            Way::Overlayfs => (Containerd::start()?, Daemon::None, None),
            Way::Erofs => (Containerd::start_erofs()?, Daemon::None, None),
            Way::Sluice | Way::Soci => {
                let disk = Disk::new("service")?;
                let daemon = match way {
                    Way::Soci => start_soci(&disk.directory, soci)?,
                    _ => start_sluice(&disk.directory, plain_http)?,
                };
                let socket = installed::socket(&disk.directory);
                let proxy = Proxy {
                    name: way.snapshotter(),
                    socket: &socket,
                };
                let containerd = Containerd::start_with(Release::One, &[proxy])?;
                (containerd, daemon, Some(disk))
            }
        };
        Ok(Self {
            way,
            plain_http,
            soci: soci.clone(),
            containerd,
            daemon,
            _disk: disk,
        })
    }

    /// Its containerd.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// How containerd knows `image`, which is named as Sluice names images.
    pub fn reference<'a>(&'a self, image: &'a str) -> &'a str {
        let image = match &self.soci.soci_image {
            Some(own) if self.way == Way::Soci => own,
            _ => image,
        };
        image.strip_prefix("docker://").unwrap_or(image)
    }

    /// Pulls the image until a container can be made of it.
    ///
    /// # Errors
    /// When that fails, or Sluice does not serve every layer.
    pub fn pull(&self, image: &str) -> anyhow::Result<()> {
        let reference = self.reference(image);
        match self.way {
            Way::Overlayfs => self.containerd.pull(reference),
            Way::Erofs => self.pull_on_this_side(reference),
            Way::Sluice => self.sluice_pull(reference),
            Way::Soci => {
                let mut command = Command::new(self.soci.program("soci")?);
                let address = self.containerd.socket();
                command.arg("--address").arg(address);
                process::run(command.args(["image", "rpull", reference])).map(|_| ())
            }
        }
    }

    /// containerd 2 unpacks in its transfer service, which has to be configured for each snapshotter, unless `ctr` does it.
    fn pull_on_this_side(&self, reference: &str) -> anyhow::Result<()> {
        let arguments = [
            "images",
            "pull",
            "--local",
            "--plain-http",
            "--snapshotter",
            self.way.snapshotter(),
            reference,
        ];
        process::run(&mut self.containerd.ctr(arguments)).map(|_| ())
    }

    fn sluice_pull(&self, reference: &str) -> anyhow::Result<()> {
        let mut command = Command::new(sluice()?);
        command
            .args([
                "pull",
                "--json",
                "--snapshotter",
                self.way.snapshotter(),
                "--containerd-address",
            ])
            .arg(self.containerd.socket())
            .arg(reference);
        if self.plain_http {
            command.arg("--plain-http");
        }
        let pulled: serde_json::Value = serde_json::from_str(&process::run(&mut command)?)?;
        ensure!(
            pulled["layers"] == pulled["served"],
            "not every layer of {reference} is served: {pulled}"
        );
        Ok(())
    }

    fn daemons(&self) -> impl Iterator<Item = u32> {
        let other = match &self.daemon {
            Daemon::None => None,
            Daemon::Sluice(service) => Some(service.pid()),
            Daemon::Soci(soci) => Some(soci.0.id()),
        };
        [self.containerd.pid()].into_iter().chain(other)
    }

    /// Processor seconds that its daemons have used, with programs that they ran.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.daemons().map(cpu_seconds).sum()
    }

    /// Most memory that its daemons have had, in bytes: the sum of what each had at its own peak.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn peak_memory(&self) -> anyhow::Result<u64> {
        self.daemons().map(peak_memory).sum()
    }
}

fn start_sluice(state: &Path, plain_http: bool) -> anyhow::Result<Daemon> {
    let options = plain_http.then_some("--plain-http");
    Ok(Daemon::Sluice(Service::start(state, options.as_slice())?))
}

fn start_soci(state: &Path, soci: &SociArgs) -> anyhow::Result<Daemon> {
    match fs::remove_dir_all(SOCI_STORE) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        outcome => outcome.with_context(|| format!("removing {SOCI_STORE}"))?,
    }
    let configuration = state.join("soci.toml");
    fs::write(&configuration, "")?;
    let mut command = Command::new(soci.program("soci-snapshotter-grpc")?);
    command.arg("--address").arg(installed::socket(state));
    command.arg("--root").arg(state.join("soci"));
    command.arg("--config").arg(configuration);
    let child = Soci(process::spawn_logged(&mut command, &state.join("soci.log"))?);
    process::wait_until("SOCI to listen", PATIENCE, || installed::socket(state).exists())?;
    Ok(Daemon::Soci(child))
}
