use sluice_format::profile::ProfileLayer;
use sluice_format::{Digest, Limits, NodeId};
use sluice_storage::testing::SampleLayer;

use super::*;
use crate::files_by_place::testing::{directory, file, link, put};

const CHUNK: u64 = 8192;

/// Two files in a layer of 16 chunks, one of them in two pieces and with two names.
fn tree() -> Tree {
    let mut tree = Tree::new();
    let lib = put(&mut tree, NodeId::ROOT, "lib", directory());
    put(&mut tree, lib, "a", file(&[(1, 512..20_992, 0)]));
    let pieces = [(1, 40_960..45_056, 0), (1, 21_504..29_696, 65_536)];
    let twice = put(&mut tree, lib, "b", file(&pieces));
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
            let path = plan.files.path(part.file).display().to_string();
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
