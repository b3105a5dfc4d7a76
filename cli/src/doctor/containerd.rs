//! The running containerd: whether it answers and knows the snapshotter.

use std::path::Path;

use tonic::Status;

use super::Finding;
use super::finding::told;
use crate::containerd::client::Client;
use crate::containerd::plugins::Plugin;
use crate::containerd::release::Release;
use crate::containerd::settings::NAME;

/// The namespace of the look: any will do, it need not exist.
const NAMESPACE: &str = "default";
/// What a proxy plugin exports when it wants to be told what is pulled.
const WANTS_LABELS: &str = "enable_remote_snapshot_annotations";
/// What everybody does who finds a setting missing.
const INSTALL: &str = "sluice install (with --cri for Kubernetes), then systemctl restart containerd";

/// Adds what is found; gives the release, if it could be asked for.
pub(super) async fn examine(socket: &Path, findings: &mut Vec<Finding>) -> Option<Release> {
    let asked = async {
        let client = Client::connect(socket, NAMESPACE).await?;
        let version = client.version().await?;
        anyhow::Ok((client, version))
    };
    let (client, version) = match asked.await {
        Ok(answer) => answer,
        Err(error) => {
            findings.push(Finding::problem(
                "containerd",
                format!(
                    "containerd does not answer on {}: {}",
                    socket.display(),
                    told(error.as_ref())
                ),
                "it starts the containers",
                "systemctl start containerd; --containerd-address names another socket",
            ));
            return None;
        }
    };
    let release = match version.parse::<Release>() {
        Ok(release) => {
            findings.push(Finding::good(
                "containerd",
                format!("containerd {version} answers"),
            ));
            Some(release)
        }
        Err(error) => {
            findings.push(Finding::warning(
                "containerd",
                format!("containerd answers, but {error}"),
                "what it needs to be told depends on its version",
                "install containerd 1.6 or newer",
            ));
            None
        }
    };
    match client.snapshotter_plugin(NAME).await {
        Ok(plugin) => findings.push(known(plugin.as_ref(), release)),
        Err(status) => findings.push(unknown_because(&status)),
    }
    release
}

fn known(plugin: Option<&Plugin>, release: Option<Release>) -> Finding {
    let Some(plugin) = plugin else {
        return Finding::problem(
            "plugin",
            format!("the running containerd has no snapshotter \"{NAME}\""),
            "it does not know where to ask for it",
            INSTALL,
        );
    };
    if let Some(error) = &plugin.init_err {
        return Finding::problem(
            "plugin",
            format!("containerd's plugin \"{NAME}\" does not run: {}", error.message),
            "nothing can be pulled into it",
            INSTALL,
        );
    }
    let is_told = plugin
        .exports
        .get(WANTS_LABELS)
        .is_some_and(|value| value == "true");
    if release.is_some_and(Release::has_transfer_service) && !is_told {
        return Finding::problem(
            "plugin",
            format!("containerd's plugin \"{NAME}\" does not export {WANTS_LABELS}"),
            "the transfer service does not tell it which image is pulled: everything is fetched and unpacked",
            INSTALL,
        );
    }
    Finding::good("plugin", format!("containerd has the snapshotter \"{NAME}\""))
}

fn unknown_because(status: &Status) -> Finding {
    Finding::warning(
        "plugin",
        format!("containerd does not tell its plugins: {}", status.message()),
        "whether it knows the snapshotter cannot be seen",
        "run sluice doctor as root",
    )
}
