//! The log of a partial blob: what was written whole is found again, whatever lies behind it.

use proptest::prelude::*;

use super::super::{Cache, CacheOptions};
use super::*;

const STORED_LEN: u64 = 5 * BLOCK_LEN + 1000;

fn cache(dir: &Path) -> Arc<Cache> {
    let options = CacheOptions {
        upkeep: false,
        ..CacheOptions::default()
    };
    Cache::open_with(dir, options).unwrap()
}

fn digest() -> BlobDigest {
    BlobDigest(Digest::of(b"blob"))
}

fn bytes(block: u64) -> Bytes {
    let range = block_range(block, STORED_LEN);
    vec![block as u8 + 1; (range.end - range.start) as usize].into()
}

fn put(partial: &PartialBlob, block: u64) {
    let whole = bytes(block);
    let (first, rest) = whole.split_at(whole.len() / 3);
    partial.put(
        block,
        &[Bytes::copy_from_slice(first), Bytes::copy_from_slice(rest)],
    );
}

#[test]
fn blocks_in_any_order_are_found_again_and_belong_to_one_blob() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let partial = cache.partial_blob(digest(), STORED_LEN).unwrap();
    for block in [3, 0, 5] {
        put(&partial, block);
    }
    assert_eq!(partial.kept_len(), 2 * BLOCK_LEN + 1000);
    drop(partial);
    let partial = cache.partial_blob(digest(), STORED_LEN).unwrap();
    assert_eq!(partial.kept_len(), 2 * BLOCK_LEN + 1000);
    for block in 0..7 {
        let expected = [0, 3, 5].contains(&block).then(|| bytes(block));
        assert_eq!(partial.read(block), expected, "{block}");
    }
    drop(partial);
    // A manifest that says another length means another blob.
    let partial = cache.partial_blob(digest(), STORED_LEN + 1).unwrap();
    assert_eq!(partial.kept_len(), 0);
}

#[test]
fn a_block_that_rots_is_forgotten_and_can_be_put_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let partial = cache.partial_blob(digest(), STORED_LEN).unwrap();
    put(&partial, 1);
    let offset = (HEADER_LEN + HEAD_LEN + 7) as u64;
    partial.file.write_all_at(b"rot", offset).unwrap();
    assert!(partial.has(1));
    assert_eq!(partial.read(1), None);
    assert!(!partial.has(1));
    put(&partial, 1);
    assert_eq!(partial.read(1), Some(bytes(1)));
}

#[test]
fn a_file_that_was_given_up_is_gone_and_a_stream_goes_on_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let used = cache.used_bytes();
    let partial = cache.partial_blob(digest(), STORED_LEN).unwrap();
    put(&partial, 1);
    assert!(cache.used_bytes() >= used + BLOCK_LEN);
    assert!(partial.give_up() && !partial.give_up());
    put(&partial, 2);
    assert_eq!((partial.read(1), partial.read(2)), (None, None));
    assert!(list(dir.path()).is_empty());
    assert!(cache.used_bytes() <= used + BLOCK_LEN / 2);
    // The next stream has a file of its own at once.
    let next = cache.partial_blob(digest(), STORED_LEN).unwrap();
    put(&next, 1);
    drop(partial);
    assert_eq!(list(dir.path()).len(), 1);
}

/// The file of a blob of which three blocks have come.
fn sample() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let partial = cache(dir.path()).partial_blob(digest(), STORED_LEN).unwrap();
    for block in [0, 5, 4] {
        put(&partial, block);
    }
    std::fs::read(&partial.path).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_file_that_was_cut_and_spoilt_gives_right_blocks_or_none(
        cut in 0usize..600_000,
        spoilt in prop::collection::vec((0usize..600_000, any::<u8>()), 0..4),
    ) {
        let mut file = sample();
        for (at, byte) in spoilt {
            let at = at % file.len();
            file[at] = byte;
        }
        file.truncate(file.len().saturating_sub(cut % 300_000));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PARTIAL).join(digest().0.to_hex());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, file).unwrap();
        let partial = cache(dir.path()).partial_blob(digest(), STORED_LEN).unwrap();
        for block in 0..7 {
            let found = partial.read(block);
            prop_assert!(found.is_none() || found == Some(bytes(block)));
        }
        for block in 0..6 {
            put(&partial, block);
            prop_assert_eq!(partial.read(block), Some(bytes(block)));
        }
    }
}
