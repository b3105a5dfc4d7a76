//! Promise: a pull that kubelet sends through `sluice snapshotter` brings its credentials to whatever is fetched later; other
//! calls reach containerd as they are; wrong credentials replace nothing; and no secret is ever logged.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::containerd::{Containerd, Release};
use sluice_tests::cri::{AuthConfig, Client};
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::registry::{CountingRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::{process, sluice};
use tokio::runtime::Runtime;
use tonic::Code;

const USER: &str = "kubelet";
const PASSWORD: &str = "pa55word-of-the-pod";
const WRONG: &str = "pa55word-of-another";
/// How long the service may take to listen.
const START: Duration = Duration::from_secs(30);
/// Plain bytes of the file that a container reads later.
const LARGE_LEN: u64 = 32 << 20;

/// The layout with a converted image, called `c`: a program and its libraries, and a large file.
fn converted(scratch: &Scratch) -> Result<Layout> {
    let loaded = process::run(Command::new("ldd").arg("/bin/cat"))?;
    let libraries = loaded
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut layer = Layer::of([Entry::file("bin/cat", fs::read("/bin/cat")?).mode(0o755)]);
    for library in libraries {
        let name = library.trim_start_matches('/');
        layer = layer.entry(Entry::file(name, fs::read(library)?).mode(0o755));
    }
    let files = Layer::of([
        Entry::file("small", b"read at once\n"),
        Entry::generated("large", LARGE_LEN, 1),
    ]);
    let image = ImageBuilder::new()
        .layers([layer, files])
        .write(&scratch.join("source"), "c")?;
    let directory = scratch.join("converted");
    sluice::convert(&image.reference(), &directory, "c", &[])?;
    Ok(Layout::open(&directory))
}

/// A registry that wants the password.
fn registry(layout: &Layout) -> Result<CountingRegistry> {
    let fault = Fault::Password {
        user: USER.to_owned(),
        password: PASSWORD.to_owned(),
    };
    CountingRegistry::serve_with(layout, FaultSet::none().with(fault))
}

/// `sluice snapshotter` that says all it can.
struct Service {
    child: Child,
}

impl Service {
    fn start(scratch: &Path, containerd: &Path) -> Result<Self> {
        let mut command = sluice::command(["-vv", "snapshotter"])?;
        for (option, path) in [
            ("--root", scratch.join("root")),
            ("--cache", scratch.join("cache")),
            ("--socket", scratch.join("p.sock")),
            ("--cri-proxy", containerd.to_path_buf()),
        ] {
            command.arg(option).arg(path);
        }
        // Credentials of whoever runs the tests do not count.
        command
            .arg("--auth-file")
            .arg(scratch.join("no-credentials.json"));
        let log = scratch.join("service.log");
        let child = process::spawn_logged(&mut command, &log)?;
        let service = Self { child };
        process::wait_until("the snapshotter to listen", START, || {
            UnixStream::connect(scratch.join("p.sock")).is_ok()
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        process::end(&mut self.child, Duration::from_secs(20));
    }
}

/// containerd that `sluice install` told of a service, and that service. The order is that of the end.
struct Host {
    containerd: Containerd,
    _service: Option<Service>,
    directory: PathBuf,
    _scratch: Scratch,
}

impl Host {
    fn start(release: Release) -> Result<Self> {
        let scratch = Scratch::new("cri")?;
        let mut service = None;
        let containerd = Containerd::start_changed(release, |config| {
            let mut install = sluice::command(["install", "--cri", "--no-unit"])?;
            for (option, path) in [
                ("--containerd", release.program()?),
                ("--containerd-config", config.to_path_buf()),
                ("--socket", scratch.join("p.sock")),
                ("--cache", scratch.join("cache")),
            ] {
                install.arg(option).arg(path);
            }
            process::run(&mut install)?;
            service = Some(Service::start(&scratch, &config.with_file_name("c.sock"))?);
            Ok(())
        })?;
        Ok(Self {
            containerd,
            _service: service,
            directory: scratch.to_path_buf(),
            _scratch: scratch,
        })
    }

    async fn client(&self) -> Result<Client> {
        Client::connect(&self.directory.join("p.sock")).await
    }

    /// Runs a container that prints a file; gives the number of bytes that it printed.
    fn printed(&self, image: &str, file: &str) -> Result<u64> {
        let id = format!("cri-{}-{}", std::process::id(), file.trim_start_matches('/'));
        let arguments = [
            "-n",
            "k8s.io",
            "run",
            "--rm",
            "--snapshotter",
            "sluice",
            image,
            &id,
            "/bin/cat",
            file,
        ];
        let mut command = self.containerd.ctr(arguments);
        let output = process::output(&mut command)?;
        ensure!(
            output.status.success(),
            "{}\n{}",
            process::describe(&command, &output),
            self.log()?
        );
        Ok(output.stdout.len() as u64)
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join("service.log"))?)
    }
}

fn auth(password: &str) -> Option<AuthConfig> {
    Some(AuthConfig {
        username: USER.to_owned(),
        password: password.to_owned(),
        ..AuthConfig::default()
    })
}

fn life(release: Release) -> Result<()> {
    let source = Scratch::new("cri-source")?;
    let layout = converted(&source)?;
    let registry = registry(&layout)?;
    let host = Host::start(release)?;
    Runtime::new()?.block_on(kubelet(&host, &registry, &layout))
}

async fn kubelet(host: &Host, registry: &CountingRegistry, layout: &Layout) -> Result<()> {
    let image = format!("{}/test:c", registry.address());
    let client = host.client().await?;

    assert!(
        client.pull(&image, None).await.is_err(),
        "the registry wants a password"
    );
    assert_eq!(client.status(&image).await?, None);
    let id = client.pull(&image, auth(PASSWORD)).await?;
    let status = client.status(&image).await?.context("the image is not there")?;
    assert_eq!(status.id, id);
    assert_eq!(status.repo_tags, [image.clone()]);
    ensure!(client.list().await?.contains(&status), "it is listed");

    assert_eq!(host.printed(&image, "/small")?, 13);
    let (moved, whole) = (registry.traffic().total_bytes(), layout.image("c")?.stored_len()?);
    ensure!(
        moved * 2 < whole,
        "{moved} of {whole} bytes\n{}",
        registry.traffic().describe()
    );

    let refused = client.pull(&image, auth(WRONG)).await;
    assert!(refused.is_err(), "a wrong password is refused");
    assert_eq!(host.printed(&image, "/large")?, LARGE_LEN);
    ensure!(
        registry.traffic().total_bytes() > moved,
        "it was read from the registry"
    );

    client.remove(&image).await?;
    assert_eq!(client.status(&image).await?, None);
    let log = host.log()?;
    for secret in [PASSWORD, WRONG] {
        ensure!(!log.contains(secret), "{log}");
    }
    Ok(())
}

#[test]
fn privileged_kubelets_credentials_serve_containers_of_containerd_1() -> Result<()> {
    life(Release::One)
}

#[test]
fn privileged_kubelets_credentials_serve_containers_of_containerd_2() -> Result<()> {
    life(Release::Two)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_without_containerd_calls_are_unavailable() -> Result<()> {
    let scratch = Scratch::new("cri-alone")?;
    let _service = Service::start(&scratch, &scratch.join("nobody.sock"))?;
    let client = Client::connect(&scratch.join("p.sock")).await?;
    let listed = client.list().await.unwrap_err();
    assert_eq!(listed.code(), Code::Unavailable, "{listed}");
    let pulled = client.pull("127.0.0.1:1/a:b", auth(PASSWORD)).await.unwrap_err();
    assert_eq!(pulled.code(), Code::Unavailable, "{pulled}");
    Ok(())
}
