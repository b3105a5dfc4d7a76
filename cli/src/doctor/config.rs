//! What containerd's configuration says that no running process tells: the address of the snapshotter, the lists of the transfer
//! service, and the CRI plugin.
//!
//! containerd itself is asked to print it, with imported files and defaults in place. It prints the file as it is now; a
//! daemon that was not restarted since may have read another.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use toml_edit::{DocumentMut, Item, TableLike};

use super::Finding;
use crate::containerd::release::Release;
use crate::containerd::settings::{self, CRI_2, CRI_3, NAME, TRANSFER, UNPACK};

/// Plugins that can name a snapshotter for Kubernetes.
const CRI: [&str; 3] = [CRI_2, CRI_3, "io.containerd.cri.v1.runtime"];

pub(super) fn examine(
    program: &Path,
    config: &Path,
    socket: &Path,
    release: Option<Release>,
) -> Vec<Finding> {
    match dump(program, config) {
        Ok(document) => look(&document, socket, release),
        Err(error) => vec![Finding::warning(
            "config",
            format!("containerd's configuration cannot be looked at: {error:#}"),
            "settings that make pulls fetch everything would not be seen",
            "name the program with --containerd and the file with --containerd-config",
        )],
    }
}

fn dump(program: &Path, config: &Path) -> anyhow::Result<DocumentMut> {
    let mut command = Command::new(program);
    command.arg("--config").arg(config).args(["config", "dump"]);
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8(output.stdout).context("it printed no text")?;
    text.parse().context("it printed no TOML")
}

fn look(document: &DocumentMut, socket: &Path, release: Option<Release>) -> Vec<Finding> {
    let mut findings = vec![address(document, socket)];
    if release.is_some_and(Release::has_transfer_service) {
        findings.push(transfer(document));
    }
    findings.push(cri(document));
    findings
}

fn address(document: &DocumentMut, socket: &Path) -> Finding {
    const WHY: &str = "containerd asks for snapshots there";
    let place = ["proxy_plugins", NAME, "address"];
    let remedy = "sluice install, with --socket if it is another one, then systemctl restart containerd";
    match settings::get(document.as_table(), &place).and_then(Item::as_str) {
        Some(address) if Path::new(address) == socket => Finding::good(
            "address",
            "containerd asks for snapshots where sluice snapshotter listens",
        ),
        Some(address) => Finding::problem(
            "address",
            format!(
                "containerd asks for snapshots on {address}, but sluice snapshotter listens on {}",
                socket.display()
            ),
            WHY,
            remedy,
        ),
        None => Finding::problem(
            "address",
            format!("containerd's configuration has no proxy plugin \"{NAME}\""),
            WHY,
            remedy,
        ),
    }
}

fn transfer(document: &DocumentMut) -> Finding {
    let list = settings::get(document.as_table(), &["plugins", TRANSFER, UNPACK]);
    if list.is_some_and(|list| settings::entries(list).any(|entry| settings::unpacks_for(entry, NAME))) {
        return Finding::good(
            "transfer",
            "containerd's transfer service unpacks for the snapshotter",
        );
    }
    Finding::problem(
        "transfer",
        format!("{UNPACK} of containerd's transfer service has no entry for \"{NAME}\""),
        "what ctr, nerdctl and Kubernetes pull through it arrives without labels: everything is fetched and unpacked",
        "sluice install, then systemctl restart containerd",
    )
}

fn cri(document: &DocumentMut) -> Finding {
    let plugins = document.get("plugins").and_then(Item::as_table_like);
    let tables: Vec<&dyn TableLike> = CRI
        .iter()
        .filter_map(|name| plugins?.get(name)?.as_table_like())
        .collect();
    let uses = |table: &&dyn TableLike| {
        find(*table, &|key, item| {
            key == "snapshotter" && item.as_str() == Some(NAME)
        })
    };
    if !tables.iter().any(uses) {
        return Finding::good(
            "cri",
            "Kubernetes, if there is one, starts containers on another snapshotter (sluice install --cri changes that)",
        );
    }
    let disabled = |table: &&dyn TableLike| {
        find(*table, &|key, item| {
            key == "disable_snapshot_annotations" && item.as_bool() == Some(true)
        })
    };
    if tables.iter().any(disabled) {
        return Finding::problem(
            "cri",
            "Kubernetes starts containers on the snapshotter, but disable_snapshot_annotations of the CRI plugin is true",
            "the snapshotter is not told which image is pulled: everything is fetched and unpacked",
            "sluice install --cri, then systemctl restart containerd",
        );
    }
    Finding::good(
        "cri",
        "Kubernetes starts containers on the snapshotter and tells it what is pulled",
    )
}

/// Whether a value like this is anywhere in a table.
fn find(table: &dyn TableLike, is_it: &dyn Fn(&str, &Item) -> bool) -> bool {
    table
        .iter()
        .any(|(key, item)| is_it(key, item) || item.as_table_like().is_some_and(|inner| find(inner, is_it)))
}
