//! Promise: `sluice doctor` is content with what `sluice install` set up, and names each fault that makes pulls fetch
//! everything, with a remedy and exit code 1.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::containerd::Release;
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::installed::Host;
use sluice_tests::registry::{CountingRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::{process, sluice};

const BOTH: [Release; 2] = [Release::One, Release::Two];
/// Plain bytes of an image whose layer is long enough to show whether ranges are answered.
const TELLING_LEN: u64 = 8 << 20;

/// What the doctor found, by check.
#[derive(Debug)]
struct Report(BTreeMap<String, Value>);

impl Report {
    fn of(host: &Host, release: Release, options: &[&str]) -> Result<Self> {
        Self::with_config(host, release, &host.config, options)
    }

    fn with_config(host: &Host, release: Release, config: &Path, options: &[&str]) -> Result<Self> {
        let mut command = sluice::command(["doctor", "--json"])?;
        for (option, path) in [
            ("--containerd", release.program()?),
            ("--containerd-config", config.to_path_buf()),
            ("--containerd-address", host.containerd.socket()),
            ("--socket", host.socket()),
            ("--cache", host.scratch.join("cache")),
            ("--auth-file", host.scratch.join("no-credentials.json")),
        ] {
            command.arg(option).arg(path);
        }
        command.args(options);
        let output = process::output(&mut command)?;
        let mut found = BTreeMap::new();
        for line in String::from_utf8(output.stdout.clone())?.lines() {
            let finding: Value = serde_json::from_str(line)?;
            let check = finding["check"]
                .as_str()
                .context("a finding without a name")?
                .to_owned();
            ensure!(found.insert(check, finding).is_none(), "a check comes twice");
        }
        let report = Self(found);
        let expected = i32::from(!report.problems().is_empty());
        ensure!(
            output.status.code() == Some(expected),
            "{}",
            process::describe(&command, &output)
        );
        Ok(report)
    }

    /// Checks that found a problem. Each has to say what to do.
    fn problems(&self) -> Vec<&str> {
        let problems = self.0.iter().filter(|(_, finding)| finding["state"] == "problem");
        let checks = problems.map(|(check, finding)| {
            assert!(
                finding["why"].is_string() && finding["remedy"].is_string(),
                "{finding}"
            );
            check.as_str()
        });
        checks.collect()
    }
}

/// A layout with the same image as it was and converted, by the tags `o` and `c`.
fn images(scratch: &Scratch) -> Result<(Layout, Layout)> {
    let layer = Layer::of([Entry::generated("large", TELLING_LEN, 1)]);
    let image = ImageBuilder::new()
        .layers([layer])
        .write(&scratch.join("source"), "o")?;
    let directory = scratch.join("converted");
    sluice::convert(&image.reference(), &directory, "c", &[])?;
    Ok((Layout::open(&scratch.join("source")), Layout::open(&directory)))
}

#[test]
fn privileged_what_was_installed_is_good() -> Result<()> {
    let source = Scratch::new("doctor-source")?;
    let registry = CountingRegistry::serve(&images(&source)?.1)?;
    let image = format!("{}/test:c", registry.address());
    for release in BOTH {
        let host = Host::start(release, &["--cri"], &[])?;
        let report = Report::of(&host, release, &[&image])?;
        ensure!(report.problems().is_empty(), "{report:?}");
        for check in [
            "service", "plugin", "address", "cri", "image", "indexes", "ranges",
        ] {
            ensure!(report.0[check]["state"] == "good", "{check}: {report:?}");
        }
        ensure!(report.0.contains_key("transfer") == (release == Release::Two));
    }
    Ok(())
}

#[test]
fn privileged_a_service_that_does_not_run_is_named() -> Result<()> {
    for release in BOTH {
        let mut host = Host::start(release, &[], &[])?;
        host.service = None;
        let report = Report::of(&host, release, &[])?;
        assert_eq!(report.problems(), ["service"], "{report:?}");
    }
    Ok(())
}

#[test]
fn privileged_a_containerd_that_was_not_told_is_named() -> Result<()> {
    for release in BOTH {
        let host = Host::start_with(release, &[], &[], |config| {
            let mut command = sluice::command(["install", "--uninstall", "--no-unit"])?;
            process::run(command.arg("--containerd-config").arg(config)).map(|_| ())
        })?;
        let report = Report::of(&host, release, &[])?;
        let expected: &[&str] = match release {
            Release::One => &["address", "plugin"],
            Release::Two => &["address", "plugin", "transfer"],
        };
        assert_eq!(report.problems(), expected, "{report:?}");
    }
    Ok(())
}

#[test]
fn privileged_the_traps_of_the_transfer_service_are_named() -> Result<()> {
    let source = Scratch::new("doctor-source")?;
    let registry = CountingRegistry::serve(&images(&source)?.1)?;
    let host = Host::start_with(Release::Two, &[], &[], |config| {
        let text = fs::read_to_string(config)?;
        let line = "enable_remote_snapshot_annotations = \"true\"\n";
        ensure!(text.contains(line), "{text}");
        fs::write(config, text.replace(line, ""))?;
        Ok(())
    })?;
    let report = Report::of(&host, Release::Two, &[])?;
    assert_eq!(report.problems(), ["plugin"], "{report:?}");
    host.containerd
        .pull_into("sluice", &format!("{}/test:c", registry.address()))?;
    let report = Report::of(&host, Release::Two, &[])?;
    assert_eq!(report.problems(), ["labels", "plugin"], "{report:?}");

    // A list of one's own without the snapshotter.
    let other = host.scratch.join("other.toml");
    let list = "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                platform = \"linux/amd64\"\nsnapshotter = \"overlayfs\"\n";
    let address = format!(
        "[proxy_plugins.sluice]\ntype = \"snapshot\"\naddress = {:?}\n",
        host.socket()
    );
    fs::write(&other, format!("version = 3\n{address}{list}"))?;
    let report = Report::with_config(&host, Release::Two, &other, &[])?;
    assert_eq!(report.problems(), ["labels", "plugin", "transfer"], "{report:?}");
    Ok(())
}

#[test]
fn privileged_a_cri_plugin_that_hides_the_image_is_named() -> Result<()> {
    for release in BOTH {
        let host = Host::start(release, &["--cri"], &[])?;
        let text = fs::read_to_string(&host.config)?;
        let (told, hidden) = (
            "disable_snapshot_annotations = false",
            "disable_snapshot_annotations = true",
        );
        ensure!(text.contains(told), "{text}");
        let other = host.scratch.join("other.toml");
        fs::write(&other, text.replace(told, hidden))?;
        let report = Report::with_config(&host, release, &other, &[])?;
        assert_eq!(report.problems(), ["cri"], "{report:?}");
    }
    Ok(())
}

#[test]
fn privileged_a_pull_without_labels_is_named() -> Result<()> {
    let source = Scratch::new("doctor-source")?;
    let registry = CountingRegistry::serve(&images(&source)?.1)?;
    let host = Host::start(Release::One, &[], &[])?;
    let image = format!("{}/test:c", registry.address());
    host.containerd.pull_into("sluice", &image)?;
    let report = Report::of(&host, Release::One, &[])?;
    ensure!(
        report.problems().is_empty() && report.0["labels"]["state"] == "warning",
        "{report:?}"
    );
    Ok(())
}

#[test]
fn privileged_what_is_wrong_with_an_image_or_its_registry_is_named() -> Result<()> {
    let source = Scratch::new("doctor-source")?;
    let (original, converted) = images(&source)?;
    let host = Host::start(Release::One, &[], &[])?;
    let check = |registry: &CountingRegistry, tag: &str, expected: &[&str]| {
        let image = format!("{}/test:{tag}", registry.address());
        let report = Report::of(&host, Release::One, &[&image])?;
        ensure!(report.problems() == expected, "{expected:?}: {report:?}");
        Ok(())
    };
    check(&CountingRegistry::serve(&original)?, "o", &["indexes"])?;
    let registry = CountingRegistry::serve(&converted)?;
    check(&registry, "absent", &["image"])?;
    registry.set_faults(FaultSet::none().with(Fault::WholeBlob));
    check(&registry, "c", &["ranges"])?;
    registry.set_faults(FaultSet::none().with(Fault::Password {
        user: "u".to_owned(),
        password: "p".to_owned(),
    }));
    check(&registry, "c", &["credentials"])
}
