//! Node numbers: stateless, so that no table is lost when a process is replaced.
//!
//! ```text
//! bits 63..60  space   0 = fixed directories and the nodes of a session's only tree, 1 = plain layers, 2 = shared trees
//! space 0      1 is the root (the protocol's choice); a fixed directory is 2; node `nid` of an only tree is nid + 2
//! space 1      the first 60 bits of the DiffID
//! space 2      the first 32 bits of the ChainID, then the nid in 28 bits
//! ```
//!
//! The nodes of an only tree get small numbers because they are what `st_ino` shows, and programs built without large
//! file support cannot `stat` a file whose inode number needs more than 32 bits.

use sluice_format::Digest;

/// Number of the root directory, fixed by the FUSE protocol.
pub(crate) const ROOT: u64 = 1;

/// Number of the one directory in the root of a shared session.
pub(crate) const FIXED_DIRECTORY: u64 = 2;

/// Node number minus nid in the only tree of a session: 0 is no node number and 1 is the root.
const ONLY_TREE_SHIFT: u64 = 2;

const SPACE_SHIFT: u32 = 60;
const LAYER_SPACE: u64 = 1;
const TREE_SPACE: u64 = 2;

/// Bits of a nid in a shared tree: nids count 32-byte slots, so this allows image trees of 8 GiB.
const NID_BITS: u32 = 28;

/// The first 64 bits of a digest.
fn prefix(digest: &Digest) -> u64 {
    digest.as_bytes()[..8]
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Number of the flat file of a plain layer.
pub(crate) fn of_layer(diff_id: &Digest) -> u64 {
    LAYER_SPACE << SPACE_SHIFT | prefix(diff_id) >> (64 - SPACE_SHIFT)
}

/// Number of a node in the only tree of a session.
pub(crate) fn in_only_tree(nid: u64, root_nid: u64) -> u64 {
    if nid == root_nid {
        ROOT
    } else {
        nid + ONLY_TREE_SHIFT
    }
}

/// Inverse of [`in_only_tree`].
pub(crate) fn nid_in_only_tree(node: u64, root_nid: u64) -> Option<u64> {
    match node {
        ROOT => Some(root_nid),
        _ => node.checked_sub(ONLY_TREE_SHIFT),
    }
}

/// Which tree of a shared session a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TreeNumber(u32);

impl TreeNumber {
    /// Number of the tree with this ChainID.
    pub(crate) fn of(chain_id: &Digest) -> Self {
        let [a, b, c, d, ..] = *chain_id.as_bytes();
        Self(u32::from_be_bytes([a, b, c, d]))
    }

    /// The tree with this value; the highest possible one for a value that is none.
    pub(crate) fn new(value: u64) -> Self {
        Self(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// The number itself.
    pub(crate) fn value(self) -> u64 {
        self.0.into()
    }

    /// Number of one of its nodes, or `None` for a nid that has too many bits.
    pub(crate) fn node(self, nid: u64) -> Option<u64> {
        let fits = nid >> NID_BITS == 0;
        fits.then_some(TREE_SPACE << SPACE_SHIFT | u64::from(self.0) << NID_BITS | nid)
    }

    /// Inverse of [`TreeNumber::node`].
    pub(crate) fn split(node: u64) -> Option<(Self, u64)> {
        if node >> SPACE_SHIFT != TREE_SPACE {
            return None;
        }
        let tree = u32::try_from(node >> NID_BITS & u64::from(u32::MAX)).ok()?;
        Some((Self(tree), node & ((1 << NID_BITS) - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_never_overlap() {
        let digest = Digest::from_bytes([0xff; 32]);
        assert_eq!(of_layer(&digest) >> SPACE_SHIFT, LAYER_SPACE);
        let node = TreeNumber::of(&digest).node((1 << NID_BITS) - 1).unwrap();
        assert_eq!(node >> SPACE_SHIFT, TREE_SPACE);
        assert!(TreeNumber::split(of_layer(&digest)).is_none());
        assert!(TreeNumber::split(ROOT).is_none());
    }

    #[test]
    fn tree_nodes_round_trip() {
        let tree = TreeNumber::of(&Digest::of(b"x"));
        for nid in [0, 36, (1 << NID_BITS) - 1] {
            assert_eq!(TreeNumber::split(tree.node(nid).unwrap()), Some((tree, nid)));
        }
        assert_eq!(tree.node(1 << NID_BITS), None);
    }

    #[test]
    fn only_tree_nodes_round_trip() {
        for nid in [0, 1, 2, 36, 1 << 40] {
            assert_eq!(nid_in_only_tree(in_only_tree(nid, 36), 36), Some(nid));
            assert_ne!(in_only_tree(nid, 36), 0);
        }
        assert_eq!(in_only_tree(36, 36), ROOT);
        assert_eq!(nid_in_only_tree(0, 36), None);
    }
}
