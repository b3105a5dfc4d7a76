//! `sluice profile`: the start-up profiles of this host, and their way to and from others.

mod exchange;
mod record;
mod show;
mod stored;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use sluice_format::{Digest, Limits, Profile};
use sluice_storage::{Cache, ImageName, ProfileStore, ResolvedImage, WritableRepository, resolve_image};

use crate::args::profile::{ProfileArgs, ProfileCommand, ProfileName, ProfileStoreArgs};
use crate::wiring;

pub(super) fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    match &args.command {
        ProfileCommand::Record(args) => record::run(args),
        ProfileCommand::Show(args) => show::run(args),
        ProfileCommand::Export(args) => stored::export(args),
        ProfileCommand::Import(args) => stored::import(args),
        ProfileCommand::Push(args) => exchange::push(&args.image, &args.store),
        ProfileCommand::Pull(args) => exchange::pull(args),
        ProfileCommand::Ls(args) => stored::list(args),
        ProfileCommand::Rm(args) => stored::remove(args),
    }
}

/// The profiles in the cache directory that was asked for, or the usual one.
fn store(cache: Option<&Path>) -> anyhow::Result<ProfileStore> {
    let dir = cache.map_or_else(Cache::default_dir, |dir| Ok(dir.to_owned()))?;
    Ok(ProfileStore::new(&dir))
}

/// Where an image is, and its manifest.
async fn resolve(
    image: &ImageName,
    args: &ProfileStoreArgs,
) -> anyhow::Result<(Arc<dyn WritableRepository>, ResolvedImage)> {
    let registries = wiring::registries(&args.common);
    let platform = wiring::platform(args.platform.as_deref())?;
    let (repository, name) = wiring::writable_repository(image, &registries)?;
    let resolved = resolve_image(repository.as_ref(), &name, &platform, &Limits::default()).await?;
    Ok((repository, resolved))
}

/// The image ID behind a name. Asks a repository only when the name is an image.
fn image_id(name: &ProfileName, args: &ProfileStoreArgs) -> anyhow::Result<Digest> {
    match name {
        ProfileName::Id(image_id) => Ok(*image_id),
        ProfileName::Image(image) => wiring::run(async { Ok(resolve(image, args).await?.1.image_id()) }),
    }
}

/// The profile of an image on this host.
fn load(store: &ProfileStore, image_id: &Digest, shown: &str) -> anyhow::Result<Profile> {
    store.load(image_id).with_context(|| {
        format!(
            "there is no profile for {shown} on this host yet: record a start with `sluice profile record`, mount it \
             once and let it start, or take one with `sluice profile pull`"
        )
    })
}
