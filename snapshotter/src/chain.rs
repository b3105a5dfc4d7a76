//! What lies below a snapshot: from records to directories.
//!
//! Ordinary layers are directories. A run of remote layers is one tree. A run with ordinary layers below keeps its
//! whiteouts, so the same layers can be two trees: one for images that begin with them, one for those that do not.

use std::path::PathBuf;

use crate::directories::Directories;
use crate::images::{ParentLayer, RemoteLayer, TreeRequest};
use crate::store::Named;
use crate::trees::TreeLease;

/// One directory below a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lower {
    /// The files of the snapshot with this ID.
    Directory(u64),
    /// An image tree.
    Tree {
        request: TreeRequest,
        /// Name of the committed snapshot that is its topmost layer.
        top: String,
    },
}

/// The directories of a stack, topmost first, as the stack is given.
pub(crate) fn lowers(chain: &[Named]) -> Vec<Lower> {
    let mut lowers = Vec::new();
    let mut run: Vec<(&str, RemoteLayer)> = Vec::new();
    for named in chain {
        match &named.record.remote {
            Some(claim) => run.push((&named.name, claim.layer.clone())),
            None => {
                lowers.extend(tree(&mut run, true));
                lowers.push(Lower::Directory(named.record.id));
            }
        }
    }
    lowers.extend(tree(&mut run, false));
    lowers
}

/// The tree of a run that was collected from the top; the run is empty afterwards.
fn tree(run: &mut Vec<(&str, RemoteLayer)>, keeps_whiteouts: bool) -> Option<Lower> {
    let top = run.first().map(|(name, _)| (*name).to_owned())?;
    let layers = run.drain(..).rev().map(|(_, layer)| layer).collect();
    let request = TreeRequest {
        layers,
        keeps_whiteouts,
    };
    Some(Lower::Tree { request, top })
}

/// The remote layers of a stack, lowest first.
pub(crate) fn remote_layers(chain: &[Named]) -> Vec<RemoteLayer> {
    let claims = chain
        .iter()
        .rev()
        .filter_map(|named| named.record.remote.as_ref());
    claims.map(|claim| claim.layer.clone()).collect()
}

/// The stack as the engine sees it, lowest first.
pub(crate) fn parent_layers(chain: &[Named]) -> Vec<ParentLayer> {
    let layer = |named: &Named| match &named.record.remote {
        Some(claim) => ParentLayer::Remote(claim.layer.clone()),
        None => ParentLayer::Ordinary,
    };
    chain.iter().rev().map(layer).collect()
}

/// The paths of the directories, in their order; `leases` are those of the trees among them, in their order.
pub(crate) fn paths(lowers: &[Lower], leases: &[TreeLease], directories: &Directories) -> Vec<PathBuf> {
    let mut leases = leases.iter();
    let path = |lower: &Lower| match lower {
        Lower::Directory(id) => Some(directories.files(*id)),
        Lower::Tree { .. } => leases.next().map(TreeLease::directory),
    };
    lowers.iter().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use sluice_format::{BlobDigest, DiffId, Digest};

    use super::*;
    use crate::store::{Claim, Kind, Record, Time};

    fn layer(name: &str) -> RemoteLayer {
        let digest = Digest::of(name.as_bytes());
        RemoteLayer {
            reference: "example.com/a:1".to_owned(),
            manifest_digest: digest,
            layer_digest: BlobDigest(digest),
            plain_layer: DiffId(digest),
        }
    }

    /// A stack, topmost first: `r` for remote layers, anything else for ordinary ones.
    fn stack(names: &[&str]) -> Vec<Named> {
        let now = Time::now();
        let named = |(id, name): (u64, &&str)| Named {
            name: (*name).to_owned(),
            record: Record {
                id,
                kind: Kind::Committed,
                parent: String::new(),
                labels: Default::default(),
                created: now,
                updated: now,
                remote: name.starts_with('r').then(|| Claim {
                    target: (*name).to_owned(),
                    layer: layer(name),
                }),
                usage: None,
            },
        };
        (0..).zip(names).map(named).collect()
    }

    fn tree(layers: &[&str], keeps_whiteouts: bool) -> Lower {
        let request = TreeRequest {
            layers: layers.iter().map(|name| layer(name)).collect(),
            keeps_whiteouts,
        };
        let top = layers.last().map(|name| (*name).to_owned());
        Lower::Tree {
            request,
            top: top.unwrap_or_default(),
        }
    }

    #[test]
    fn a_run_of_remote_layers_is_one_directory() {
        assert_eq!(lowers(&stack(&[])), []);
        assert_eq!(lowers(&stack(&["r2", "r1"])), [tree(&["r1", "r2"], false)]);
        assert_eq!(
            lowers(&stack(&["o2", "o1"])),
            [Lower::Directory(0), Lower::Directory(1)]
        );
    }

    #[test]
    fn only_the_lowest_run_may_drop_its_whiteouts() {
        let lowers = lowers(&stack(&["r4", "o3", "o2", "r1", "r0"]));
        let expected = [
            tree(&["r4"], true),
            Lower::Directory(1),
            Lower::Directory(2),
            tree(&["r0", "r1"], false),
        ];
        assert_eq!(lowers, expected);
    }

    #[test]
    fn the_same_layers_over_something_are_another_tree() {
        let request = |keeps_whiteouts| TreeRequest {
            layers: vec![layer("r1")],
            keeps_whiteouts,
        };
        assert_ne!(request(false).name(), request(true).name());
    }
}
