//! A power cut at any point, with any subset of the writes lost that no sync covers: after it the cache shows right bytes or none,
//! and notes nothing that is not there.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use sluice_storage::cache::{DiskObserver, Goal};
use sluice_storage::testing::SampleLayer;
use sluice_storage::{Cache, CacheOptions, CachedLayer};

const CHUNKS: usize = 6;
const CHUNK_LEN: usize = 9_000;
/// A page may reach the disk without its neighbours.
const PAGE: u64 = 4096;

/// A change of a file.
#[derive(Clone, Debug)]
enum Change {
    Created,
    Wrote(u64, Vec<u8>),
    Punched(Range<u64>),
    Synced,
}

/// Writes down what reaches the files, in order.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<(PathBuf, Change)>>);

impl Log {
    fn add(&self, path: &Path, change: Change) {
        self.0
            .lock()
            .expect("not poisoned")
            .push((path.to_owned(), change));
    }
}

impl DiskObserver for Log {
    fn created(&self, path: &Path) {
        self.add(path, Change::Created);
    }

    fn wrote(&self, path: &Path, offset: u64, bytes: &[u8]) {
        // In pages, since that is how they are lost.
        let mut from = 0;
        while from < bytes.len() {
            let at = offset + from as u64;
            let to_border = (PAGE - at % PAGE) as usize;
            let end = bytes.len().min(from + to_border);
            self.add(path, Change::Wrote(at, bytes[from..end].to_vec()));
            from = end;
        }
    }

    fn punched(&self, path: &Path, range: Range<u64>) {
        self.add(path, Change::Punched(range));
    }

    fn synced(&self, path: &Path) {
        self.add(path, Change::Synced);
    }
}

/// The files as a power cut leaves them after the first changes of the log; `lost` decides for each that no sync covers.
fn files_after(log: &[(PathBuf, Change)], lost: &[bool]) -> HashMap<PathBuf, Vec<u8>> {
    let mut files: HashMap<PathBuf, Vec<u8>> = HashMap::new();
    for (at, (path, change)) in log.iter().enumerate() {
        let is_synced = || {
            let later = &log[at..];
            later
                .iter()
                .any(|(other, change)| other == path && matches!(change, Change::Synced))
        };
        let file = files.entry(path.clone()).or_default();
        if !matches!(change, Change::Created) && lost[at % lost.len()] && !is_synced() {
            continue;
        }
        match change {
            Change::Created => file.clear(),
            Change::Wrote(offset, bytes) => {
                let end = *offset as usize + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*offset as usize..end].copy_from_slice(bytes);
            }
            Change::Punched(range) => {
                let end = (range.end as usize).min(file.len());
                let start = (range.start as usize).min(end);
                file[start..end].fill(0);
            }
            Change::Synced => {}
        }
    }
    files
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Store(usize),
    Read(usize),
    Flush,
    Evict(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..CHUNKS).prop_map(Step::Store),
        2 => (0..CHUNKS).prop_map(Step::Read),
        2 => Just(Step::Flush),
        2 => (0..CHUNKS).prop_map(Step::Evict),
        1 => Just(Step::Reopen),
    ]
}

fn open(dir: &Path, observer: Option<Arc<dyn DiskObserver>>) -> Arc<Cache> {
    let options = CacheOptions {
        quota: Some(u64::MAX),
        upkeep: false,
        observer,
    };
    Cache::open_with(dir, options).expect("the disk works")
}

fn piece(sample: &SampleLayer, chunk: usize) -> &[u8] {
    &sample.plain[chunk * CHUNK_LEN..(chunk + 1) * CHUNK_LEN]
}

fn check(sample: &SampleLayer, layer: &CachedLayer) -> Result<(), TestCaseError> {
    for chunk in 0..CHUNKS {
        if let Some(bytes) = layer.read_chunk(chunk) {
            prop_assert_eq!(bytes, piece(sample, chunk), "chunk {}", chunk);
        }
    }
    Ok(())
}

fn run(steps: &[Step], sample: &SampleLayer, dir: &Path, log: &Arc<Log>) -> Result<(), TestCaseError> {
    let mut cache = open(dir, Some(log.clone()));
    let mut layer = cache.layer(&sample.layer.index);
    for step in steps {
        match *step {
            Step::Store(chunk) => prop_assert!(layer.store_chunk(chunk, piece(sample, chunk))),
            Step::Read(chunk) => {
                cache.advance_clock(1);
                if let Some(bytes) = layer.read_chunk(chunk) {
                    prop_assert_eq!(bytes, piece(sample, chunk));
                }
            }
            Step::Flush => {
                cache.flush();
            }
            Step::Evict(chunks) => {
                let goal = Goal {
                    keep: cache.used_bytes().saturating_sub((chunks * CHUNK_LEN) as u64),
                    used_before: None,
                };
                cache.evict(goal).expect("the disk works");
            }
            Step::Reopen => {
                drop(layer);
                cache = open(dir, Some(log.clone()));
                layer = cache.layer(&sample.layer.index);
            }
        }
    }
    check(sample, &layer)
}

/// Puts the files that a power cut leaves where another process finds them.
fn restore(from: &Path, to: &Path, sample: &SampleLayer, files: &HashMap<PathBuf, Vec<u8>>) {
    let layer = Path::new("layers/sha256").join(sample.layer.diff_id.0.to_hex());
    std::fs::create_dir_all(to.join(&layer)).expect("the disk works");
    let cuts = layer.join("cuts");
    if from.join(&cuts).exists() {
        std::fs::copy(from.join(&cuts), to.join(&cuts)).expect("the disk works");
    }
    for (path, bytes) in files {
        let file = std::fs::File::create(to.join(path.strip_prefix(from).expect("the disk works")))
            .expect("the disk works");
        // Zeros are holes, as they would be.
        file.set_len(bytes.len() as u64).expect("the disk works");
        for (at, page) in bytes.chunks(PAGE as usize).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                file.write_all_at(page, at as u64 * PAGE).expect("the disk works");
            }
        }
    }
}

/// Chunks whose bit is in the file `present`.
fn noted(file: Option<&Vec<u8>>) -> Vec<usize> {
    let bits = file.map_or(0, |bytes| bytes.get(64).copied().unwrap_or(0));
    (0..CHUNKS).filter(|chunk| bits >> chunk & 1 == 1).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_power_cut_shows_a_wrong_byte_or_leaves_a_bit_without_its_bytes(
        steps in prop::collection::vec(step(), 1..25),
        cut in any::<prop::sample::Index>(),
        lost in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let sample = SampleLayer::new(CHUNKS, CHUNK_LEN, 0);
        let (dir, other) = (tempfile::tempdir().expect("the disk works"), tempfile::tempdir().expect("the disk works"));
        let log = Arc::new(Log::default());
        run(&steps, &sample, dir.path(), &log)?;
        let log = log.0.lock().expect("not poisoned");
        let until = cut.index(log.len() + 1);
        let files = files_after(&log[..until], &lost);
        let find = |name: &str| files.iter().find(|(path, _)| path.ends_with(name)).map(|(_, bytes)| bytes);
        for chunk in noted(find("present")) {
            let range = chunk * CHUNK_LEN..(chunk + 1) * CHUNK_LEN;
            let bytes = find("data").and_then(|data| data.get(range));
            prop_assert_eq!(bytes, Some(piece(&sample, chunk)), "chunk {} is noted", chunk);
        }
        restore(dir.path(), other.path(), &sample, &files);
        let cache = open(other.path(), None);
        let layer = cache.layer(&sample.layer.index);
        check(&sample, &layer)?;
        for chunk in 0..CHUNKS {
            prop_assert!(layer.store_chunk(chunk, piece(&sample, chunk)));
        }
        cache.flush();
        prop_assert_eq!(layer.missing_chunks(), 0);
        check(&sample, &layer)?;
    }
}
