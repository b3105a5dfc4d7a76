//! Promise: whatever a registry does, a reader gets the right bytes or one clear error within its deadline; nothing wrong is kept;
//! and when the fault is over, everything reads right from the same cache.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use sluice_format::Limits;
use sluice_storage::{
    Cache, Counters, Error, ErrorKind, Fetcher, Layout, LazyImage, ManifestName, PlainLayer, Platform,
    RegistryClient, RegistryOptions, Repository, load_lazy_image,
};
use sluice_tests::document;
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::registry::{Class, Countdown, CountingRegistry, Expiry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

/// Far longer than any read may take with the options below, even on a busy machine: whoever passes it hangs.
const HANG: Duration = Duration::from_secs(90);
/// Bytes of a read.
const READ_LEN: u64 = 100_000;
/// Reads of a layer under way at a time.
const READERS: usize = 4;

/// What a reader may see under a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// A piece may have come with an answer whose spoilt byte was another's; else its read fails.
    BytesOrError,
    Bytes,
    /// Every read fails, in this way.
    Error(ErrorKind),
}

/// A converted image of two layers in a layout, and its plain bytes.
struct Fixture {
    scratch: Scratch,
    layout: document::Layout,
    runtime: tokio::runtime::Runtime,
    truth: Vec<(String, Bytes)>,
}

impl Fixture {
    fn new(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let files = |from: u64| {
            (from..from + 12).map(|at| Entry::generated(format!("file-{at:02}"), 60_000 + at * 1000, at))
        };
        let image = ImageBuilder::new()
            .layer(Layer::of(files(0)))
            .layer(Layer::of(files(20)))
            .write(&scratch.join("source"), "faults")?;
        let directory = scratch.join("converted");
        sluice::convert(&image.reference(), &directory, "c", &["--chunk-size", "16K"])?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let truth = runtime.block_on(truth(&directory))?;
        Ok(Self {
            layout: document::Layout::open(&directory),
            scratch,
            runtime,
            truth,
        })
    }

    fn cache(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("cache-{}", name.replace(' ', "-")))
    }

    /// Opens the image at `reference` with an engine of its own.
    fn open(&self, reference: &str, cache: &Path) -> Result<Vec<Arc<PlainLayer>>> {
        self.runtime.block_on(async {
            let opening = tokio::time::timeout(HANG, open(reference, cache));
            opening.await.context("opening the image hangs")?
        })
    }

    /// Reads all layers in pieces, several at a time, and checks what comes.
    fn read(&self, name: &str, layers: &[Arc<PlainLayer>], expected: Expected) -> Result<()> {
        for (layer, (diff_id, plain)) in layers.iter().zip(&self.truth) {
            ensure!(layer.diff_id().to_string() == *diff_id);
            let mut pieces = Vec::new();
            for first in (0..layer.plain_len()).step_by(READ_LEN as usize) {
                pieces.push(first..(first + READ_LEN).min(layer.plain_len()));
            }
            for together in pieces.chunks(READERS) {
                let reads = together
                    .iter()
                    .map(|piece| tokio::time::timeout(HANG, layer.read(piece.clone())));
                let read = self.runtime.block_on(async { join_all(reads).await });
                for (piece, outcome) in together.iter().zip(read) {
                    let outcome = outcome.with_context(|| format!("{name}: a reader of {piece:?} hangs"))?;
                    check(name, piece, outcome, plain, expected)?;
                }
            }
        }
        Ok(())
    }

    /// Checks that what is in the cache is right, or nothing.
    fn check_cache(&self, name: &str, cache: &Path) -> Result<()> {
        for (diff_id, plain) in &self.truth {
            let hex = diff_id.trim_start_matches("sha256:");
            let kept = match fs::read(cache.join("layers/sha256").join(hex).join("data")) {
                Ok(kept) => kept,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let wrong = kept
                .chunks(512)
                .zip(plain.chunks(512))
                .position(|(kept, plain)| kept != plain && kept.iter().any(|byte| *byte != 0));
            ensure!(wrong.is_none(), "{name}: wrong bytes are kept at block {wrong:?}");
        }
        Ok(())
    }
}

/// The plain bytes of every layer, read without registry, cache and fault.
async fn truth(directory: &Path) -> Result<Vec<(String, Bytes)>> {
    let layout: Arc<dyn Repository> = Arc::new(Layout::open(directory)?);
    let image = load(&layout, "c").await?;
    let fetcher = Fetcher::new(Arc::new(Counters::default()));
    let mut truth = Vec::new();
    for layer in &image.layers {
        let plain = PlainLayer::new(layer, None, &fetcher);
        let bytes = plain.read(0..plain.plain_len()).await?;
        let diff_id = plain.diff_id().to_string();
        ensure!(document::digest(&bytes) == diff_id, "the truth is wrong");
        truth.push((diff_id, bytes));
    }
    Ok(truth)
}

async fn load(repository: &Arc<dyn Repository>, tag: &str) -> Result<LazyImage, Error> {
    let platform: Platform = "linux/amd64".parse()?;
    let name = ManifestName::Tag(tag.to_owned());
    load_lazy_image(repository, &name, &platform, &Limits::default()).await
}

fn options() -> RegistryOptions {
    RegistryOptions {
        first_retry_delay: Duration::from_millis(20),
        connect_timeout: Duration::from_secs(5),
        answer_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(1),
        patience: Duration::from_secs(10),
        auth_file: Some("/nonexistent/auth.json".into()),
        hosts_dir: "/nonexistent/certs.d".into(),
        ..RegistryOptions::default()
    }
}

async fn open(reference: &str, cache: &Path) -> Result<Vec<Arc<PlainLayer>>> {
    let client = RegistryClient::new(options());
    let reference = reference.trim_start_matches("docker://").parse()?;
    let repository: Arc<dyn Repository> = client.repository(&reference)?;
    let image = load(&repository, "c").await?;
    let cache = Cache::open(cache)?;
    let fetcher = Fetcher::new(Arc::new(Counters::default()));
    let plain = |layer| PlainLayer::new(layer, Some(cache.layer(&layer.index)), &fetcher);
    Ok(image.layers.iter().map(plain).collect())
}

fn check(
    name: &str,
    piece: &Range<u64>,
    outcome: Result<Bytes, Error>,
    plain: &Bytes,
    expected: Expected,
) -> Result<()> {
    match (outcome, expected) {
        (Ok(bytes), _) if bytes != plain[piece.start as usize..piece.end as usize] => {
            bail!("{name}: a reader of {piece:?} got wrong bytes")
        }
        (Ok(_), Expected::Bytes | Expected::BytesOrError) => Ok(()),
        (Ok(_), _) => bail!("{name}: the read of {piece:?} succeeded; the fault does not reach it"),
        (Err(error), Expected::Bytes) => bail!("{name}: a reader of {piece:?} got an error: {error}"),
        (Err(error), Expected::Error(kind)) => {
            ensure!(error.kind() == kind, "{name}: {:?}: {error}", error.kind());
            ensure!(!error.to_string().is_empty(), "{name}: the error says nothing");
            Ok(())
        }
        (Err(error), Expected::BytesOrError) => {
            ensure!(!error.to_string().is_empty(), "{name}: the error says nothing");
            Ok(())
        }
    }
}

/// A few answers, then no more.
fn some() -> Countdown {
    Countdown::times(3)
}

fn status(class: Class, code: u16, times: Countdown) -> FaultSet {
    FaultSet::none().with(Fault::Status { class, code, times })
}

type Case = (&'static str, fn() -> FaultSet, Expected);

/// Faults that a reader does not notice.
const PASSING: &[Case] = &[
    (
        "latency",
        || FaultSet::none().with(Fault::Latency(Duration::from_millis(50))),
        Expected::Bytes,
    ),
    (
        "throttled",
        || FaultSet::none().with(Fault::Throttled(400_000)),
        Expected::Bytes,
    ),
    (
        "cut",
        || {
            FaultSet::none().with(Fault::CutAfter {
                bytes: 3000,
                times: some(),
            })
        },
        Expected::Bytes,
    ),
    (
        "stalled",
        || {
            FaultSet::none().with(Fault::StallAfter {
                bytes: 3000,
                times: some(),
            })
        },
        Expected::Bytes,
    ),
    (
        "truncated",
        || {
            FaultSet::none().with(Fault::TruncatedAfter {
                bytes: 3000,
                times: some(),
            })
        },
        Expected::Bytes,
    ),
    (
        "corrupted once",
        || {
            FaultSet::none().with(Fault::Corrupted {
                at: 500,
                times: Countdown::times(1),
            })
        },
        Expected::Bytes,
    ),
    (
        "200 for 206",
        || FaultSet::none().with(Fault::WholeBlob),
        Expected::Bytes,
    ),
    (
        "tokens that expire",
        || FaultSet::none().with(Fault::TokenExpires(Expiry::after(40))),
        Expected::Bytes,
    ),
    (
        "redirects that expire with 403",
        || {
            FaultSet::none().with(Fault::RedirectExpires {
                expiry: Expiry::after(6),
                code: 403,
            })
        },
        Expected::Bytes,
    ),
    (
        "redirects that expire with 400",
        || {
            FaultSet::none().with(Fault::RedirectExpires {
                expiry: Expiry::after(6),
                code: 400,
            })
        },
        Expected::Bytes,
    ),
    ("429", || status(Class::Blob, 429, some()), Expected::Bytes),
    (
        "429 with a time",
        || status(Class::Blob, 429, Countdown::times(1)).with(Fault::RetryAfter(1)),
        Expected::Bytes,
    ),
    ("500", || status(Class::Blob, 500, some()), Expected::Bytes),
    ("503", || status(Class::Blob, 503, some()), Expected::Bytes),
    (
        "reset",
        || FaultSet::none().with(Fault::Reset(some())),
        Expected::Bytes,
    ),
    (
        "slow redirects and cut",
        || {
            FaultSet::none()
                .with(Fault::Latency(Duration::from_millis(20)))
                .with(Fault::TokenAuth)
                .with(Fault::Redirect)
                .with(Fault::CutAfter {
                    bytes: 2000,
                    times: some(),
                })
        },
        Expected::Bytes,
    ),
    (
        "busy, reset and corrupted",
        || {
            status(Class::Blob, 503, Countdown::times(2))
                .with(Fault::Reset(Countdown::times(1)))
                .with(Fault::Corrupted {
                    at: 0,
                    times: Countdown::times(1),
                })
        },
        Expected::Bytes,
    ),
    (
        "storage that is busy behind redirects",
        || status(Class::Storage, 503, some()).with(Fault::Redirect),
        Expected::Bytes,
    ),
];

/// Faults that last.
const LASTING: &[Case] = &[
    (
        "cut at once",
        || {
            FaultSet::none().with(Fault::CutAfter {
                bytes: 0,
                times: Countdown::always(),
            })
        },
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "corrupted always",
        || {
            FaultSet::none().with(Fault::Corrupted {
                at: 0,
                times: Countdown::always(),
            })
        },
        Expected::BytesOrError,
    ),
    (
        "403",
        || status(Class::Blob, 403, Countdown::always()),
        Expected::Error(ErrorKind::Denied),
    ),
    (
        "404",
        || status(Class::Blob, 404, Countdown::always()),
        Expected::Error(ErrorKind::NotFound),
    ),
    (
        "416",
        || status(Class::Blob, 416, Countdown::always()),
        Expected::Error(ErrorKind::Corrupt),
    ),
    (
        "429 always",
        || status(Class::Blob, 429, Countdown::always()),
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "429 for an hour",
        || status(Class::Blob, 429, Countdown::always()).with(Fault::RetryAfter(3600)),
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "500 always",
        || status(Class::Blob, 500, Countdown::always()),
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "501",
        || status(Class::Blob, 501, Countdown::always()),
        Expected::Error(ErrorKind::Unsupported),
    ),
    (
        "503 always",
        || status(Class::Blob, 503, Countdown::always()),
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "reset always",
        || FaultSet::none().with(Fault::Reset(Countdown::always())),
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "401 that no token ends",
        || status(Class::Blob, 401, Countdown::always()),
        Expected::Error(ErrorKind::Denied),
    ),
];

/// Reads under each fault, then without it from the same cache, first with the same engine and then with a new one.
fn read_under(cases: &[Case], fixture: &Fixture) -> Result<()> {
    let registry = CountingRegistry::serve(&fixture.layout)?;
    let reference = registry.reference("c");
    for (name, faults, expected) in cases {
        let cache = fixture.cache(name);
        registry.set_faults(FaultSet::none());
        let layers = fixture.open(&reference, &cache)?;
        registry.set_faults(faults());
        fixture.read(name, &layers, *expected)?;
        fixture.check_cache(name, &cache)?;
        registry.set_faults(FaultSet::none());
        fixture.read(&format!("{name}, healed"), &layers, Expected::Bytes)?;
        drop(layers);
        let layers = fixture.open(&reference, &cache)?;
        fixture.read(&format!("{name}, opened again"), &layers, Expected::Bytes)?;
        fixture.check_cache(name, &cache)?;
    }
    Ok(())
}

#[test]
fn faults_that_pass_are_not_noticed() -> Result<()> {
    let fixture = Fixture::new("passing")?;
    read_under(PASSING, &fixture)
}

#[test]
fn faults_that_last_are_one_error_and_leave_nothing_wrong() -> Result<()> {
    let fixture = Fixture::new("lasting")?;
    read_under(LASTING, &fixture)
}

#[test]
fn an_image_opens_or_says_why_under_every_fault() -> Result<()> {
    let fixture = Fixture::new("opening")?;
    let registry = CountingRegistry::serve(&fixture.layout)?;
    let reference = registry.reference("c");
    for (name, faults, expected) in PASSING.iter().chain(LASTING) {
        let cache = fixture.cache(name);
        registry.set_faults(faults());
        match (fixture.open(&reference, &cache), expected) {
            (opened, Expected::Bytes) => {
                opened.with_context(|| format!("{name}: the image does not open"))?;
            }
            (opened, _) => ensure!(opened.is_err(), "{name}: the fault does not reach it"),
        }
        registry.set_faults(FaultSet::none());
        let layers = fixture.open(&reference, &cache)?;
        fixture.read(name, &layers, Expected::Bytes)?;
    }
    Ok(())
}

#[test]
fn a_registry_that_is_gone_for_a_while_is_waited_for_and_what_is_cached_needs_none() -> Result<()> {
    let fixture = Fixture::new("gone")?;
    let mut registry = CountingRegistry::serve(&fixture.layout)?;
    let reference = registry.reference("c");
    let cache = fixture.cache("gone");
    let layers = fixture.open(&reference, &cache)?;
    registry.vanish();
    fixture.read("gone", &layers, Expected::Error(ErrorKind::Unavailable))?;
    registry.come_back()?;
    fixture.read("back", &layers, Expected::Bytes)?;
    registry.vanish();
    fixture.read("gone, everything cached", &layers, Expected::Bytes)?;
    fixture.check_cache("gone", &cache)
}

#[test]
fn a_name_that_does_not_resolve_is_one_clear_error() -> Result<()> {
    let fixture = Fixture::new("dns")?;
    let cache = fixture.cache("dns");
    let error = fixture
        .open("docker://no-such-host.invalid/test:c", &cache)
        .err()
        .context("opened an image at a host that does not exist")?;
    ensure!(
        format!("{error:#}").contains("no-such-host.invalid cannot be reached"),
        "{error:#}"
    );
    let registry = CountingRegistry::serve(&fixture.layout)?;
    let layers = fixture.open(&registry.reference("c"), &cache)?;
    fixture.read("a name that resolves", &layers, Expected::Bytes)
}

#[test]
fn a_corrupted_cache_file_heals_itself() -> Result<()> {
    let fixture = Fixture::new("healing")?;
    let registry = CountingRegistry::serve(&fixture.layout)?;
    let reference = registry.reference("c");
    let cache = fixture.cache("healing");
    let layers = fixture.open(&reference, &cache)?;
    fixture.read("first", &layers, Expected::Bytes)?;
    drop(layers);
    for (diff_id, plain) in &fixture.truth {
        let hex = diff_id.trim_start_matches("sha256:");
        let path = cache.join("layers/sha256").join(hex).join("data");
        let mut bytes = fs::read(&path)?;
        for at in (0..bytes.len()).step_by(50_000) {
            bytes[at] ^= 1;
        }
        ensure!(bytes != plain[..], "nothing was spoilt");
        fs::write(&path, &bytes)?;
    }
    registry.traffic().clear();
    let layers = fixture.open(&reference, &cache)?;
    fixture.read("spoilt", &layers, Expected::Bytes)?;
    ensure!(
        registry.traffic().count(Class::Blob) > 2,
        "nothing was fetched again"
    );
    drop(layers);
    fixture.check_cache("healed", &cache)?;
    registry.traffic().clear();
    let layers = fixture.open(&reference, &cache)?;
    let opening = registry.traffic().requests().len();
    fixture.read("healed", &layers, Expected::Bytes)?;
    ensure!(
        registry.traffic().requests().len() == opening,
        "what was healed is kept\n{}",
        registry.traffic().describe()
    );
    Ok(())
}
