//! Promise: a directory that a web server publishes is an image like any other: `oci+https://` mounts it lazily, with the same tree
//! as the directory itself, and refuses a server that nobody vouches for.

use std::fs;
use std::io::Read as _;

use anyhow::{Context, Result, ensure};
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer, Pattern};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;
use sluice_tests::tree_compare::{Exceptions, compare};
use sluice_tests::web_server::WebServer;

const LARGE_LEN: u64 = 24 << 20;
const SEED: u64 = 5;

#[test]
fn privileged_a_directory_on_a_web_server_is_mounted_lazily() -> Result<()> {
    let scratch = Scratch::new("web-image")?;
    let files = Layer::of([
        Entry::directory("etc", 0o755),
        Entry::file("etc/small", b"small"),
        Entry::generated("large", LARGE_LEN, SEED),
    ]);
    let image = ImageBuilder::new()
        .layer(files)
        .write(&scratch.join("source"), "v1")?;
    let directory = scratch.join("converted");
    let local = sluice::convert(&image.reference(), &directory, "v1", &[])?;
    let server = WebServer::serve(&scratch)?;
    let reference = format!("oci+https://{}/converted:v1", server.address());
    let whole = Layout::open(&directory).image("v1")?.stored_len()?;
    let mut large = Vec::new();
    Pattern::new(SEED).take(LARGE_LEN).read_to_end(&mut large)?;
    for front in FRONTS {
        let before: u64 = server.sent()?.iter().map(|sent| sent.bytes).sum();
        let mounting = Mounting::new(&reference, front);
        let refused = mounting
            .mount()
            .err()
            .context("the server is not known to be the one that is meant")?;
        ensure!(format!("{refused:#}").contains("certificate"), "{refused:#}");

        let mounted = mounting.variable("SSL_CERT_FILE", server.certificate()).mount()?;
        ensure!(fs::read(mounted.directory.join("etc/small"))? == b"small");
        let sent = server.sent()?;
        let moved = sent.iter().map(|sent| sent.bytes).sum::<u64>() - before;
        ensure!(moved * 4 < whole, "{front}: {moved} of {whole} bytes\n{sent:#?}");
        ensure!(sent.iter().any(|sent| sent.status == 206), "{sent:#?}");
        ensure!(fs::read(mounted.directory.join("large"))? == large, "{front}");

        let beside = Mounting::new(&local, front).mount()?;
        compare(&beside.directory, &mounted.directory, &Exceptions::none())?.assert_none()?;
        beside.unmount()?;
        mounted.unmount()?;
    }
    Ok(())
}
