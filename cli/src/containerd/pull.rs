//! Pulling an image into containerd with everything that a snapshotter needs to know.
//!
//! ```text
//! lease ► config, manifest, image index into the content store ┬► name
//!       ► layer by layer                                       ┘
//! ```
//!
//! For each layer, lowest first, the snapshotter is asked with labels that tell image, manifest and layer. One that serves
//! the layer has it already, and nothing of it is fetched. Otherwise the blob goes into the content store and containerd's
//! diff service unpacks it, as in any pull. Labels refer from each document to what belongs to it, as those of containerd's own
//! pull do, so that its garbage collector keeps all of it as long as the image has a name.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use sluice_format::{BlobDigest, ChainId, DiffId, Digest, Limits, artifact};
use sluice_snapshotter::labels::{DIFF_ID, IMAGE_REFERENCE, LAYER_DIGEST, MANIFEST_DIGEST, TARGET};
use sluice_storage::documents::{ImageConfig, ImageIndex, ImageManifest};
use sluice_storage::{Descriptor, Manifest, ManifestName, Platform, Repository, stream_whole};

use super::client::{Client, Labels};
use super::content::CONTENT_REFERENCE;
use super::lease::{nanoseconds, under_lease};

/// Where containerd looks for the snapshot that a config belongs to.
const SNAPSHOT_REFERENCE: &str = "containerd.io/gc.ref.snapshot.";

/// What to pull, from where and into what.
#[derive(Debug)]
pub(crate) struct Pull {
    /// The image as containerd is to name it.
    pub(crate) image: String,
    pub(crate) repository: Arc<dyn Repository>,
    pub(crate) name: ManifestName,
    pub(crate) platform: Platform,
    pub(crate) snapshotter: String,
}

/// What was pulled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pulled {
    /// Of the manifest.
    pub(crate) digest: Digest,
    pub(crate) layers: usize,
    /// Layers that are served; the others were unpacked or were there.
    pub(crate) served: usize,
    /// Layers that were fetched and unpacked.
    pub(crate) unpacked: usize,
}

/// The documents of an image.
#[derive(Debug)]
struct Documents {
    /// The image index, if the name means one.
    index: Option<Manifest>,
    manifest: Manifest,
    layers: Vec<Descriptor>,
    config: Descriptor,
    config_bytes: Bytes,
    diff_ids: Vec<DiffId>,
}

impl Pull {
    /// Pulls.
    ///
    /// # Errors
    /// What hinders reading the image, or containerd's refusals. What is half done is collected as garbage.
    pub(crate) async fn run(&self, socket: &Path, namespace: &str) -> anyhow::Result<Pulled> {
        let documents = self.documents().await?;
        let client = Client::connect(socket, namespace).await?;
        under_lease(&client, "pull", async |leased| {
            self.pull_under_lease(leased, &documents).await
        })
        .await
    }

    async fn documents(&self) -> anyhow::Result<Documents> {
        let limits = Limits::default();
        let mut manifest = self.repository.fetch_manifest(&self.name).await?;
        let mut index = None;
        if artifact::is_image_index(&manifest.media_type) {
            let entries = ImageIndex::parse(&manifest.bytes, &limits)?;
            let chosen = ManifestName::Digest(self.platform.choose(&entries)?.descriptor.digest.0);
            let of_platform = self.repository.fetch_manifest(&chosen).await?;
            index = Some(std::mem::replace(&mut manifest, of_platform));
        }
        let parsed = ImageManifest::parse(&manifest.bytes, &limits)?;
        let config_bytes = self
            .repository
            .fetch_blob(&parsed.config, limits.manifest_len)
            .await?;
        let diff_ids = ImageConfig::parse(&config_bytes, &limits)?.diff_ids;
        ensure!(
            diff_ids.len() == parsed.layers.len(),
            "{} has {} layers, but its config lists {} DiffIDs",
            self.image,
            parsed.layers.len(),
            diff_ids.len()
        );
        Ok(Documents {
            index,
            manifest,
            layers: parsed.layers,
            config: parsed.config,
            config_bytes,
            diff_ids,
        })
    }

    async fn pull_under_lease(&self, client: &Client, documents: &Documents) -> anyhow::Result<Pulled> {
        let put = async {
            let put = self.put_documents(client, documents).await;
            put.context("putting documents into containerd's content store")
        };
        // The snapshotter reads the image's documents at the registry while containerd's content store waits for the disk.
        let ((), pulled) = tokio::try_join!(put, self.pull_layers(client, documents))?;
        let target = described(documents.index.as_ref().unwrap_or(&documents.manifest));
        client
            .name_image(&self.image, &target)
            .await
            .context("naming the image in containerd")?;
        Ok(pulled)
    }

    /// Pulls the layers, lowest first.
    async fn pull_layers(&self, client: &Client, documents: &Documents) -> anyhow::Result<Pulled> {
        let mut pulled = Pulled {
            digest: documents.manifest.digest,
            layers: documents.layers.len(),
            served: 0,
            unpacked: 0,
        };
        let mut chain: Option<ChainId> = None;
        for (layer, diff_id) in documents.layers.iter().zip(&documents.diff_ids) {
            let target = ChainId::extend(chain, *diff_id);
            let parent = chain.map_or_else(String::new, |chain| chain.to_string());
            let asked = LayerToPull {
                layer,
                diff_id: *diff_id,
                target: target.to_string(),
                parent,
                manifest: documents.manifest.digest,
            };
            let outcome = self.pull_layer(client, &asked).await;
            match outcome.with_context(|| format!("layer {} of {}", layer.digest, self.image))? {
                Outcome::Served => pulled.served += 1,
                Outcome::Unpacked => pulled.unpacked += 1,
                Outcome::There => {}
            }
            chain = Some(target);
        }
        Ok(pulled)
    }

    async fn put_documents(&self, client: &Client, documents: &Documents) -> anyhow::Result<()> {
        let config_bytes = documents.config_bytes.clone();
        // The snapshot may come later: what a label names and is not there is passed over when garbage is collected.
        let top = ChainId::of_stack(&documents.diff_ids);
        let refer = |top: ChainId| {
            (
                format!("{SNAPSHOT_REFERENCE}{}", self.snapshotter),
                top.to_string(),
            )
        };
        let labels = top.map(refer).into_iter().collect();
        client
            .put_blob(&documents.config, whole(config_bytes), labels)
            .await?;
        let refer = |name: String, digest: String| (format!("{CONTENT_REFERENCE}{name}"), digest);
        let mut labels = Labels::from([refer("config".to_owned(), documents.config.digest.to_string())]);
        let layers = documents.layers.iter().enumerate();
        labels.extend(layers.map(|(at, layer)| refer(format!("l.{at}"), layer.digest.to_string())));
        let manifest = &documents.manifest;
        client
            .put_blob(&described(manifest), whole(manifest.bytes.clone()), labels)
            .await?;
        if let Some(index) = &documents.index {
            let labels = Labels::from([refer("m.0".to_owned(), manifest.digest.to_string())]);
            client
                .put_blob(&described(index), whole(index.bytes.clone()), labels)
                .await?;
        }
        Ok(())
    }

    async fn pull_layer(&self, client: &Client, asked: &LayerToPull<'_>) -> anyhow::Result<Outcome> {
        let snapshotter = &self.snapshotter;
        if client.has_snapshot(snapshotter, &asked.target).await? {
            return Ok(Outcome::There);
        }
        let key = format!("extract-{} {}", nanoseconds()?, asked.target);
        let labels = self.labels(asked);
        let Some(mounts) = client.prepare(snapshotter, &key, &asked.parent, labels).await? else {
            ensure!(
                client.has_snapshot(snapshotter, &asked.target).await?,
                "the snapshotter \"{snapshotter}\" says that it has the layer, but containerd does not find it"
            );
            return Ok(Outcome::Served);
        };
        let unpacked = async {
            let blob = self.repository.open_blob(asked.layer);
            let bytes = stream_whole(blob.as_ref()).await?;
            client.put_blob(asked.layer, bytes, Labels::new()).await?;
            let found = client.apply(asked.layer, mounts).await?;
            ensure!(
                found == asked.diff_id.to_string(),
                "its plain bytes have digest {found}, but the config says {}",
                asked.diff_id
            );
            Ok(client.commit(snapshotter, &key, &asked.target).await?)
        };
        if let Err(error) = unpacked.await {
            // Without it the snapshot stays until the lease is gone.
            let _ = client.remove(snapshotter, &key).await;
            return Err(error);
        }
        Ok(Outcome::Unpacked)
    }

    fn labels(&self, asked: &LayerToPull<'_>) -> Labels {
        let labels = [
            (TARGET, asked.target.clone()),
            (IMAGE_REFERENCE, self.image.clone()),
            (MANIFEST_DIGEST, asked.manifest.to_string()),
            (LAYER_DIGEST, asked.layer.digest.to_string()),
            (DIFF_ID, asked.diff_id.to_string()),
        ];
        labels
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}

#[derive(Debug)]
struct LayerToPull<'a> {
    layer: &'a Descriptor,
    diff_id: DiffId,
    target: String,
    parent: String,
    manifest: Digest,
}

enum Outcome {
    Served,
    Unpacked,
    There,
}

fn described(manifest: &Manifest) -> Descriptor {
    Descriptor {
        media_type: manifest.media_type.clone(),
        digest: BlobDigest(manifest.digest),
        size: manifest.bytes.len() as u64,
        annotations: Default::default(),
    }
}

fn whole(bytes: Bytes) -> sluice_storage::ByteStream {
    stream::once(async move { Ok(bytes) }.boxed()).boxed()
}
