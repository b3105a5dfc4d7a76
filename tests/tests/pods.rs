//! Promise: pods as kubelet makes them, with a network of their own, run on images that are fetched lazily: sandbox, containers,
//! programs that are run in them, their restart and their end, on containerd 1.6 and 2.x.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_format::Digest;
use sluice_tests::containerd::Release;
use sluice_tests::cri::Client;
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer, Pattern, program, shell};
use sluice_tests::installed::Host;
use sluice_tests::pods::{Container, NETWORK, Network, Pod, Pods};
use sluice_tests::registry::CountingRegistry;
use sluice_tests::scratch::Scratch;
use sluice_tests::{mountinfo, sluice};
use tokio::runtime::Runtime;

/// Plain bytes of a file that is read late.
const LARGE_LEN: u64 = 48 << 20;
const LARGE_SEED: u64 = 7;

/// What containers run until they are killed.
const WAIT: [&str; 2] = ["/bin/sleep", "infinity"];
/// Reads a file of the image and one that it writes.
const SCRIPT: &str = "read a </small && echo written >/new && read b </new && echo $a, $b";

/// A layout with two converted images: `pause` for the sandbox, and `app`.
fn images(scratch: &Scratch) -> Result<Layout> {
    let source = scratch.join("source");
    let sleep = program("/bin/sleep", "bin/sleep")?;
    let pause = ImageBuilder::new()
        .layer(sleep.clone())
        .config("/config/Cmd", json!(WAIT))
        .write(&source, "pause")?;
    let files = Layer::of([
        Entry::file("small", b"small\n"),
        Entry::generated("large", LARGE_LEN, LARGE_SEED),
    ]);
    let digests = program("/usr/bin/sha256sum", "bin/sha256sum")?;
    let app = ImageBuilder::new()
        .layers([shell()?, sleep, digests, files])
        .write(&source, "app")?;
    let directory = scratch.join("converted");
    sluice::convert(&pause.reference(), &directory, "pause", &[])?;
    sluice::convert(&app.reference(), &directory, "app", &[])?;
    Ok(Layout::open(&directory))
}

/// Names the image of sandboxes in containerd's configuration, and lets containers be killed like others when memory is short: to spare one takes a right that
/// the root of a container does not have.
fn set_sandbox(config: &Path, image: &str) -> Result<()> {
    const BEFORE: &str = "stream_server_port = \"0\"\n";
    let text = fs::read_to_string(config)?;
    ensure!(text.contains(BEFORE), "{text}");
    let text = text.replace(
        BEFORE,
        &format!("{BEFORE}restrict_oom_score_adj = true\nsandbox_image = {image:?}\n"),
    );
    Ok(fs::write(config, text)?)
}

fn life(release: Release) -> Result<()> {
    let source = Scratch::new("pods-source")?;
    let layout = images(&source)?;
    let registry = CountingRegistry::serve(&layout)?;
    let mut network = None;
    let host = Host::start_with(release, &["--cri"], &[], |config| {
        network = Some(Network::configure(&config.with_file_name("networks"))?);
        set_sandbox(config, &format!("{}/test:pause", registry.address()))
    })?;
    let lived = Runtime::new()?.block_on(live(&host, &registry, &layout));
    let log = host.log()?;
    lived.with_context(|| format!("{}\n{log}", host.containerd.log()))
}

async fn live(host: &Host, registry: &CountingRegistry, layout: &Layout) -> Result<()> {
    let app = format!("{}/test:app", registry.address());
    let images = Client::connect(&host.socket()).await?;
    images.pull(&app, None).await?;

    let pods = Pods::connect(&host.containerd.socket()).await?;
    let logs = host.scratch.directory("logs")?;
    let first = pods.run("first", &logs).await?;
    let second = pods.run("second", &logs).await?;
    let (one, other) = (first.address().await?, second.address().await?);
    ensure!(one != other && one.starts_with(NETWORK), "{one} {other}");

    let name = |pod: &str| format!("{pod}-{}", std::process::id());
    let container = first.start(&app, (&name("a"), 0), &WAIT).await?;
    ensure!(container.exec(&["/bin/sh", "-c", SCRIPT]).await? == "small, written\n");
    let (moved, whole) = (
        registry.traffic().total_bytes(),
        layout.image("app")?.stored_len()?,
    );
    ensure!(
        moved * 2 < whole,
        "{moved} of {whole} bytes\n{}",
        registry.traffic().describe()
    );

    let again = second.start(&app, (&name("b"), 0), &WAIT).await?;
    let mut pattern = Pattern::new(LARGE_SEED).take(LARGE_LEN);
    let mut large = Vec::new();
    pattern.read_to_end(&mut large)?;
    let expected = format!("{}  /large\n", Digest::of(&large).to_hex());
    ensure!(again.exec(&["/bin/sha256sum", "/large"]).await? == expected);
    restart(&first, &app, &name("a"), container).await?;

    first.remove().await?;
    second.remove().await?;
    images.remove(&app).await?;
    host.containerd.collect_garbage()?;
    // The image of sandboxes is pinned, so the trees of other images are what must be gone.
    let left = mountinfo::mounts_under(&host.scratch.join("root"))?;
    ensure!(left.len() <= 1, "{left:#?}");
    Ok(())
}

/// A container that crashed comes back without what it had written.
async fn restart(pod: &Pod, app: &str, name: &str, container: Container) -> Result<()> {
    container.remove().await?;
    let container = pod.start(app, (name, 1), &WAIT).await?;
    let check = "[ ! -e /new ] && read a </small && echo $a";
    ensure!(container.exec(&["/bin/sh", "-c", check]).await? == "small\n");
    Ok(())
}

#[test]
fn privileged_pods_live_on_lazy_images_with_containerd_1() -> Result<()> {
    life(Release::One)
}

#[test]
fn privileged_pods_live_on_lazy_images_with_containerd_2() -> Result<()> {
    life(Release::Two)
}
