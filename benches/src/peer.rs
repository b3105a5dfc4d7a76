//! Hosts that run an image through containerd, each in another way: with Sluice, and with the snapshotters that it is measured beside.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use serde_json::json;
use sluice_tests::containerd::{Containerd, Proxy, Release};
use sluice_tests::installed::{self, Service};
use sluice_tests::process;
use sluice_tests::scratch::Disk;

use super::command::{find, sluice};
use super::daemons::{cpu_seconds, peak_memory};

/// What runs an image. Each begins with empty state, and finds its programs on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// `sluice snapshotter` with containerd 1.6.
    Sluice,
    /// containerd 1.6 with the overlayfs snapshotter.
    Overlayfs,
    /// containerd 2 with the EROFS snapshotter.
    Erofs,
    /// The SOCI snapshotter with containerd 1.6.
    Soci,
    /// The stargz snapshotter with containerd 1.6.
    Stargz,
    /// The nydus snapshotter with containerd 1.6, and `nydusd` with FUSE.
    Nydus,
}

impl Way {
    /// Its name, here and in containerd.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sluice => "sluice",
            Self::Overlayfs => "overlayfs",
            Self::Erofs => "erofs",
            Self::Soci => "soci",
            Self::Stargz => "stargz",
            Self::Nydus => "nydus",
        }
    }
}

/// An image and what runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contestant {
    /// What runs it.
    pub way: Way,
    /// `HOST:PORT/NAME:TAG`.
    pub reference: String,
}

impl FromStr for Contestant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (way, image) = text.split_once('=').ok_or("WAY=IMAGE is expected")?;
        Ok(Self {
            way: Way::from_str(way, false)?,
            reference: image.strip_prefix("docker://").unwrap_or(image).to_owned(),
        })
    }
}

/// SOCI keeps what it fetched there, whatever its options say.
const SOCI_STORE: &str = "/var/lib/soci-snapshotter-grpc";

/// How long another's service may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A host that has never seen an image. Its parts end in this order.
#[derive(Debug)]
pub struct Host {
    way: Way,
    plain_http: bool,
    containerd: Containerd,
    daemon: Daemon,
    _disk: Option<Disk>,
}

/// What runs beside containerd.
#[derive(Debug)]
enum Daemon {
    None,
    Sluice(Service),
    Other(Other),
}

#[derive(Debug)]
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        process::end(&mut self.0, PATIENCE);
    }
}

impl Host {
    /// Starts its daemons.
    ///
    /// # Errors
    /// When one of them is not installed or does not come up.
    pub fn start(contestant: &Contestant, plain_http: bool) -> anyhow::Result<Self> {
        let way = contestant.way;
        let (containerd, daemon, disk) = match way {
            Way::Overlayfs => (Containerd::start()?, Daemon::None, None),
            Way::Erofs => (Containerd::start_erofs()?, Daemon::None, None),
            Way::Sluice | Way::Soci | Way::Stargz | Way::Nydus => {
                let disk = Disk::new("service")?;
                let daemon = start_daemon(contestant, &disk.directory, plain_http)?;
                let socket = installed::socket(&disk.directory);
                let proxy = Proxy {
                    name: way.name(),
                    socket: &socket,
                };
                let containerd = Containerd::start_with(Release::One, &[proxy])?;
                (containerd, daemon, Some(disk))
            }
        };
        Ok(Self {
            way,
            plain_http,
            containerd,
            daemon,
            _disk: disk,
        })
    }

    /// Its containerd.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// Pulls an image until a container can be made of it.
    ///
    /// # Errors
    /// When that fails, or Sluice does not serve every layer.
    pub fn pull(&self, reference: &str) -> anyhow::Result<()> {
        let plain_http = self.plain_http.then_some("--plain-http");
        let mut command = match self.way {
            Way::Sluice => return self.sluice_pull(reference),
            Way::Overlayfs => self.containerd.ctr(["images", "pull"]),
            // Otherwise its transfer service unpacks, which knows only the snapshotters that it is told of.
            Way::Erofs => self.containerd.ctr(["images", "pull", "--local"]),
            Way::Soci => self.pull_with("soci", &["image", "rpull"]),
            Way::Stargz => self.pull_with("ctr-remote", &["images", "rpull"]),
            Way::Nydus => self.pull_with("ctr-remote", &["images", "rpull", "--use-containerd-labels"]),
        };
        if self.way != Way::Soci {
            command.args(["--snapshotter", self.way.name()]).args(plain_http);
        }
        process::run(command.arg(reference)).map(|_| ())
    }

    fn pull_with(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--address")
            .arg(self.containerd.socket())
            .args(arguments);
        command
    }

    fn sluice_pull(&self, reference: &str) -> anyhow::Result<()> {
        let mut command = Command::new(sluice()?);
        command
            .args([
                "pull",
                "--json",
                "--snapshotter",
                self.way.name(),
                "--containerd-address",
            ])
            .arg(self.containerd.socket())
            .arg(reference);
        command.args(self.plain_http.then_some("--plain-http"));
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
            Daemon::Other(other) => Some(other.0.id()),
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

fn start_daemon(contestant: &Contestant, state: &Path, plain_http: bool) -> anyhow::Result<Daemon> {
    match contestant.way {
        Way::Sluice => {
            let options = plain_http.then_some("--plain-http");
            Ok(Daemon::Sluice(Service::start(state, options.as_slice())?))
        }
        Way::Soci => {
            match fs::remove_dir_all(SOCI_STORE) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                outcome => outcome.with_context(|| format!("removing {SOCI_STORE}"))?,
            }
            start_other("soci-snapshotter-grpc", state, "")
        }
        Way::Stargz => {
            let (host, _) = contestant.reference.split_once('/').unwrap_or_default();
            let mirror =
                format!("[[resolver.host.{host:?}.mirrors]]\nhost = {host:?}\ninsecure = {plain_http}\n");
            start_other("containerd-stargz-grpc", state, &mirror)
        }
        Way::Nydus => {
            let configuration = nydus_configuration(state, plain_http)?;
            start_other("containerd-nydus-grpc", state, &configuration)
        }
        Way::Overlayfs | Way::Erofs => Ok(Daemon::None),
    }
}

/// Starts a snapshotter whose options are named as most name them.
fn start_other(program: &str, state: &Path, configuration: &str) -> anyhow::Result<Daemon> {
    let file = state.join("config.toml");
    fs::write(&file, configuration)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(file);
    command.arg("--address").arg(installed::socket(state));
    command.arg("--root").arg(state.join("root"));
    let child = Other(process::spawn_logged(&mut command, &state.join("log"))?);
    process::wait_until("a snapshotter to listen", PATIENCE, || {
        installed::socket(state).exists()
    })
    .with_context(|| fs::read_to_string(state.join("log")).unwrap_or_default())?;
    Ok(Daemon::Other(child))
}

/// Writes what `nydusd` is to do, and gives the configuration of its snapshotter: one daemon for all images, a cache of blobs, and the
/// prefetching that its documentation shows.
fn nydus_configuration(state: &Path, plain_http: bool) -> anyhow::Result<String> {
    let daemon = state.join("nydusd.json");
    let scheme = if plain_http { "http" } else { "https" };
    let settings = json!({
        "device": {
            "backend": {"type": "registry", "config": {"scheme": scheme, "skip_verify": true, "timeout": 5, "connect_timeout": 5, "retry_limit": 4}},
            "cache": {"type": "blobcache", "config": {"work_dir": state.join("cache")}},
        },
        "mode": "direct",
        "digest_validate": false,
        "iostats_files": false,
        "enable_xattr": true,
        "fs_prefetch": {"enable": true, "threads_count": 8, "merging_size": 1_048_576, "prefetch_all": false},
    });
    fs::write(&daemon, settings.to_string())?;
    let program = |name: &str| -> anyhow::Result<PathBuf> {
        find(Path::new(name)).with_context(|| format!("{name} is not on the path"))
    };
    Ok(format!(
        "version = 1\ndaemon_mode = \"shared\"\n[system]\nenable = false\n[daemon]\nnydusd_path = {:?}\nnydusimage_path = {:?}\n\
         nydusd_config = {daemon:?}\nfs_driver = \"fusedev\"\nrecover_policy = \"none\"\n[remote]\nskip_ssl_verify = true\n\
         [log]\nlevel = \"warn\"\nlog_to_stdout = true\n",
        program("nydusd")?,
        program("nydus-image")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::{Contestant, Way};

    #[test]
    fn contestants_are_ways_with_images() {
        let contestant = Contestant {
            way: Way::Erofs,
            reference: "host:1/a:b".to_owned(),
        };
        assert_eq!("erofs=docker://host:1/a:b".parse(), Ok(contestant.clone()));
        assert_eq!("erofs=host:1/a:b".parse(), Ok(contestant));
        assert!("host:1/a:b".parse::<Contestant>().is_err() && "x=y".parse::<Contestant>().is_err());
    }
}
