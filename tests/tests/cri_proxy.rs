//! Promise: a pull that kubelet sends through `sluice snapshotter` brings its credentials to whatever is fetched later; other
//! calls reach containerd as they are; wrong credentials replace nothing; and no secret is ever logged.

use anyhow::{Context, Result, ensure};
use sluice_tests::containerd::Release;
use sluice_tests::cri::{AuthConfig, Client};
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer, program};
use sluice_tests::installed::{Host, Service};
use sluice_tests::registry::{CountingRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::{process, sluice};
use tokio::runtime::Runtime;
use tonic::Code;

const USER: &str = "kubelet";
const PASSWORD: &str = "pa55word-of-the-pod";
const WRONG: &str = "pa55word-of-another";
/// Plain bytes of the file that a container reads later.
const LARGE_LEN: u64 = 32 << 20;

/// The layout with a converted image, called `c`: a program and its libraries, and a large file.
fn converted(scratch: &Scratch) -> Result<Layout> {
    let files = Layer::of([
        Entry::file("small", b"read at once\n"),
        Entry::generated("large", LARGE_LEN, 1),
    ]);
    let image = ImageBuilder::new()
        .layers([program("/bin/cat", "bin/cat")?, files])
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

/// Runs a container that prints a file; gives the number of bytes that it printed.
fn printed(host: &Host, image: &str, file: &str) -> Result<u64> {
    let id = format!("cri-{}-{}", std::process::id(), file.trim_start_matches('/'));
    let run = ["-n", "k8s.io", "run", "--rm", "--snapshotter", "sluice"];
    let container = [image, &id, "/bin/cat", file];
    let mut command = host.containerd.ctr([&run[..], &container].concat());
    let output = process::output(&mut command)?;
    ensure!(
        output.status.success(),
        "{}\n{}",
        process::describe(&command, &output),
        host.log()?
    );
    Ok(output.stdout.len() as u64)
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
    let host = Host::start(release, &["--cri"], &["-vv"])?;
    Runtime::new()?.block_on(kubelet(&host, &registry, &layout))
}

async fn kubelet(host: &Host, registry: &CountingRegistry, layout: &Layout) -> Result<()> {
    let image = format!("{}/test:c", registry.address());
    let client = Client::connect(&host.socket()).await?;

    assert!(
        client.pull(&image, None).await.is_err(),
        "the registry wants a password"
    );
    assert_eq!(client.status(&image).await?, None);
    let id = client.pull(&image, auth(PASSWORD)).await?;
    let status = client.status(&image).await?.context("the image is not there")?;
    assert_eq!(status.id, id);
    assert_eq!(status.repo_tags, std::slice::from_ref(&image));
    ensure!(client.list().await?.contains(&status), "it is listed");

    assert_eq!(printed(host, &image, "/small")?, 13);
    let (moved, whole) = (registry.traffic().total_bytes(), layout.image("c")?.stored_len()?);
    ensure!(
        moved * 2 < whole,
        "{moved} of {whole} bytes\n{}",
        registry.traffic().describe()
    );

    let refused = client.pull(&image, auth(WRONG)).await;
    assert!(refused.is_err(), "a wrong password is refused");
    assert_eq!(printed(host, &image, "/large")?, LARGE_LEN);
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
    let _service = Service::start_with_images(&scratch, &scratch.join("nobody.sock"), &[])?;
    let client = Client::connect(&scratch.join("p.sock")).await?;
    let listed = client.list().await.unwrap_err();
    assert_eq!(listed.code(), Code::Unavailable, "{listed}");
    let pulled = client.pull("127.0.0.1:1/a:b", auth(PASSWORD)).await.unwrap_err();
    assert_eq!(pulled.code(), Code::Unavailable, "{pulled}");
    Ok(())
}
