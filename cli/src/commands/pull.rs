//! `sluice pull`: an image into containerd, its layers left where they are as far as the snapshotter can serve them.

use std::sync::Arc;

use serde_json::json;
use sluice_storage::Repository;

use crate::args::PullArgs;
use crate::containerd::pull::Pull;
use crate::{output, wiring};

pub(super) fn run(args: &PullArgs) -> anyhow::Result<()> {
    wiring::run(pull(args))
}

async fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let registries = wiring::registries(&args.common);
    let repository: Arc<dyn Repository> = registries.repository(&args.image)?;
    let pull = Pull {
        image: args.image.to_string(),
        repository,
        name: args.image.manifest_name(),
        platform: wiring::platform(args.platform.as_deref())?,
        snapshotter: args.snapshotter.clone(),
    };
    let pulled = pull
        .run(&args.containerd.containerd_address, &args.containerd.namespace)
        .await?;
    let received = registries.traffic().received_bytes;
    if args.common.json {
        return output::json(&json!({
            "image": pull.image,
            "manifest_digest": pulled.digest.to_string(),
            "snapshotter": pull.snapshotter,
            "layers": pulled.layers,
            "served": pulled.served,
            "unpacked": pulled.unpacked,
            "registry_received_bytes": received,
        }));
    }
    output::line(format!(
        "{} is in containerd: of {} layers {} are served and {} were unpacked by \"{}\"; {} came from the registry",
        pull.image,
        pulled.layers,
        pulled.served,
        pulled.unpacked,
        pull.snapshotter,
        output::bytes(received),
    ))
}
