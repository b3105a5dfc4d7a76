//! Promise: the members depend on each other only along the arrows of the architecture, and `format` does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;
use sluice_tests::document::{array, text};
use sluice_tests::process;

/// Arrows between members: who may know whom. Only members whose code is shipped are bound; tests and benches see all.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("sluice-format", &[]),
    ("sluice-storage", &["sluice-format"]),
    ("sluice-converter", &["sluice-format", "sluice-storage"]),
    ("sluice-fuse", &["sluice-format", "sluice-storage"]),
    ("sluice-snapshotter", &["sluice-format"]),
    (
        "sluice",
        &[
            "sluice-format",
            "sluice-storage",
            "sluice-converter",
            "sluice-fuse",
            "sluice-snapshotter",
        ],
    ),
];

/// Members that may depend on every other.
const UNBOUND: [&str; 2] = ["sluice-tests", "sluice-benches"];

/// Crates that would bring sockets, files or an async runtime into `format`.
const NOT_IN_FORMAT: [&str; 9] = [
    "tokio",
    "reqwest",
    "fuser",
    "nix",
    "rustix",
    "libc",
    "axum",
    "tempfile",
    "futures-util",
];

fn members() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = [
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
        "--manifest-path",
        manifest,
    ];
    let metadata: Value = serde_json::from_str(&process::run(Command::new(cargo).args(arguments))?)?;
    let mut members = BTreeMap::new();
    for package in array(&metadata, "/packages")? {
        // What only the tests of a member need is no arrow of the architecture.
        let normal = array(package, "/dependencies")?
            .iter()
            .filter(|dependency| dependency["kind"] != "dev");
        let names = normal
            .map(|dependency| Ok(text(dependency, "/name")?.to_owned()))
            .collect::<Result<_>>()?;
        members.insert(text(package, "/name")?.to_owned(), names);
    }
    Ok(members)
}

#[test]
fn members_know_only_the_members_they_may_know() -> Result<()> {
    let members = members()?;
    for (member, dependencies) in &members {
        if UNBOUND.contains(&member.as_str()) {
            continue;
        }
        let rule = ALLOWED.iter().find(|(name, _)| name == member);
        let (_, allowed) =
            rule.unwrap_or_else(|| panic!("{member} has no rule: say in this test whom it may know"));
        for dependency in dependencies.iter().filter(|name| members.contains_key(*name)) {
            ensure!(
                allowed.contains(&dependency.as_str()),
                "{member} must not depend on {dependency}"
            );
        }
    }
    Ok(())
}

#[test]
fn format_has_no_way_to_do_input_or_output() -> Result<()> {
    let members = members()?;
    for banned in NOT_IN_FORMAT {
        ensure!(
            !members["sluice-format"].contains(banned),
            "sluice-format must not depend on {banned}"
        );
    }
    Ok(())
}
