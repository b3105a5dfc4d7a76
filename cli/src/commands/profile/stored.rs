//! `sluice profile ls`, `rm`, `export` and `import`.

use std::fs::File;
use std::io::{Read, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::json;
use sluice_format::{Limits, Profile};

use super::{image_id, load, store};
use crate::args::profile::{ProfileExportArgs, ProfileImportArgs, ProfileLsArgs, ProfileOfArgs};
use crate::output;

/// Path that means standard input or output.
const STANDARD: &str = "-";

pub(super) fn list(args: &ProfileLsArgs) -> anyhow::Result<()> {
    let listed = store(args.cache.as_deref())?.list()?;
    for stored in listed {
        let profile = &stored.profile;
        if args.json {
            output::json(&json!({
                "image_id": profile.image_id().to_string(),
                "runs": profile.runs(),
                "ranges": profile.demand_count(),
                "plain_len": profile.plain_len(),
                "stored_len": stored.stored_len,
                "file": stored.path,
            }))?;
        } else {
            output::line(format!(
                "{}  {}, file {}",
                profile.image_id(),
                super::show::extent(profile),
                output::bytes(stored.stored_len)
            ))?;
        }
    }
    Ok(())
}

pub(super) fn remove(args: &ProfileOfArgs) -> anyhow::Result<()> {
    let image_id = image_id(&args.image, &args.store)?;
    if !store(args.store.cache.as_deref())?.remove(&image_id)? {
        bail!("there is no profile for {} on this host", args.image);
    }
    if args.store.common.json {
        output::json(&json!({ "image_id": image_id.to_string(), "removed": true }))
    } else {
        output::line(format!("the profile of {} is removed", args.image))
    }
}

pub(super) fn export(args: &ProfileExportArgs) -> anyhow::Result<()> {
    let image_id = image_id(&args.image, &args.store)?;
    let profile = load(
        &store(args.store.cache.as_deref())?,
        &image_id,
        &args.image.to_string(),
    )?;
    let bytes = profile.encode()?;
    if args.file == Path::new(STANDARD) {
        std::io::stdout().write_all(&bytes)?;
        return Ok(std::io::stdout().flush()?);
    }
    std::fs::write(&args.file, &bytes).with_context(|| format!("writing {}", args.file.display()))?;
    if args.store.common.json {
        output::json(
            &json!({ "image_id": image_id.to_string(), "file": args.file, "stored_len": bytes.len() }),
        )
    } else {
        output::line(format!(
            "{} is the profile of {}: {}",
            args.file.display(),
            args.image,
            super::show::extent(&profile)
        ))
    }
}

pub(super) fn import(args: &ProfileImportArgs) -> anyhow::Result<()> {
    let shown = args.file.display();
    let profile = read(&args.file).with_context(|| format!("{shown} cannot be taken as a profile"))?;
    store(args.cache.as_deref())?.save(&profile)?;
    if args.json {
        output::json(&json!({ "image_id": profile.image_id().to_string(), "runs": profile.runs() }))
    } else {
        output::line(format!(
            "image {} has a profile now: {}",
            profile.image_id(),
            super::show::extent(&profile)
        ))
    }
}

fn read(path: &Path) -> anyhow::Result<Profile> {
    let input: Box<dyn Read> = match path == Path::new(STANDARD) {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path)?),
    };
    let limits = Limits::default();
    let mut bytes = Vec::new();
    // One byte more than allowed shows that there are too many.
    input
        .take(limits.profile_stored_len + 1)
        .read_to_end(&mut bytes)?;
    Ok(Profile::parse(&bytes, &limits)?)
}
