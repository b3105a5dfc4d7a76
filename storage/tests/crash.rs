//! `kill -9` at any point while a process stores, reads, notes and evicts: the next process finds no wrong byte and no lost space.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use sluice_storage::cache::Goal;
use sluice_storage::testing::SampleLayer;
use sluice_storage::{Cache, CacheOptions, CachedLayer};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

/// Where the process that is killed finds its directory; it does nothing without.
const DIR_VARIABLE: &str = "SLUICE_CRASH_DIR";
const SEED_VARIABLE: &str = "SLUICE_CRASH_SEED";
const KILLS: u64 = 220;
/// Longest life of a process in microseconds: enough for some hundred steps.
const LIFE_MICROS: u64 = 60_000;
/// Not a multiple of a block.
const CHUNK_LEN: usize = 21_000;
const LAYERS: [usize; 3] = [30, 41, 53];
const BLOCK: u64 = 4096;

fn samples() -> Vec<SampleLayer> {
    LAYERS
        .iter()
        .map(|chunks| SampleLayer::new(*chunks, CHUNK_LEN, 0))
        .collect()
}

fn open(dir: &Path) -> Arc<Cache> {
    let options = CacheOptions {
        quota: Some(60 * CHUNK_LEN as u64),
        upkeep: false,
        ..CacheOptions::default()
    };
    Cache::open_with(dir, options).expect("a cache opens")
}

fn piece(sample: &SampleLayer, chunk: usize) -> &[u8] {
    &sample.plain[chunk * CHUNK_LEN..(chunk + 1) * CHUNK_LEN]
}

/// Numbers without pattern, the same ones for a seed.
fn numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    }
}

/// A step of the process that is killed.
fn step(cache: &Arc<Cache>, layers: &[(CachedLayer, SampleLayer)], next: &mut impl FnMut(usize) -> usize) {
    let (layer, sample) = &layers[next(layers.len())];
    let chunk = next(sample.layer.index.chunks.chunks().len());
    match next(20) {
        0 => {
            cache.flush();
        }
        1 => {
            let goal = Goal {
                keep: (next(60) * CHUNK_LEN) as u64,
                used_before: None,
            };
            cache.evict(goal).expect("evicted");
        }
        2 => cache.tend(),
        3 => {
            if layer.verify_whole().expect("the right layer") {
                drop(layer.complete_file());
            }
        }
        4..=7 => {
            if let Some(bytes) = layer.read_chunk(chunk) {
                assert_eq!(bytes, piece(sample, chunk));
            }
        }
        _ => {
            layer.store_chunk(chunk, piece(sample, chunk));
        }
    }
}

#[test]
#[ignore = "the process that is killed; the other test starts it"]
fn victim() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else {
        return;
    };
    let seed = std::env::var(SEED_VARIABLE)
        .expect("a seed")
        .parse()
        .expect("a number");
    let mut next = numbers(seed);
    loop {
        let cache = open(&PathBuf::from(&dir));
        let layers: Vec<_> = samples()
            .into_iter()
            .filter(|_| next(4) > 0)
            .map(|sample| (cache.layer(&sample.layer.index), sample))
            .collect();
        if layers.is_empty() {
            continue;
        }
        println!("ready");
        for _ in 0..next(400) + 20 {
            cache.advance_clock(1);
            step(&cache, &layers, &mut next);
        }
    }
}

/// Starts the process and kills it after some time.
async fn live_and_die(dir: &Path, seed: u64) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env(DIR_VARIABLE, dir)
        .env(SEED_VARIABLE, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    let mut said = [0; 1];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut said).await.expect("it lives");
    let micros = numbers(seed ^ 0x5eed)(LIFE_MICROS as usize) as u64;
    tokio::time::sleep(Duration::from_micros(micros)).await;
    child.start_kill().expect("killed");
    let status = child.wait().await.expect("waited for");
    assert_eq!(status.code(), None, "it was killed, and did not fail by itself");
}

/// What the data file may take at most for these chunks.
fn explained(present: &[usize]) -> u64 {
    let runs = present.chunk_by(|one, next| one + 1 == *next).count() as u64;
    present.len() as u64 * CHUNK_LEN as u64 + runs * 2 * BLOCK + BLOCK
}

fn check(dir: &Path, seed: u64) {
    let cache = open(dir);
    for sample in samples() {
        let layer = cache.layer(&sample.layer.index);
        let count = sample.layer.index.chunks.chunks().len();
        let mut present = Vec::new();
        for chunk in 0..count {
            if let Some(bytes) = layer.read_chunk(chunk) {
                assert_eq!(bytes, piece(&sample, chunk), "seed {seed}, chunk {chunk}");
                present.push(chunk);
            }
        }
        assert_eq!(
            count - layer.missing_chunks(),
            present.len(),
            "seed {seed}: no bit was wrong"
        );
        let taken = std::fs::metadata(layer.data_path())
            .expect("the data file")
            .blocks()
            * 512;
        assert!(
            taken <= explained(&present),
            "seed {seed}: {taken} bytes for {} chunks",
            present.len()
        );
    }
    cache.flush();
    let inventory = cache.inventory();
    assert!(
        inventory.disk_bytes <= 60 * CHUNK_LEN as u64 + 64 * BLOCK,
        "seed {seed}: {inventory:?}"
    );
}

#[tokio::test]
async fn no_kill_leaves_a_wrong_byte_or_loses_space() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for seed in 1..=KILLS {
        live_and_die(dir.path(), seed).await;
        check(dir.path(), seed);
    }
    // All of it can go, so nothing of it was lost.
    let cache = open(dir.path());
    let goal = Goal {
        keep: 0,
        used_before: None,
    };
    cache.evict(goal).expect("evicted");
    let left = std::fs::read_dir(dir.path().join("layers/sha256"))
        .expect("listed")
        .count();
    assert_eq!(left, 0, "layers stay");
}
