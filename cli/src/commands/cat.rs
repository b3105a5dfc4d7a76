//! `sluice cat`.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use futures_util::TryStreamExt as _;
use sluice_converter::{ImageBrowser, Source};
use sluice_format::Limits;

use crate::args::CatArgs;
use crate::wiring;

pub(super) fn run(args: &CatArgs) -> anyhow::Result<()> {
    wiring::run(work(args))
}

async fn work(args: &CatArgs) -> anyhow::Result<()> {
    let registries = wiring::registries(&args.look.common);
    let source = Source::open(&args.look.source, &registries).await?;
    let platform = wiring::platform(args.look.platform.as_deref())?;
    let browser = ImageBrowser::open(&source, &platform, &Limits::default()).await?;
    let mut bytes = browser.cat(args.path.as_os_str().as_bytes())?;
    while let Some(piece) = bytes.try_next().await? {
        std::io::stdout().write_all(&piece)?;
    }
    Ok(std::io::stdout().flush()?)
}
