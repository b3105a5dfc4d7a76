//! Promise: whatever a registry does while layers are streamed, each is there as a whole and right, or there is one clear error and nothing
//! of it is shown; and when the fault is over, the same cache takes the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_format::Limits;
use sluice_storage::{
    Cache, CacheOptions, Error, ErrorKind, ManifestName, NoProgress, Platform, RegistryClient,
    RegistryOptions, Repository, load_resolved_image_streaming, resolve_image_cached,
};
use sluice_tests::document;
use sluice_tests::images::{Compression, Entry, Image, ImageBuilder, Layer};
use sluice_tests::numbers::numbers;
use sluice_tests::registry::{Class, Countdown, CountingRegistry, Expiry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;

/// Far longer than streaming may take with the options below, even on a busy machine: whoever passes it hangs.
const HANG: Duration = Duration::from_secs(120);
/// What an attempt that fails may lose of each range under way.
const BLOCK_LEN: u64 = 256 << 10;
/// Files of a layer, each of so many bytes: two ranges and a piece of a third, where it is not compressed.
const FILES: u64 = 9;
const FILE_LEN: u64 = 1_000_000;

/// What becomes of an image under a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// All of it comes.
    Layers,
    /// The fault may hit what is asked for twice anyway, or end it.
    LayersOrError,
    /// It fails in this way.
    Error(ErrorKind),
}

type Case = (&'static str, fn() -> FaultSet, Expected);

struct Fixture {
    scratch: Scratch,
    image: Image,
    runtime: tokio::runtime::Runtime,
}

impl Fixture {
    fn new(name: &str) -> Result<Self> {
        Self::of(
            name,
            [
                layer(0, FILES),
                layer(20, FILES).compression(Compression::Zstd),
                layer(40, FILES).compression(Compression::None),
            ],
        )
    }

    fn of(name: &str, layers: impl IntoIterator<Item = Layer>) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let image = ImageBuilder::new()
            .layers(layers)
            .write(&scratch.join("source"), "f")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        Ok(Self {
            scratch,
            image,
            runtime,
        })
    }

    fn cache(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("cache-{}", name.replace(' ', "-")))
    }

    /// Loads the image with an engine of its own, as a process does that has just started.
    fn load(&self, name: &str, reference: &str, cache: &Path) -> Result<Result<(), Error>> {
        self.runtime.block_on(async {
            let loading = tokio::time::timeout(HANG, load(reference, cache));
            loading.await.with_context(|| format!("{name}: streaming hangs"))
        })
    }

    /// Checks every layer that has taken its place; how many those are.
    fn check(&self, name: &str, cache: &Path) -> Result<usize> {
        let mut whole = 0;
        for layer in &self.image.layers {
            let hex = layer.diff_id.trim_start_matches("sha256:");
            let data = match fs::read(cache.join("layers/sha256").join(hex).join("data")) {
                Ok(data) => data,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            ensure!(
                document::digest(&data) == layer.diff_id,
                "{name}: a layer is kept that is not the one that its DiffID names"
            );
            whole += 1;
        }
        Ok(whole)
    }

    fn stream_under(&self, cases: &[Case]) -> Result<()> {
        let registry = CountingRegistry::serve(&self.image.layout)?;
        let reference = registry.reference("f");
        for (name, faults, expected) in cases {
            let cache = self.cache(name);
            registry.set_faults(faults());
            match (self.load(name, &reference, &cache)?, expected) {
                (Ok(()), Expected::Layers | Expected::LayersOrError) | (Err(_), Expected::LayersOrError) => {}
                (Ok(()), Expected::Error(_)) => anyhow::bail!("{name}: the fault does not reach it"),
                (Err(error), Expected::Layers) => anyhow::bail!("{name}: {error:#?}"),
                (Err(error), Expected::Error(kind)) => {
                    ensure!(error.kind() == *kind, "{name}: {error:#?}");
                    ensure!(error.to_string().contains("sha256:"), "{name}: {error}");
                }
            }
            self.check(name, &cache)?;
            registry.set_faults(FaultSet::none());
            let healed = self.load(name, &reference, &cache)?;
            healed.with_context(|| format!("{name}, healed"))?;
            ensure!(self.check(name, &cache)? == self.image.layers.len(), "{name}");
            fs::remove_dir_all(&cache)?;
        }
        Ok(())
    }
}

/// A layer of generated files.
fn layer(from: u64, files: u64) -> Layer {
    let files = from..from + files;
    Layer::of(files.map(|at| Entry::generated(format!("file-{at:02}"), FILE_LEN, at)))
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

async fn load(reference: &str, cache: &Path) -> Result<(), Error> {
    let client = RegistryClient::new(options());
    let reference = reference.trim_start_matches("docker://").parse()?;
    let repository: Arc<dyn Repository> = client.repository(&reference)?;
    let platform: Platform = "linux/amd64".parse()?;
    let name = ManifestName::Tag("f".to_owned());
    let options = CacheOptions {
        quota: Some(1 << 30),
        upkeep: false,
        ..CacheOptions::default()
    };
    let (cache, limits) = (Cache::open_with(cache, options)?, Limits::default());
    let resolved = resolve_image_cached(&repository, &name, &platform, &limits, &cache).await?;
    let streaming = load_resolved_image_streaming(
        &repository,
        &name,
        &platform,
        &resolved,
        &limits,
        &cache,
        &NoProgress,
    );
    streaming.await.map(drop)
}

/// A few answers, then no more.
fn some() -> Countdown {
    Countdown::times(3)
}

fn status(code: u16, times: Countdown) -> FaultSet {
    let class = Class::Blob;
    FaultSet::none().with(Fault::Status { class, code, times })
}

/// Faults that end.
const PASSING: &[Case] = &[
    (
        "cut",
        || {
            FaultSet::none().with(Fault::CutAfter {
                bytes: 1_300_000,
                times: some(),
            })
        },
        Expected::Layers,
    ),
    (
        "cut before the first byte",
        || {
            FaultSet::none().with(Fault::CutAfter {
                bytes: 0,
                times: some(),
            })
        },
        Expected::Layers,
    ),
    (
        "stalled",
        || {
            FaultSet::none().with(Fault::StallAfter {
                bytes: 700_001,
                times: some(),
            })
        },
        Expected::Layers,
    ),
    (
        "truncated",
        || {
            FaultSet::none().with(Fault::TruncatedAfter {
                bytes: 262_144,
                times: some(),
            })
        },
        Expected::Layers,
    ),
    (
        // A manifest is checked where it is asked for, a blob when it is whole.
        "corrupted once",
        || {
            FaultSet::none().with(Fault::Corrupted {
                at: 500_000,
                times: Countdown::times(1),
            })
        },
        Expected::Layers,
    ),
    (
        "200 for 206",
        || FaultSet::none().with(Fault::WholeBlob),
        Expected::Layers,
    ),
    (
        "tokens that expire in mid-flight",
        || FaultSet::none().with(Fault::TokenExpires(Expiry::after(4))),
        Expected::Layers,
    ),
    (
        "redirects that expire",
        || {
            FaultSet::none().with(Fault::RedirectExpires {
                expiry: Expiry::after(3),
                code: 403,
            })
        },
        Expected::Layers,
    ),
    (
        "429 with a time",
        || status(429, Countdown::times(2)).with(Fault::RetryAfter(1)),
        Expected::Layers,
    ),
    ("503", || status(503, some()), Expected::Layers),
    (
        "reset",
        || FaultSet::none().with(Fault::Reset(some())),
        Expected::Layers,
    ),
    (
        "slow redirects, a stall and cuts",
        || {
            FaultSet::none()
                .with(Fault::Latency(Duration::from_millis(20)))
                .with(Fault::TokenAuth)
                .with(Fault::Redirect)
                .with(Fault::StallAfter {
                    bytes: 300_000,
                    times: Countdown::times(1),
                })
                .with(Fault::CutAfter {
                    bytes: 2_000_000,
                    times: some(),
                })
        },
        Expected::Layers,
    ),
    (
        "busy, reset and corrupted",
        || {
            status(503, Countdown::times(2))
                .with(Fault::Reset(Countdown::times(1)))
                .with(Fault::Corrupted {
                    at: 100,
                    times: Countdown::times(1),
                })
        },
        Expected::LayersOrError,
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
        "stalled always",
        || {
            FaultSet::none().with(Fault::StallAfter {
                bytes: 5000,
                times: Countdown::always(),
            })
        },
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "corrupted always",
        || {
            FaultSet::none().with(Fault::Corrupted {
                at: 70_000,
                times: Countdown::always(),
            })
        },
        Expected::Error(ErrorKind::Corrupt),
    ),
    (
        "403",
        || status(403, Countdown::always()),
        Expected::Error(ErrorKind::Denied),
    ),
    (
        "429 for an hour",
        || status(429, Countdown::always()).with(Fault::RetryAfter(3600)),
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "503 always",
        || status(503, Countdown::always()),
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "reset always",
        || FaultSet::none().with(Fault::Reset(Countdown::always())),
        Expected::Error(ErrorKind::Unavailable),
    ),
    (
        "401 that no token ends",
        || status(401, Countdown::always()),
        Expected::Error(ErrorKind::Denied),
    ),
];

#[test]
fn faults_that_pass_are_not_noticed() -> Result<()> {
    Fixture::new("stream-passing")?.stream_under(PASSING)
}

#[test]
fn faults_that_last_are_one_error_that_names_a_blob_and_leave_nothing_wrong() -> Result<()> {
    Fixture::new("stream-lasting")?.stream_under(LASTING)
}

#[test]
fn attempts_that_are_cut_at_any_byte_each_bring_the_image_nearer() -> Result<()> {
    let fixture = Fixture::new("stream-any-byte")?;
    let registry = CountingRegistry::serve(&fixture.image.layout)?;
    let (reference, cache) = (registry.reference("f"), fixture.cache("any byte"));
    let mut next = numbers(5);
    let (mut failed, mut attempts) = (0, 0);
    loop {
        attempts += 1;
        let bytes = next(600_000);
        // The first request of each attempt is for a document; then every blob answer ends after so many bytes, or at once.
        let faults = FaultSet::none()
            .with(Fault::CutAfter {
                bytes,
                times: Countdown::times(14),
            })
            .with(Fault::CutAfter {
                bytes: 0,
                times: Countdown::always(),
            });
        registry.set_faults(if attempts > 40 { FaultSet::none() } else { faults });
        let outcome = fixture.load("cut", &reference, &cache)?;
        fixture.check("cut", &cache)?;
        match outcome {
            Ok(()) => break,
            Err(error) => ensure!(error.is_temporary(), "{error:?}"),
        }
        failed += 1;
    }
    ensure!(failed > 2, "only {failed} attempts failed");
    ensure!(attempts <= 40, "attempts do not bring it nearer: {attempts}");
    let moved = registry.traffic().bytes(Class::Blob);
    let whole: u64 = fixture.image.layers.iter().map(|layer| layer.stored_len).sum();
    // Of two layers at a time, four ranges each; and a layer up to 1 MiB begins again.
    let lost = failed * (2 * 4 * BLOCK_LEN + (1 << 20));
    ensure!(
        moved < whole + lost,
        "{moved} bytes were moved for an image of {whole} in {attempts} attempts\n{}",
        registry.traffic().describe()
    );
    Ok(())
}

/// Ranges near the beginning of a blob can be cut out of an answer with the whole of it; those further back cannot.
#[test]
fn a_long_layer_is_streamed_from_a_registry_without_ranges() -> Result<()> {
    let fixture = Fixture::of("stream-no-ranges", [layer(0, 48).compression(Compression::None)])?;
    let cases: [Case; 2] = [
        (
            "200 for 206",
            || FaultSet::none().with(Fault::WholeBlob),
            Expected::Layers,
        ),
        (
            "200 for 206 and cut",
            || {
                FaultSet::none().with(Fault::WholeBlob).with(Fault::CutAfter {
                    bytes: 30_000_000,
                    times: Countdown::times(4),
                })
            },
            Expected::Layers,
        ),
    ];
    fixture.stream_under(&cases)
}
