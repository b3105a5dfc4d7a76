//! A disk that is full: readers do not notice, and the cache is back when there is space again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use sluice_storage::cache::Goal;
use sluice_storage::testing::SampleLayer;
use sluice_storage::{Cache, CacheOptions, Counters, Fetcher, PlainLayer};
use tempfile::TempDir;

const CHUNK_LEN: usize = 50_000;
const CHUNKS: usize = 60;

/// A file system of 16 MiB of its own.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        File::create(&image)
            .expect("an image")
            .set_len(16 << 20)
            .expect("a length");
        let disk = Self { dir };
        std::fs::create_dir(disk.path()).expect("a mount point");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(disk.path()));
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Takes all space but about `leave` bytes.
    fn fill(&self, leave: u64) {
        let mut file = File::create(self.ballast()).expect("a file");
        let block = [7; 4096];
        while file.write_all(&block).is_ok() {}
        let len = file.metadata().expect("a length").len();
        file.set_len(len.saturating_sub(leave)).expect("cut");
        // Blocks of delayed writes are given out now.
        file.sync_all().expect("synced");
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(self.path()));
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("started");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn open(dir: &Path) -> Arc<Cache> {
    let options = CacheOptions {
        quota: Some(1 << 30),
        upkeep: false,
        ..CacheOptions::default()
    };
    Cache::open_with(dir.join("cache"), options).expect("a cache opens")
}

#[tokio::test]
async fn privileged_a_full_disk_hinders_no_reader_and_heals() {
    let disk = SmallDisk::mount();
    let sample = SampleLayer::new(CHUNKS, CHUNK_LEN, 0);
    for leave in [0, 4096, 30_000, 200_000, 1_000_000, 2_500_000] {
        disk.fill(leave);
        let cache = open(&disk.path());
        let cached = cache.layer(&sample.layer.index);
        let fetcher = Fetcher::new(Arc::new(Counters::default()));
        let layer = PlainLayer::new(&sample.layer, Some(cached.clone()), &fetcher);
        for chunk in (0..CHUNKS).rev() {
            let range = (chunk * CHUNK_LEN) as u64..((chunk + 1) * CHUNK_LEN) as u64;
            let bytes = layer.read(range.clone()).await.expect("read");
            assert_eq!(bytes, sample.plain[range.start as usize..range.end as usize]);
            if chunk % 7 == 0 {
                cache.flush();
            }
        }
        assert!(cached.missing_chunks() > 0, "{leave} bytes are too few");
        disk.free();
        // The outage ends by itself.
        cache.advance_clock(60);
        for chunk in 0..CHUNKS {
            let plain = &sample.plain[chunk * CHUNK_LEN..(chunk + 1) * CHUNK_LEN];
            assert!(cached.store_chunk(chunk, plain), "chunk {chunk} after {leave}");
        }
        cache.flush();
        assert_eq!(cached.missing_chunks(), 0);
        drop((layer, cached));
        let checked = cache.verify();
        assert!(checked.is_sound() && checked.chunks == CHUNKS, "{checked:?}");
        let goal = Goal {
            keep: 0,
            used_before: None,
        };
        cache.evict(goal).expect("evicted");
    }
}

#[tokio::test]
async fn privileged_a_cache_that_fills_the_disk_gives_some_of_it_back() {
    let disk = SmallDisk::mount();
    let sample = SampleLayer::new(CHUNKS * 5, CHUNK_LEN, 0);
    let cache = open(&disk.path());
    let cached = cache.layer(&sample.layer.index);
    let mut refused = 0;
    for chunk in 0..CHUNKS * 5 {
        cache.advance_clock(1);
        let plain = &sample.plain[chunk * CHUNK_LEN..(chunk + 1) * CHUNK_LEN];
        if !cached.store_chunk(chunk, plain) {
            refused += 1;
            cache.tend();
            assert!(
                cached.store_chunk(chunk, plain),
                "there is room after an eviction"
            );
        }
    }
    assert!(refused > 0, "the disk has place for less than the layer");
    assert!(cached.missing_chunks() > 0);
    cache.flush();
    for chunk in 0..CHUNKS * 5 {
        if let Some(bytes) = cached.read_chunk(chunk) {
            assert_eq!(bytes, sample.plain[chunk * CHUNK_LEN..(chunk + 1) * CHUNK_LEN]);
        }
    }
}

#[test]
fn privileged_what_one_process_cannot_store_takes_nothing_from_another() {
    let disk = SmallDisk::mount();
    let sample = SampleLayer::new(CHUNKS, CHUNK_LEN, 0);
    let plain = |chunk: usize| &sample.plain[chunk * CHUNK_LEN..(chunk + 1) * CHUNK_LEN];
    let caches = [open(&disk.path()), open(&disk.path())];
    let [full, other] = caches.each_ref().map(|cache| cache.layer(&sample.layer.index));
    let (even, odd) = ((0..CHUNKS).step_by(2), (1..CHUNKS).step_by(2));
    for chunk in odd.clone() {
        assert!(other.store_chunk(chunk, plain(chunk)));
    }
    // Given to the disk, so that the ballast leaves nothing; not noted, so that only their process knows of them.
    nix::unistd::sync();
    disk.fill(0);
    for chunk in even {
        caches[0].advance_clock(60);
        assert!(
            !full.store_chunk(chunk, plain(chunk)),
            "chunk {chunk} has no place"
        );
    }
    for chunk in odd {
        let bytes = other.read_chunk(chunk).expect("it was stored");
        assert!(bytes == plain(chunk), "chunk {chunk} is another's");
    }
}
