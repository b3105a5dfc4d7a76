//! Making containerd and systemd of this host know Sluice.
//!
//! [`plan`] says which files would hold what, `make` of each change does it: [`config`] knows containerd's files, [`mod@unit`] the
//! service, [`files`] how a file is changed so that it can be taken back. Running it again changes nothing, and other people's
//! text stays.

mod config;
mod files;
mod unit;

use std::path::Path;

use anyhow::Context as _;
use sluice_storage::Platform;

pub(crate) use self::files::{Action, FileChange};
pub(crate) use self::unit::NAME as UNIT;
use crate::args::InstallArgs;
use crate::containerd::release::Release;
use crate::containerd::settings::Settings;

/// The defaults of `sluice snapshotter`, which its unit does not repeat.
const DEFAULT_SOCKET: &str = "/run/sluice/snapshotter.sock";
const DEFAULT_CACHE: &str = "/var/cache/sluice";
/// Where containerd serves CRI.
const CRI_SOCKET: &str = "/run/containerd/containerd.sock";
/// A release that has every setting, which is what has to be looked for when they are taken back.
const EVERY_SETTING: Release = Release { major: 2, minor: 0 };

/// The files that change, in the order in which they have to.
///
/// # Errors
/// When containerd's version or configuration cannot be read or do not fit.
pub(crate) fn plan(args: &InstallArgs) -> anyhow::Result<Vec<FileChange>> {
    let unit_path = args.unit_dir.join(UNIT);
    if args.uninstall {
        let settings = settings(args, EVERY_SETTING)?;
        let mut changes = config::plan_removal(&args.containerd_config, settings)?;
        if !args.no_unit {
            changes.push(FileChange::take_back(&unit_path)?);
        }
        return Ok(changes);
    }
    let release = match args.containerd_version {
        Some(release) => release,
        None => Release::of_program(&args.containerd)?,
    };
    let mut changes = Vec::new();
    if !args.no_unit {
        let program = std::env::current_exe().context("finding this program")?;
        changes.push(FileChange::write(
            &unit_path,
            unit::text(&program, &service_options(args)?)?,
        )?);
    }
    changes.extend(config::plan(&args.containerd_config, settings(args, release)?)?);
    Ok(changes)
}

fn settings(args: &InstallArgs, release: Release) -> anyhow::Result<Settings> {
    Ok(Settings {
        release,
        config_version: release.config_version(),
        socket: plain(&args.socket)?,
        cache: plain(&args.cache)?,
        platform: Platform::host().to_string(),
        cri: args.cri || args.uninstall,
    })
}

fn service_options(args: &InstallArgs) -> anyhow::Result<Vec<String>> {
    let mut options = Vec::new();
    let mut add = |name: &str, value: String| options.extend([name.to_owned(), value]);
    if args.socket != Path::new(DEFAULT_SOCKET) {
        add("--socket", plain(&args.socket)?);
    }
    if args.cache != Path::new(DEFAULT_CACHE) {
        add("--cache", plain(&args.cache)?);
    }
    if args.cri {
        add("--cri-proxy", CRI_SOCKET.to_owned());
    }
    Ok(options)
}

fn plain(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    anyhow::ensure!(path.is_absolute(), "the path {text} has to be absolute");
    Ok(text.to_owned())
}
