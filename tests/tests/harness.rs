//! The harness itself: the references that other tests compare with have to work before a failure means anything.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::containerd::Containerd;
use sluice_tests::images::{Entry, Image, ImageBuilder, Layer, apart, edge};
use sluice_tests::registry::{Class, Countdown, CountingRegistry, DistributionRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::{debian, prerequisites, process};

fn small_image(scratch: &Scratch) -> Result<Image> {
    let layer = Layer::of([Entry::generated("file", 300_000, 1)]);
    ImageBuilder::new()
        .layer(layer)
        .write(&scratch.join("image"), "small")
}

/// Copies an image with skopeo, whose registry client is not ours.
fn copy(reference: &str, to: &str) -> Result<String> {
    let skopeo = prerequisites::command("skopeo", "skopeo")?;
    let flags = [
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--insecure-policy",
    ];
    process::run(
        std::process::Command::new(skopeo)
            .args(flags)
            .args([reference, to]),
    )
}

#[test]
fn test_images_are_the_same_every_time() -> Result<()> {
    let (a, b) = (Scratch::new("a")?, Scratch::new("b")?);
    assert_eq!(edge::write(&a)?.digest, edge::write(&b)?.digest);
    Ok(())
}

#[test]
fn privileged_containerd_takes_the_edge_image() -> Result<()> {
    let scratch = Scratch::new("edge")?;
    let image = edge::write(&scratch.join("source"))?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let containerd = Containerd::start()?;
    let reference = format!("{}/test:edge", registry.address());
    containerd.pull(&reference)?;
    let view = containerd.view(&reference, "edge")?;
    assert_eq!(fs::read(view.directory.join("whiteout/comes-back"))?, b"new");
    assert!(!view.directory.join("whiteout/gone").exists());
    Ok(())
}

#[test]
fn privileged_containerd_refuses_a_hard_link_to_a_lower_layer() -> Result<()> {
    let scratch = Scratch::new("lower-link")?;
    let image = apart::lower_hard_link(&scratch.join("source"))?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let refused = Containerd::start()?.pull(&format!("{}/test:{}", registry.address(), image.tag));
    assert!(refused.is_err());
    Ok(())
}

#[test]
fn privileged_containerd_runs_the_debian_image() -> Result<()> {
    let registry = CountingRegistry::serve(&debian::layout()?)?;
    let containerd = Containerd::start()?;
    let reference = format!("{}/test:{}", registry.address(), debian::SMALL);
    containerd.pull(&reference)?;
    assert!(containerd.run(&reference, "harness", &[])?.contains("READY"));
    Ok(())
}

#[test]
fn images_survive_a_push_to_a_real_registry() -> Result<()> {
    let scratch = Scratch::new("push")?;
    let image = small_image(&scratch)?;
    let registry = DistributionRegistry::start()?;
    copy(&image.reference(), &registry.reference("a/b:c"))?;
    copy(
        &registry.reference("a/b:c"),
        &format!("oci:{}:back", scratch.join("back").display()),
    )?;
    Ok(())
}

#[test]
fn the_counting_registry_counts_every_byte_once() -> Result<()> {
    let scratch = Scratch::new("count")?;
    let image = small_image(&scratch)?;
    let registry = CountingRegistry::serve(&image.layout)?;
    copy(
        &registry.reference("small"),
        &format!("oci:{}:back", scratch.join("back").display()),
    )?;
    let documents = image.layout.image("small")?;
    let expected = documents.stored_len()? + documents.config_bytes.len() as u64;
    assert_eq!(
        registry.traffic().bytes(Class::Blob),
        expected,
        "{}",
        registry.traffic().describe()
    );
    assert_eq!(
        registry.traffic().bytes(Class::Manifest),
        documents.manifest_bytes.len() as u64
    );
    Ok(())
}

#[test]
fn faults_compose_and_end_when_their_count_is_used_up() -> Result<()> {
    let scratch = Scratch::new("faults")?;
    let image = small_image(&scratch)?;
    let target = format!("oci:{}:back", scratch.join("back").display());
    let harmless = FaultSet::none().with(Fault::TokenAuth).with(Fault::Redirect);
    let registry = CountingRegistry::serve_with(
        &image.layout,
        harmless.with(Fault::Latency(Duration::from_millis(5))),
    )?;
    copy(&registry.reference("small"), &target)?;
    ensure!(registry.traffic().count(Class::Token) > 0 && registry.traffic().count(Class::Storage) > 0);

    let layer = image.layers.first().context("no layer")?;
    let mut faults = HashMap::new();
    faults.insert(
        "flipped",
        Fault::FlippedByte {
            digest: layer.digest.clone(),
            offset: 100,
        },
    );
    faults.insert(
        "cut",
        Fault::CutAfter {
            bytes: 1000,
            times: Countdown::always(),
        },
    );
    faults.insert(
        "status",
        Fault::Status {
            class: Class::Manifest,
            code: 404,
            times: Countdown::always(),
        },
    );
    for (name, fault) in faults {
        registry.set_faults(FaultSet::none().with(fault));
        let fresh = format!("oci:{}:back", scratch.join(name).display());
        ensure!(
            copy(&registry.reference("small"), &fresh).is_err(),
            "{name} was not noticed"
        );
    }
    let once = Fault::Status {
        class: Class::Manifest,
        code: 404,
        times: Countdown::times(1),
    };
    registry.set_faults(FaultSet::none().with(once));
    let fresh = format!("oci:{}:back", scratch.join("once").display());
    ensure!(copy(&registry.reference("small"), &fresh).is_err());
    copy(&registry.reference("small"), &fresh).map(|_| ())
}
