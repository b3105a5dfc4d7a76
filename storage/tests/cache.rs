//! What the cache on disk promises: a bound that holds, what is used stays, nothing wrong is shown, and layers that are whole.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_format::{DiffId, Digest, LayerIndex, LayerTree};
use sluice_storage::cache::{Goal, Pin};
use sluice_storage::testing::SampleLayer;
use sluice_storage::{Cache, CacheOptions, CachedLayer, ErrorKind};

/// Not a multiple of any block, so that chunks share blocks.
const CHUNK_LEN: usize = 50_000;
const CHUNKS: usize = 20;

/// What a chunk may take more than its length: blocks at both ends.
const SLACK: u64 = 3 * 4096;

fn open(dir: &Path) -> Arc<Cache> {
    with_quota(dir, None)
}

/// A cache whose upkeep the test does itself.
fn with_quota(dir: &Path, quota: Option<u64>) -> Arc<Cache> {
    let options = CacheOptions {
        quota,
        upkeep: false,
        ..CacheOptions::default()
    };
    Cache::open_with(dir, options).expect("a cache opens")
}

fn sample(chunks: usize) -> SampleLayer {
    SampleLayer::new(chunks, CHUNK_LEN, 0)
}

fn plain(sample: &SampleLayer, chunk: usize) -> &[u8] {
    &sample.plain[chunk * CHUNK_LEN..(chunk + 1) * CHUNK_LEN]
}

fn fill(layer: &CachedLayer, sample: &SampleLayer) {
    for chunk in 0..sample.layer.index.chunks.chunks().len() {
        assert!(layer.store_chunk(chunk, plain(sample, chunk)), "chunk {chunk}");
    }
}

fn has(layer: &CachedLayer, sample: &SampleLayer, chunk: usize) -> bool {
    let Some(bytes) = layer.read_chunk(chunk) else {
        return false;
    };
    assert_eq!(bytes, plain(sample, chunk), "chunk {chunk}");
    true
}

fn kept(layer: &CachedLayer, sample: &SampleLayer) -> Vec<usize> {
    let count = sample.layer.index.chunks.chunks().len();
    (0..count).filter(|chunk| has(layer, sample, *chunk)).collect()
}

fn layer_dir(dir: &Path, sample: &SampleLayer) -> PathBuf {
    dir.join("layers/sha256").join(sample.layer.diff_id.0.to_hex())
}

fn disk_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn all_but(keep: u64) -> Goal {
    Goal {
        keep,
        used_before: None,
    }
}

#[test]
fn a_quota_holds_and_what_was_used_lately_stays() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let quota = 12 * CHUNK_LEN as u64;
    let cache = with_quota(dir.path(), Some(quota));
    let layer = cache.layer(&sample.layer.index);
    for chunk in 0..CHUNKS {
        cache.advance_clock(10);
        // The first chunk is read all the time.
        layer.read_chunk(0);
        if !layer.store_chunk(chunk, plain(&sample, chunk)) {
            cache.tend();
            assert!(
                layer.store_chunk(chunk, plain(&sample, chunk)),
                "there is room after an eviction"
            );
        }
        assert!(cache.used_bytes() <= quota);
    }
    cache.flush();
    let on_disk = disk_bytes(&layer.data_path());
    assert!(on_disk <= quota, "{on_disk} of {quota}");
    let kept = kept(&layer, &sample);
    assert!(kept.contains(&0) && kept.contains(&(CHUNKS - 1)), "{kept:?}");
    assert!(!kept.contains(&1), "the oldest went: {kept:?}");
    assert!(kept.len() >= 6, "no more than needed went: {kept:?}");
}

#[test]
fn a_hole_takes_no_byte_of_its_neighbours_and_gives_its_blocks_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let cache = open(dir.path());
    let layer = cache.layer(&sample.layer.index);
    fill(&layer, &sample);
    cache.advance_clock(10);
    for chunk in (0..CHUNKS).filter(|chunk| chunk % 3 != 0) {
        layer.read_chunk(chunk);
    }
    cache.flush();
    // Every third chunk is the oldest.
    let before = disk_bytes(&layer.data_path());
    let third = (CHUNKS as u64).div_ceil(3);
    let goal = Goal {
        keep: 0,
        used_before: Some(cache.inventory().layers[0].used),
    };
    let evicted = cache.evict(goal).expect("evicted");
    assert_eq!(evicted.chunks as u64, third, "{evicted:?}");
    let expected: Vec<usize> = (0..CHUNKS).filter(|chunk| chunk % 3 != 0).collect();
    assert_eq!(kept(&layer, &sample), expected);
    let freed = before - disk_bytes(&layer.data_path());
    assert!(
        freed >= third * (CHUNK_LEN as u64 - SLACK),
        "{freed} bytes were freed"
    );
    // With the neighbours gone too, not one block stays.
    cache.evict(all_but(0)).expect("evicted");
    assert_eq!(disk_bytes(&layer.data_path()), 0);
    assert_eq!(layer.missing_chunks(), CHUNKS);
}

#[test]
fn layers_without_users_are_removed_and_pinned_ones_stay() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(dir.path());
    let (pinned, other) = (sample(CHUNKS), sample(CHUNKS - 1));
    for sample in [&pinned, &other] {
        fill(&cache.layer(&sample.layer.index), sample);
    }
    let pin = Pin::Layer(pinned.layer.diff_id);
    cache.pin(&pin).expect("pinned");
    cache.evict(all_but(0)).expect("evicted");
    assert!(!layer_dir(dir.path(), &other).exists());
    let layer = cache.layer(&pinned.layer.index);
    assert_eq!(layer.missing_chunks(), 0);
    let entry = &cache.inventory().layers[0];
    assert!(entry.pinned && entry.complete && !entry.verified);
    drop(layer);
    cache.unpin(&pin).expect("unpinned");
    assert_eq!(
        cache.unpin(&pin).expect_err("not pinned").kind(),
        ErrorKind::NotFound
    );
    cache.evict(all_but(0)).expect("evicted");
    assert!(!layer_dir(dir.path(), &pinned).exists());
    let nobody = Pin::Image("docker://nowhere/x:y".to_owned());
    assert_eq!(
        cache.pin(&nobody).expect_err("unknown").kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn a_layer_that_another_process_has_open_is_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let (reader, pruner) = (open(dir.path()), open(dir.path()));
    let layer = reader.layer(&sample.layer.index);
    fill(&layer, &sample);
    reader.flush();
    let evicted = pruner.evict(all_but(0)).expect("evicted");
    assert_eq!((evicted.chunks, evicted.layers), (0, 0));
    assert_eq!(kept(&layer, &sample).len(), CHUNKS);
    drop(layer);
    pruner.evict(all_but(0)).expect("evicted");
    assert!(!layer_dir(dir.path(), &sample).exists());
}

#[test]
fn a_cache_full_of_what_stays_keeps_to_its_quota() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let quota = 10 * CHUNK_LEN as u64;
    let (cache, other) = (with_quota(dir.path(), Some(quota)), open(dir.path()));
    let layer = cache.layer(&sample.layer.index);
    let elsewhere = other.layer(&sample.layer.index);
    assert!(!cache.is_nearly_full());
    let mut stored = 0;
    for chunk in 0..CHUNKS {
        stored += usize::from(layer.store_chunk(chunk, plain(&sample, chunk)));
        cache.tend();
    }
    assert!((7..=10).contains(&stored), "{stored} chunks");
    assert!(cache.is_nearly_full());
    assert_eq!(kept(&layer, &sample), (0..stored).collect::<Vec<_>>());
    // Room is there when the other process is gone.
    drop(elsewhere);
    cache.advance_clock(60);
    assert!(!layer.store_chunk(CHUNKS - 1, plain(&sample, CHUNKS - 1)));
    cache.tend();
    assert!(layer.store_chunk(CHUNKS - 1, plain(&sample, CHUNKS - 1)));
}

#[test]
fn a_call_for_room_that_finds_nothing_to_do_is_not_the_last() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (pinned, large) = (sample(CHUNKS), SampleLayer::new(1, 4 * CHUNK_LEN, 0));
    let before = open(dir.path());
    fill(&before.layer(&pinned.layer.index), &pinned);
    let pin = Pin::Layer(pinned.layer.diff_id);
    before.pin(&pin).expect("pinned");
    let used = before.evict(all_but(u64::MAX)).expect("measured").after;
    drop(before);
    // Between the watermarks: the large chunk does not fit, and there is nothing to evict for it.
    let cache = with_quota(dir.path(), Some(used / 90 * 100));
    let layer = cache.layer(&large.layer.index);
    assert!(!layer.store_chunk(0, &large.plain));
    cache.tend();
    cache.unpin(&pin).expect("unpinned");
    assert!(!layer.store_chunk(0, &large.plain));
    cache.tend();
    let after = cache.evict(all_but(u64::MAX)).expect("measured").after;
    assert!(after < used, "{after} of {used}");
}

#[test]
fn only_one_process_evicts_at_a_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(dir.path());
    let lock = std::fs::File::create(dir.path().join("evicting")).expect("a file");
    lock.lock().expect("locked");
    assert!(cache.evict(all_but(0)).expect("not now").busy);
    drop(lock);
    assert!(!cache.evict(all_but(0)).expect("now").busy);
}

#[test]
fn what_is_old_goes_by_age() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let cache = open(dir.path());
    let layer = cache.layer(&sample.layer.index);
    for chunk in 0..CHUNKS {
        cache.advance_clock(60);
        layer.store_chunk(chunk, plain(&sample, chunk));
    }
    let newest = cache.inventory().layers[0].used;
    let goal = Goal {
        keep: 0,
        used_before: Some(newest - 5 * 60),
    };
    cache.evict(goal).expect("evicted");
    assert_eq!(kept(&layer, &sample), (CHUNKS - 6..CHUNKS).collect::<Vec<_>>());
}

#[test]
fn the_order_of_use_outlives_the_process() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let newest = {
        let cache = open(dir.path());
        let layer = cache.layer(&sample.layer.index);
        fill(&layer, &sample);
        // Stamps of the future would count as now.
        cache.advance_clock(1);
        layer.read_chunk(3);
        cache.inventory().layers[0].used
    };
    let cache = open(dir.path());
    cache.advance_clock(10);
    let goal = Goal {
        keep: 0,
        used_before: Some(newest),
    };
    cache.evict(goal).expect("evicted");
    assert_eq!(kept(&cache.layer(&sample.layer.index), &sample), [3]);
}

#[test]
fn readers_never_see_a_hole() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let cache = open(dir.path());
    let layer = cache.layer(&sample.layer.index);
    fill(&layer, &sample);
    let done = AtomicBool::new(false);
    let (hits, misses) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (layer, sample, done) = (&layer, &sample, &done);
                scope.spawn(move || {
                    let (mut hits, mut misses) = (0, 0);
                    let mut chunk = reader;
                    while !done.load(Ordering::Relaxed) {
                        chunk = (chunk * 7 + 3) % CHUNKS;
                        match has(layer, sample, chunk) {
                            true => hits += 1,
                            false => misses += 1,
                        }
                    }
                    (hits, misses)
                })
            })
            .collect();
        for round in 0..200 {
            cache
                .evict(all_but((round % 4) * 4 * CHUNK_LEN as u64))
                .expect("evicted");
            fill(&layer, &sample);
            cache.flush();
        }
        done.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .map(|reader| reader.join().expect("right bytes only"))
            .fold((0, 0), |sum: (u64, u64), one: (u64, u64)| {
                (sum.0 + one.0, sum.1 + one.1)
            })
    });
    assert!(hits > 0, "{hits} hits, {misses} misses");
}

#[test]
fn a_whole_layer_is_a_file_that_stays_while_it_is_used() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let cache = open(dir.path());
    let layer = cache.layer(&sample.layer.index);
    fill(&layer, &sample);
    assert!(layer.complete_file().is_none(), "not verified as a whole yet");
    assert!(layer.verify_whole().expect("right"));
    let file = layer.complete_file().expect("verified");
    let mapped = std::fs::File::open(file.path()).expect("the file");
    drop(layer);
    cache.evict(all_but(0)).expect("evicted");
    assert_eq!(std::fs::read(file.path()).expect("there"), sample.plain);
    // When its user is gone the file goes as a whole: a mount that outlived the process keeps every byte.
    drop(file);
    cache.evict(all_but(0)).expect("evicted");
    assert!(!layer_dir(dir.path(), &sample).exists());
    let mut bytes = vec![0; sample.plain.len()];
    mapped.read_exact_at(&mut bytes, 0).expect("nameless, and whole");
    assert_eq!(bytes, sample.plain);
}

#[test]
fn a_whole_layer_is_verified_again_after_any_write_and_after_another_boot() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(4);
    let cache = open(dir.path());
    let layer = cache.layer(&sample.layer.index);
    fill(&layer, &sample);
    assert!(layer.verify_whole().expect("right"));
    let note = layer_dir(dir.path(), &sample).join("whole");
    let text = std::fs::read_to_string(&note).expect("a note");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    std::fs::write(&note, text.replace(boot.trim(), "another")).expect("written");
    assert!(!layer.is_whole());
    assert!(layer.verify_whole().expect("right") && layer.is_whole());
    let data = std::fs::File::options()
        .write(true)
        .open(layer.data_path())
        .expect("the file");
    data.write_all_at(&[sample.plain[7] ^ 1], 7).expect("written");
    assert!(layer.complete_file().is_none());
    assert!(!layer.verify_whole().expect("damaged, not refused"));
    assert_eq!(layer.missing().collect::<Vec<_>>(), [0]);
    fill(&layer, &sample);
    assert!(layer.verify_whole().expect("healed"));
}

#[test]
fn a_layer_that_is_not_what_its_index_says_is_out_of_service() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(4);
    let claimed = DiffId(Digest::of(b"another layer"));
    let chunks = sample.layer.index.chunks.clone();
    let index = LayerIndex::new(claimed, chunks, &LayerTree::default()).expect("an index");
    let index = Arc::new(index);
    let check = |layer: &CachedLayer| {
        let error = layer.refusal().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(&claimed.to_string()), "{error}");
        assert!(layer.read_chunk(0).is_none() && !layer.store_chunk(0, plain(&sample, 0)));
        assert!(layer.complete_file().is_none());
    };
    let cache = open(dir.path());
    let layer = cache.layer(&index);
    fill(&layer, &sample);
    assert_eq!(
        layer.verify_whole().expect_err("another layer").kind(),
        ErrorKind::Corrupt
    );
    check(&layer);
    drop(layer);
    check(&open(dir.path()).layer(&index));
}

#[test]
fn a_chunk_that_another_layer_has_is_copied() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(dir.path());
    let (first, second) = (sample(CHUNKS), sample(CHUNKS + 5));
    let source = cache.layer(&first.layer.index);
    fill(&source, &first);
    let layer = cache.layer(&second.layer.index);
    assert_eq!(layer.copy_chunk(3).expect("copied"), plain(&second, 3));
    assert!(has(&layer, &second, 3));
    assert!(layer.copy_chunk(CHUNKS + 1).is_none(), "nobody has it");
    assert!(layer.copy_chunk(CHUNKS + 5).is_none(), "no such chunk");
    // Damaged in the other layer: not copied.
    drop(source);
    cache.refresh();
    let hex = layer_dir(dir.path(), &first).join("data");
    let data = std::fs::File::options().write(true).open(hex).expect("the file");
    let at = 5 * CHUNK_LEN;
    data.write_all_at(&[first.plain[at] ^ 1], at as u64)
        .expect("written");
    assert!(layer.copy_chunk(5).is_none());
    assert_eq!(
        layer.copy_chunk(6).expect("closed layers serve too"),
        plain(&second, 6)
    );
}

#[test]
fn a_check_finds_and_removes_damage_and_open_layers_notice() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let (user, checker) = (open(dir.path()), open(dir.path()));
    let layer = user.layer(&sample.layer.index);
    fill(&layer, &sample);
    user.flush();
    assert!(checker.verify().is_sound());
    let data = std::fs::File::options()
        .write(true)
        .open(layer.data_path())
        .expect("the file");
    data.write_all_at(&[0; 10], 4 * CHUNK_LEN as u64 + 5)
        .expect("written");
    let checked = checker.verify();
    assert_eq!(
        (checked.bad_chunks, checked.layers, checked.chunks),
        (1, 1, CHUNKS)
    );
    assert_eq!(checked.bad_layers, [sample.layer.diff_id.to_string()]);
    user.refresh();
    assert_eq!(layer.missing().collect::<Vec<_>>(), [4]);
    assert!(layer.read_chunk(4).is_none());
    fill(&layer, &sample);
    user.flush();
    assert!(checker.verify().is_sound());
    assert_eq!(kept(&layer, &sample).len(), CHUNKS);
}

#[test]
fn what_was_stored_and_not_noted_is_taken_over() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = sample(CHUNKS);
    let copy = tempfile::tempdir().expect("a temporary directory");
    let cache = open(dir.path());
    let layer = cache.layer(&sample.layer.index);
    fill(&layer, &sample);
    // What a kill leaves: the files as they are now, and one chunk half written.
    let (from, to) = (layer_dir(dir.path(), &sample), layer_dir(copy.path(), &sample));
    std::fs::create_dir_all(&to).expect("made");
    for name in ["data", "present", "cuts"] {
        std::fs::copy(from.join(name), to.join(name)).expect("copied");
    }
    let data = std::fs::File::options()
        .write(true)
        .open(to.join("data"))
        .expect("the file");
    data.write_all_at(&[0; 5000], 8 * CHUNK_LEN as u64)
        .expect("written");
    let cache = open(copy.path());
    let layer = cache.layer(&sample.layer.index);
    assert_eq!(layer.missing().collect::<Vec<_>>(), [8]);
    assert_eq!(kept(&layer, &sample).len(), CHUNKS - 1);
    let on_disk = disk_bytes(&layer.data_path());
    assert!(
        on_disk <= (CHUNKS as u64 - 1) * CHUNK_LEN as u64 + SLACK,
        "{on_disk}"
    );
}

/// Bytes of a file that are in the page cache.
fn in_memory(path: &Path) -> u64 {
    let output = std::process::Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .arg(path)
        .output()
        .expect("fincore of util-linux");
    let printed = String::from_utf8_lossy(&output.stdout);
    printed
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("fincore: {output:?}"))
}

#[tokio::test]
async fn chunks_leave_memory_after_a_minute_and_come_back_before_anybody_asks() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let sample = sample(CHUNKS);
    let cache = open(dir.path());
    let layer = cache.layer(&sample.layer.index);
    for chunk in 0..CHUNKS / 2 {
        assert!(layer.store_chunk(chunk, plain(&sample, chunk)));
    }
    let data = layer.data_path();
    let wanted = (CHUNKS / 2 * CHUNK_LEN) as u64;
    cache.flush();
    cache.advance_clock(50);
    cache.flush();
    assert!(
        in_memory(&data) >= wanted,
        "a container that starts now finds them"
    );
    cache.advance_clock(10);
    cache.flush();
    let before = in_memory(&data);
    (0..CHUNKS).for_each(|chunk| layer.read_ahead(chunk));
    for _ in 0..4000 {
        if in_memory(&data) >= wanted {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let after = in_memory(&data);
    assert!(after >= wanted, "{after} bytes of {wanted}");
    assert!(before < wanted, "it was in memory anyway");
}
