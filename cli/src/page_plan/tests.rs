use sluice_format::inode::Attributes;
use sluice_format::profile::ProfileLayer;
use sluice_format::tree::{Directory, FileContent};
use sluice_format::{Digest, EntryName, Limits, Node};
use sluice_storage::testing::SampleLayer;

use super::*;

const CHUNK: u64 = 8192;

fn add(tree: &mut Tree, directory: NodeId, name: &str, kind: NodeKind) -> NodeId {
    let id = tree.add(Node {
        kind,
        attributes: Attributes::default_directory(),
    });
    link(tree, directory, name, id);
    id
}

fn link(tree: &mut Tree, directory: NodeId, name: &str, id: NodeId) {
    let name = EntryName::new(name.as_bytes()).unwrap();
    tree.directory_mut(directory).unwrap().entries.insert(name, id);
}

fn file(extents: &[(u64, u64, u64)]) -> NodeKind {
    let extents = extents.iter().map(|(file_off, len, plain_off)| Extent {
        file_off: *file_off,
        len: *len,
        source: ExtentSource::Plain {
            device: 1,
            plain_off: *plain_off,
        },
    });
    NodeKind::Regular(FileContent {
        size: 1 << 20,
        extents: extents.collect(),
    })
}

/// Two files in a layer of 16 chunks, one of them in two pieces and with two names.
fn tree() -> Tree {
    let mut tree = Tree::new();
    let lib = add(
        &mut tree,
        NodeId::ROOT,
        "lib",
        NodeKind::Directory(Directory::default()),
    );
    add(&mut tree, lib, "a", file(&[(0, 20_480, 512)]));
    let twice = add(
        &mut tree,
        lib,
        "b",
        file(&[(0, 4096, 40_960), (65_536, 8192, 21_504)]),
    );
    link(&mut tree, NodeId::ROOT, "c", twice);
    tree
}

fn plan_of(demands: &[(Range<u64>, u32, u8)]) -> Vec<(usize, String, Range<u64>)> {
    let layer = SampleLayer::new(16, CHUNK as usize, 0).layer;
    let demand = |(plain, ms, missed): &(Range<u64>, u32, u8)| Demand {
        plain_off: plain.start,
        plain_len: plain.end - plain.start,
        first_ms: *ms,
        seen: 1,
        missed: *missed,
    };
    let layers = vec![ProfileLayer {
        diff_id: layer.diff_id,
        demands: demands.iter().map(demand).collect(),
    }];
    let known = Profile::new(Digest::of(b"image"), 1, layers, &Limits::default()).unwrap();
    let plan = PagePlan::new(&known, &[(layer.diff_id, &layer.index.chunks)], &tree());
    let parts = plan.chunks.iter().flat_map(|(planned, parts)| {
        parts.iter().map(|part| {
            let path = plan.paths[part.path].display().to_string();
            (planned.chunk, path, part.range.clone())
        })
    });
    parts.collect()
}

#[test]
fn demanded_bytes_are_found_in_their_files_chunk_by_chunk() {
    // From the middle of the first file to the second piece of the second one, over a header that is in no file.
    let found = plan_of(&[(4608..24_576, 0, 0)]);
    let expected = [
        (0, "lib/a", 4096..7680),
        (1, "lib/a", 7680..15_872),
        (2, "lib/a", 15_872..20_480),
        (2, "b", 65_536..68_608),
    ];
    let names = ["lib/b", "c"];
    assert_eq!(found.len(), expected.len());
    for (found, (chunk, path, range)) in found.iter().zip(expected) {
        assert_eq!((found.0, &found.2), (chunk, &range));
        // A file with two names is read by either.
        assert!(
            found.1 == path || (path == "b" && names.contains(&found.1.as_str())),
            "{found:?}"
        );
    }
}

#[test]
fn what_is_doubtful_or_in_no_file_is_left_out() {
    assert_eq!(
        plan_of(&[(0..512, 0, 0), (20_992..21_504, 0, 0), (90_000..91_000, 0, 0)]),
        []
    );
    assert_eq!(plan_of(&[(512..1024, 0, 2)]), []);
    assert_eq!(plan_of(&[(512..1024, 0, 1)]).len(), 1);
}

#[test]
fn one_start_in_some_is_learnt_from() {
    let learnt = (0..8000).filter(|_| learns()).count();
    assert!((500..1500).contains(&learnt), "{learnt}");
}
