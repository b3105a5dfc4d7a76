//! `sluice profile push` and `pull`.

use anyhow::Context as _;
use serde_json::json;
use sluice_format::{Limits, Profile};
use sluice_storage::profile::{fetch_profile, push_profile};
use sluice_storage::{ImageName, Repository, ResolvedImage};

use super::{load, resolve, show, store};
use crate::args::profile::{ProfileImageArgs, ProfileStoreArgs};
use crate::{output, wiring};

pub(super) fn push(image: &ImageName, args: &ProfileStoreArgs) -> anyhow::Result<()> {
    let store = store(args.cache.as_deref())?;
    let (resolved, profile, artifact) = wiring::run(async {
        let (repository, resolved) = resolve(image, args).await?;
        let profile = load(&store, &resolved.image_id(), &image.to_string())?;
        let subject = resolved.descriptor();
        let artifact = push_profile(repository.as_ref(), &subject, &profile, &wiring::now()).await?;
        Ok((resolved, profile, artifact))
    })?;
    if args.common.json {
        return output::json(&json!({
            "image": image.to_string(),
            "image_id": resolved.image_id().to_string(),
            "manifest_digest": resolved.manifest.digest.to_string(),
            "artifact_digest": artifact.to_string(),
            "runs": profile.runs(),
        }));
    }
    output::line(format!(
        "the profile of {image} ({}) is attached to {} as {artifact}",
        show::extent(&profile),
        resolved.manifest.digest
    ))
}

pub(super) fn pull(args: &ProfileImageArgs) -> anyhow::Result<()> {
    let store = store(args.store.cache.as_deref())?;
    let (resolved, profile) = wiring::run(async {
        let (repository, resolved) = resolve(&args.image, &args.store).await?;
        let profile = fetch(repository.as_ref(), &resolved, &args.image.to_string()).await?;
        Ok((resolved, profile))
    })?;
    let replaced = store.load(&resolved.image_id());
    store.save(&profile)?;
    if args.store.common.json {
        return output::json(&json!({
            "image": args.image.to_string(),
            "image_id": resolved.image_id().to_string(),
            "manifest_digest": resolved.manifest.digest.to_string(),
            "runs": profile.runs(),
            "replaced_runs": replaced.map(|replaced| replaced.runs()),
        }));
    }
    let replaced = replaced.map_or(String::new(), |replaced| {
        format!("; it replaces one ({})", show::extent(&replaced))
    });
    output::line(format!(
        "{} has a profile now: {}{replaced}",
        args.image,
        show::extent(&profile)
    ))
}

async fn fetch(
    repository: &dyn Repository,
    resolved: &ResolvedImage,
    shown: &str,
) -> anyhow::Result<Profile> {
    let (subject, image_id) = (&resolved.manifest.digest, resolved.image_id());
    let fetched = fetch_profile(repository, subject, &image_id, &Limits::default()).await?;
    fetched.with_context(|| {
        format!(
            "no profile is attached to {shown}: push one with `sluice profile push` from a host where it was started"
        )
    })
}
