//! What the cores can decode and verify, from memory: the bound of reading an image over a fast link.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use sluice_format::compression::ChunkDecoder;
use sluice_format::{ChunkRef, ChunkTable, Limits};
use sluice_storage::registry::{RegistryClient, RegistryOptions};
use sluice_storage::{ImageName, Layout, LazyLayer, Platform, Repository, load_lazy_image};
use tokio::runtime::Runtime;

/// Stored bytes of a sample at most, so that it fits into memory beside what is measured.
const SAMPLE_LEN: u64 = 128 << 20;

/// Stored bytes from the beginning of an image's largest layer, with the chunks in them.
#[derive(Debug)]
pub struct Sample {
    stored: Bytes,
    chunks: Arc<ChunkTable>,
    /// How many of the chunks the sample holds, from the first one on.
    count: usize,
    /// Bytes per second at which one plain request fetched the sample.
    pub fetch_rate: f64,
}

impl Sample {
    /// Fetches the sample of an image with one request.
    ///
    /// # Errors
    /// When the image cannot be read, or is not converted.
    pub fn fetch(image: &str, plain_http: bool) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        runtime.block_on(async {
            let layer = largest_layer(image, plain_http).await?;
            let len = layer.blob.stored_len().min(SAMPLE_LEN);
            let began = Instant::now();
            let stored = layer.blob.read_range(0..len).await?;
            let fetch_rate = len as f64 / began.elapsed().as_secs_f64();
            let chunks = layer.index.chunks.clone();
            let within = |chunk: &ChunkRef| chunk.stored_range().end <= len;
            Ok(Self {
                stored,
                count: chunks.chunks().partition_point(within),
                chunks,
                fetch_rate,
            })
        })
    }

    fn sample(&self) -> &[ChunkRef] {
        &self.chunks.chunks()[..self.count]
    }

    /// Decodes and verifies all chunks on all cores. Gives plain bytes per second.
    ///
    /// # Errors
    /// When a chunk is not what its digest says.
    pub fn decode_rate(&self) -> anyhow::Result<f64> {
        let next = AtomicUsize::new(0);
        let work = || -> anyhow::Result<()> {
            let mut decoder = ChunkDecoder::new()?;
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(chunk) = self.sample().get(at) else {
                    return Ok(());
                };
                let stored = chunk.stored_range();
                decoder.decode(
                    &self.chunks,
                    at,
                    &self.stored[stored.start as usize..stored.end as usize],
                )?;
            }
        };
        let began = Instant::now();
        thread::scope(|scope| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => bail!("a decoding thread panicked"),
            })
        })?;
        let plain: u64 = self.sample().iter().map(|chunk| u64::from(chunk.plain_len)).sum();
        Ok(plain as f64 / began.elapsed().as_secs_f64())
    }
}

async fn largest_layer(image: &str, plain_http: bool) -> anyhow::Result<LazyLayer> {
    let (repository, name): (Arc<dyn Repository>, _) = match image.parse()? {
        ImageName::Registry(reference) => {
            let options = RegistryOptions {
                plain_http,
                ..RegistryOptions::default()
            };
            let client = RegistryClient::new(options);
            (client.repository(&reference)?, reference.manifest_name())
        }
        ImageName::Layout { path, name } => {
            let layout = Layout::open(&path)?;
            let name = layout.manifest_name(name.as_ref())?;
            (Arc::new(layout), name)
        }
        _ => bail!("{image} is neither in a registry nor in a layout of this host"),
    };
    let image = load_lazy_image(&repository, &name, &Platform::host(), &Limits::default()).await?;
    let layers = image.layers.into_iter();
    let largest = layers.max_by_key(|layer| layer.blob.stored_len());
    largest.context("the image has no layer")
}
