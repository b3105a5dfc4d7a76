//! `sluice snapshotter`: whether it answers, and whether the last pull told it what was pulled.

use std::path::Path;

use anyhow::Context as _;
use sluice_snapshotter::labels::{IMAGE_REFERENCE, STARGZ_REFERENCE, TARGET};
use sluice_snapshotter::proto::snapshots::snapshots_client::SnapshotsClient;
use sluice_snapshotter::proto::snapshots::{Info, Kind, ListSnapshotsRequest};
use tonic::transport::Endpoint;

use super::Finding;
use super::finding::told;
use crate::install::UNIT;

/// Begins the ChainID in the name of a layer's snapshot.
const CHAIN_ID: &str = "sha256:";

pub(super) async fn examine(socket: &Path) -> Vec<Finding> {
    match snapshots(socket).await {
        Ok(snapshots) => {
            let what = format!(
                "sluice snapshotter answers on {}; snapshots: {}",
                socket.display(),
                snapshots.len()
            );
            vec![Finding::good("service", what), labels(&snapshots)]
        }
        Err(error) => vec![Finding::problem(
            "service",
            format!(
                "sluice snapshotter does not answer on {}: {}",
                socket.display(),
                told(error.as_ref())
            ),
            "without it no image is pulled into it, and containers of it do not start",
            format!(
                "systemctl start {UNIT}, and look at journalctl -u {UNIT}; --socket names another socket"
            ),
        )],
    }
}

async fn snapshots(socket: &Path) -> anyhow::Result<Vec<Info>> {
    let path = socket.to_str().context("the path is not UTF-8")?;
    let channel = Endpoint::try_from(format!("unix:{path}"))?.connect().await;
    let channel = channel.context("cannot connect")?;
    let mut client = SnapshotsClient::new(channel);
    let mut pages = client.list(ListSnapshotsRequest::default()).await?.into_inner();
    let mut snapshots = Vec::new();
    while let Some(page) = pages.message().await? {
        snapshots.extend(page.info);
    }
    Ok(snapshots)
}

/// Looks at the layer that was pulled last. Other committed snapshots are named otherwise.
fn labels(snapshots: &[Info]) -> Finding {
    const WHY: &str = "a snapshotter that does not know the image cannot serve its layers: everything was fetched and unpacked";
    let made = |info: &Info| info.created_at.map(|time| (time.seconds, time.nanos));
    let layers = snapshots
        .iter()
        .filter(|info| info.kind() == Kind::Committed && info.name.contains(CHAIN_ID));
    let Some(last) = layers.max_by_key(|info| made(info)) else {
        return Finding::good(
            "labels",
            "nothing was pulled yet that could show whether clients tell the image",
        );
    };
    let has = |label: &str| last.labels.contains_key(label);
    if has(IMAGE_REFERENCE) || has(STARGZ_REFERENCE) {
        return Finding::good("labels", "the last pull told which image it was of");
    }
    if has(TARGET) {
        return Finding::problem(
            "labels",
            "the last pull asked for a layer to be served without telling the image",
            WHY,
            "see the other findings about containerd; or pull with sluice pull, which always tells",
        );
    }
    Finding::warning(
        "labels",
        "the last pull unpacked its layers: it was of an image that is not converted, or by a client that tells nothing, such as \
         ctr of containerd 1.x",
        WHY,
        "sluice convert, and sluice pull, which always tells",
    )
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn committed(name: &str, seconds: i64, labels: &[&str]) -> Info {
        Info {
            name: format!("default/1/{name}"),
            kind: Kind::Committed.into(),
            created_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            labels: labels
                .iter()
                .map(|label| ((*label).to_owned(), "x".to_owned()))
                .collect(),
            ..Info::default()
        }
    }

    #[test]
    fn the_layer_that_was_pulled_last_counts() {
        let layer = |seconds, labels: &[&str]| committed("sha256:0", seconds, labels);
        let told = layer(2, &[TARGET, IMAGE_REFERENCE]);
        assert_eq!(labels(&[]).state, State::Good);
        assert_eq!(labels(&[told.clone(), layer(1, &[])]).state, State::Good);
        assert_eq!(
            labels(&[told.clone(), committed("saved", 9, &[])]).state,
            State::Good
        );
        assert_eq!(labels(&[told.clone(), layer(3, &[TARGET])]).state, State::Problem);
        assert_eq!(labels(&[told, layer(3, &[])]).state, State::Warning);
    }
}
