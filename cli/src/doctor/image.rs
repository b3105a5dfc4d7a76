//! One image in its registry: whether it can be had, whether by ranges, and whether it has layer indexes.

use sluice_format::{Limits, artifact};
use sluice_storage::documents::{ImageIndex, ImageManifest};
use sluice_storage::registry::RegistryClient;
use sluice_storage::{Descriptor, Error, ErrorKind, ManifestName, Reference, Repository};

use super::Finding;
use super::finding::told;
use crate::args::DoctorArgs;
use crate::{output, wiring};

/// A blob shorter than this may come whole in the packets of one round trip; nothing can be learnt from it. In bytes.
const TELLING_LEN: u64 = 128 << 10;

pub(super) async fn examine(args: &DoctorArgs, reference: &Reference) -> anyhow::Result<Vec<Finding>> {
    let registries = wiring::registries(&args.common);
    let repository = registries.repository(reference)?;
    let layers = match layers(args, repository.as_ref(), reference).await {
        Ok(layers) => layers,
        Err(error) => return Ok(vec![unavailable(reference, &error)]),
    };
    let had = Finding::good("image", format!("the manifest of {reference} can be fetched"));
    let ranges = ranges(&registries, repository.as_ref(), reference, &layers).await;
    Ok(vec![had, indexes(reference, &layers), ranges])
}

async fn layers(
    args: &DoctorArgs,
    repository: &dyn Repository,
    reference: &Reference,
) -> anyhow::Result<Vec<Descriptor>> {
    let limits = Limits::default();
    let mut manifest = repository.fetch_manifest(&reference.manifest_name()).await?;
    if artifact::is_image_index(&manifest.media_type) {
        let platform = wiring::platform(args.platform.as_deref())?;
        let chosen = platform
            .choose(&ImageIndex::parse(&manifest.bytes, &limits)?)?
            .descriptor
            .digest
            .0;
        manifest = repository.fetch_manifest(&ManifestName::Digest(chosen)).await?;
    }
    Ok(ImageManifest::parse(&manifest.bytes, &limits)?.layers)
}

fn unavailable(reference: &Reference, error: &anyhow::Error) -> Finding {
    let what = format!("{reference} cannot be fetched: {}", told(error.as_ref()));
    let kind = error.downcast_ref::<Error>().map(Error::kind);
    if kind == Some(ErrorKind::Denied) {
        return Finding::problem(
            "credentials",
            what,
            "sluice snapshotter fetches by itself and needs credentials of its own",
            "docker login as root, or --auth-file of sluice snapshotter; for Kubernetes --cri-proxy",
        );
    }
    Finding::problem(
        "image",
        what,
        "what is not on this host comes from there",
        "see that the name is right and that this host reaches the registry",
    )
}

fn indexes(reference: &Reference, layers: &[Descriptor]) -> Finding {
    let without = layers
        .iter()
        .filter(|layer| !layer.annotations.contains_key(artifact::INDEX_ANNOTATION))
        .count();
    if without == 0 {
        return Finding::good("indexes", format!("every layer of {reference} has an index"));
    }
    Finding::problem(
        "indexes",
        format!(
            "{without} of {} layers of {reference} have no index",
            layers.len()
        ),
        "such an image is fetched and unpacked whole",
        format!("sluice convert docker://{reference} docker://..., and use the result"),
    )
}

/// Asks for the last byte of the longest layer and looks how much comes.
async fn ranges(
    registries: &RegistryClient,
    repository: &dyn Repository,
    reference: &Reference,
    layers: &[Descriptor],
) -> Finding {
    let Some(longest) = layers
        .iter()
        .max_by_key(|layer| layer.size)
        .filter(|layer| layer.size >= TELLING_LEN)
    else {
        let what = format!("{reference} is too small to show whether its registry answers ranges");
        return Finding::good("ranges", what);
    };
    let before = registries.traffic().received_bytes;
    let read = repository
        .open_blob(longest)
        .read_range(longest.size - 1..longest.size)
        .await;
    let received = registries.traffic().received_bytes.saturating_sub(before);
    let ignores = |what: String| {
        Finding::problem(
            "ranges",
            what,
            "without ranges nothing can be read before a whole layer has come",
            format!(
                "use a registry or mirror that answers range requests for {}",
                reference.registry()
            ),
        )
    };
    match read {
        Ok(_) if received < longest.size / 2 => Finding::good(
            "ranges",
            format!("{} answers range requests", reference.registry()),
        ),
        Ok(_) => ignores(format!(
            "{} ignores ranges: one byte was asked for and {} came",
            reference.registry(),
            output::bytes(received)
        )),
        Err(error) if error.kind() == ErrorKind::Unsupported => ignores(told(&error)),
        Err(error) => unavailable(reference, &error.into()),
    }
}
