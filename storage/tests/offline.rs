//! What a host can start when its registry is gone: whatever it has, and nothing that the registry would have refused.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sluice_format::artifact::{INDEX_ANNOTATION, OCI_CONFIG, OCI_INDEX, OCI_LAYER_ZSTD, OCI_MANIFEST};
use sluice_format::layer_index::frame_index;
use sluice_format::{BlobDigest, Digest, Limits};
use sluice_storage::cache::{Goal, Pin};
use sluice_storage::testing::{FaultyBlob, MemoryRepository, SampleLayer};
use sluice_storage::{
    Blob, Cache, CacheOptions, Counters, Descriptor, Error, ErrorKind, Fetcher, LazyImage, Manifest,
    ManifestName, PlainLayer, Repository, WritableRepository, load_lazy_image_cached,
};

/// A repository that counts what it is asked, and can be away.
#[derive(Debug)]
struct Moody {
    inner: MemoryRepository,
    away: Option<ErrorKind>,
    asked: AtomicUsize,
    connected: AtomicUsize,
    /// How long it thinks about a manifest.
    distance: Duration,
    opened: Mutex<Vec<Arc<FaultyBlob>>>,
}

impl Moody {
    fn ask(&self) -> Result<(), Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.away.map_or(Ok(()), |kind| Err(Error::new(kind, "away")))
    }
}

impl Repository for Moody {
    fn location(&self) -> String {
        "docker://registry.test/app".to_owned()
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        Box::pin(async move {
            self.ask()?;
            tokio::time::sleep(self.distance).await;
            self.inner.fetch_manifest(name).await
        })
    }

    fn connect(&self) {
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let blob = FaultyBlob::new(self.inner.open_blob(descriptor));
        self.opened.lock().expect("no panic").push(blob.clone());
        blob
    }

    fn fetch_blob<'a>(&'a self, blob: &'a Descriptor, max_len: u64) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            self.ask()?;
            self.inner.fetch_blob(blob, max_len).await
        })
    }
}

fn tag() -> ManifestName {
    ManifestName::Tag("t".to_owned())
}

fn described(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

async fn store(repository: &MemoryRepository, bytes: &[u8]) {
    let mut writer = repository.begin_blob().await.expect("begun");
    writer.write(Bytes::copy_from_slice(bytes)).await.expect("taken");
    let digest = BlobDigest(Digest::of(bytes));
    writer.finish(digest).await.expect("finished");
}

/// Stores an image of one layer as `t`; `annotated` says whether the manifest tells where the index lies.
async fn store_image(repository: &MemoryRepository, sample: &SampleLayer, annotated: bool) {
    let index = sample.layer.index.encode().expect("an index");
    let (framed, location) = frame_index(&index, sample.stored.len() as u64).expect("a frame");
    let blob = [&sample.stored[..], &framed].concat();
    store(repository, &blob).await;
    let diff_id = sample.layer.diff_id.to_string();
    let config = json!({ "rootfs": { "type": "layers", "diff_ids": [diff_id] } }).to_string();
    store(repository, config.as_bytes()).await;
    let mut layer = described(OCI_LAYER_ZSTD, &blob);
    if annotated {
        layer["annotations"] = json!({ INDEX_ANNOTATION: location.to_string() });
    }
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": described(OCI_CONFIG, config.as_bytes()), "layers": [layer] });
    let manifest = Bytes::from(manifest.to_string());
    let name = ManifestName::Digest(Digest::of(&manifest));
    let stored = repository.put_manifest(&name, OCI_MANIFEST, manifest.clone());
    stored.await.expect("stored");
    let mut entry = described(OCI_MANIFEST, &manifest);
    entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
    let name = tag();
    let stored = repository.put_manifest(&name, OCI_INDEX, list.to_string().into());
    stored.await.expect("stored");
}

async fn moody(sample: &SampleLayer, annotated: bool, away: Option<ErrorKind>) -> Arc<Moody> {
    let inner = MemoryRepository::new();
    store_image(&inner, sample, annotated).await;
    Arc::new(Moody {
        inner,
        away,
        asked: AtomicUsize::new(0),
        connected: AtomicUsize::new(0),
        distance: Duration::ZERO,
        opened: Mutex::default(),
    })
}

/// A repository that has nothing and does not answer.
fn gone(kind: ErrorKind) -> Arc<Moody> {
    Arc::new(Moody {
        inner: MemoryRepository::new(),
        away: Some(kind),
        asked: AtomicUsize::new(0),
        connected: AtomicUsize::new(0),
        distance: Duration::ZERO,
        opened: Mutex::default(),
    })
}

fn open(dir: &tempfile::TempDir) -> Arc<Cache> {
    let options = CacheOptions {
        upkeep: false,
        ..CacheOptions::default()
    };
    Cache::open_with(dir.path(), options).expect("a cache opens")
}

async fn load(repository: &Arc<Moody>, name: &ManifestName, cache: &Arc<Cache>) -> Result<LazyImage, Error> {
    let repository: Arc<dyn Repository> = repository.clone();
    let platform = "linux/amd64".parse().expect("a platform");
    load_lazy_image_cached(&repository, name, &platform, &Limits::default(), cache).await
}

async fn read_all(image: &LazyImage, cache: &Arc<Cache>, sample: &SampleLayer) {
    let layer = &image.layers[0];
    let fetcher = Fetcher::new(Arc::new(Counters::default()));
    let plain = PlainLayer::new(layer, Some(cache.layer(&layer.index)), &fetcher);
    let bytes = plain.read(0..plain.plain_len()).await.expect("read");
    assert_eq!(bytes, sample.plain);
}

#[tokio::test]
async fn a_registry_that_is_gone_hinders_nothing_that_is_cached() {
    for annotated in [true, false] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sample = SampleLayer::new(5, 5000, 0);
        let cache = open(&dir);
        let image = load(&moody(&sample, annotated, None).await, &tag(), &cache)
            .await
            .expect("loaded");
        read_all(&image, &cache, &sample).await;
        drop(cache);
        let cache = open(&dir);
        let again = load(&gone(ErrorKind::Unavailable), &tag(), &cache)
            .await
            .expect("remembered");
        assert_eq!(again.manifest_digest, image.manifest_digest);
        read_all(&again, &cache, &sample).await;
    }
}

#[tokio::test]
async fn what_the_registry_refuses_stays_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = SampleLayer::new(5, 5000, 0);
    let cache = open(&dir);
    load(&moody(&sample, true, None).await, &tag(), &cache)
        .await
        .expect("loaded");
    for kind in [ErrorKind::NotFound, ErrorKind::Denied, ErrorKind::Corrupt] {
        let error = load(&gone(kind), &tag(), &cache).await.expect_err("refused");
        assert_eq!(error.kind(), kind);
    }
    let other = ManifestName::Tag("other".to_owned());
    let error = load(&gone(ErrorKind::Unavailable), &other, &cache)
        .await
        .expect_err("never seen");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_remount_asks_for_the_tag_only_and_a_digest_for_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = SampleLayer::new(5, 5000, 0);
    let cache = open(&dir);
    let repository = moody(&sample, true, None).await;
    let image = load(&repository, &tag(), &cache).await.expect("loaded");
    assert_eq!(
        repository.asked.swap(0, Ordering::Relaxed),
        3,
        "image index, manifest, config"
    );
    load(&repository, &tag(), &cache).await.expect("loaded");
    assert_eq!(repository.asked.load(Ordering::Relaxed), 1);
    let by_digest = ManifestName::Digest(image.manifest_digest);
    let nobody = gone(ErrorKind::Denied);
    load(&nobody, &by_digest, &cache)
        .await
        .expect("all of it is here");
    assert_eq!(nobody.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_tag_that_moves_is_followed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = open(&dir);
    let (old, new) = (SampleLayer::new(5, 5000, 0), SampleLayer::new(6, 5000, 0));
    load(&moody(&old, true, None).await, &tag(), &cache)
        .await
        .expect("loaded");
    let image = load(&moody(&new, true, None).await, &tag(), &cache)
        .await
        .expect("loaded");
    assert_eq!(image.layers[0].diff_id, new.layer.diff_id);
    let again = load(&gone(ErrorKind::Unavailable), &tag(), &cache)
        .await
        .expect("remembered");
    assert_eq!(again.manifest_digest, image.manifest_digest);
}

#[tokio::test]
async fn damaged_documents_are_fetched_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = SampleLayer::new(5, 5000, 0);
    let cache = open(&dir);
    let repository = moody(&sample, true, None).await;
    let image = load(&repository, &tag(), &cache).await.expect("loaded");
    for entry in std::fs::read_dir(dir.path().join("documents/sha256")).expect("listed") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[10] ^= 1;
        std::fs::write(&path, bytes).expect("written");
    }
    let again = load(&repository, &tag(), &cache).await.expect("loaded");
    assert_eq!(again.config, image.config);
    load(&gone(ErrorKind::Unavailable), &tag(), &cache)
        .await
        .expect("whole again");
}

#[tokio::test]
async fn documents_are_evicted_and_those_of_pinned_images_are_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = SampleLayer::new(5, 5000, 0);
    let cache = open(&dir);
    let image = load(&moody(&sample, true, None).await, &tag(), &cache)
        .await
        .expect("loaded");
    read_all(&image, &cache, &sample).await;
    let name = "docker://registry.test/app:t";
    assert_eq!(cache.inventory().images[0].record.name, name);
    let pin = Pin::Image(name.to_owned());
    cache.pin(&pin).expect("pinned");
    let goal = Goal {
        keep: 0,
        used_before: None,
    };
    cache.evict(goal).expect("evicted");
    let nobody = gone(ErrorKind::Unavailable);
    let image = load(&nobody, &tag(), &cache).await.expect("all of it is here");
    read_all(&image, &cache, &sample).await;
    let inventory = cache.inventory();
    assert!(inventory.images[0].pinned && inventory.layers[0].pinned && inventory.images[0].complete);
    cache.unpin(&pin).expect("unpinned");
    // The task that fetched may hold the layer for a moment longer than its reader waited.
    for _ in 0..200 {
        cache.evict(goal).expect("evicted");
        if cache.inventory().layers.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(load(&nobody, &tag(), &cache).await.is_err());
    let inventory = cache.inventory();
    assert!(
        inventory.images.is_empty() && inventory.layers.is_empty(),
        "{inventory:?}"
    );
}

#[tokio::test]
async fn connections_are_opened_ahead_for_what_this_host_has_never_seen() {
    let dir = tempfile::tempdir().expect("a directory");
    let (cache, sample) = (open(&dir), SampleLayer::new(4, 5000, 0));
    let repository = moody(&sample, true, None).await;
    let image = load(&repository, &tag(), &cache).await.expect("loaded");
    assert_eq!(repository.connected.load(Ordering::Relaxed), 1);
    load(&repository, &tag(), &cache).await.expect("loaded again");
    let pinned = ManifestName::Digest(image.manifest_digest);
    load(&repository, &pinned, &cache)
        .await
        .expect("loaded by digest");
    assert_eq!(repository.connected.load(Ordering::Relaxed), 1);
}

/// The ranges in which an index came from a repository that takes so long to answer.
async fn parts_from(distance: Duration) -> Vec<Range<u64>> {
    let dir = tempfile::tempdir().expect("a directory");
    let (cache, sample) = (open(&dir), SampleLayer::new(4000, 512, 0));
    let mut repository = moody(&sample, true, None).await;
    Arc::get_mut(&mut repository)
        .expect("nobody else has it")
        .distance = distance;
    let image = load(&repository, &tag(), &cache).await.expect("loaded");
    assert!(image.index_bytes > 100 << 10, "an index of {}", image.index_bytes);
    read_all(&image, &cache, &sample).await;
    let opened = repository.opened.lock().expect("no panic");
    let start = sample.stored.len() as u64;
    let asked = opened.iter().flat_map(|blob| blob.requests());
    asked.filter(|range| range.start >= start).collect()
}

#[tokio::test]
async fn indexes_come_in_parts_from_far_away_and_else_at_once() {
    assert_eq!(parts_from(Duration::ZERO).await.len(), 1);
    let mut parts = parts_from(Duration::from_millis(30)).await;
    parts.sort_by_key(|part| part.start);
    assert!((3..=9).contains(&parts.len()), "{parts:?}");
    assert!(
        parts.windows(2).all(|pair| pair[0].end == pair[1].start),
        "{parts:?}"
    );
    assert!(
        parts.iter().all(|part| part.end - part.start <= 40 << 10),
        "{parts:?}"
    );
}
