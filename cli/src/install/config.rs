//! Which files of containerd's configuration change, and how.
//!
//! Where the configuration imports a directory of files, one of our own goes there. A plugin's table that the main file has
//! already is extended in place even so, because containerd 1.x lets the table of an imported file replace it. Without
//! such a directory everything goes into the main file.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use toml_edit::{DocumentMut, Item};

use super::files::{self, FileChange, HEADER};
use crate::containerd::settings::{self, Part, Settings};

/// Name of our file in a directory of imported files.
const DROP_IN: &str = "sluice.toml";
/// How a line of `imports` ends that names a directory.
const ALL_FILES: &str = "*.toml";
/// The version of a configuration that does not say.
const UNSAID_VERSION: i64 = 1;

/// The changes by which containerd learns of `settings`, whose `config_version` is that of a new file.
///
/// # Errors
/// When the configuration cannot be read, is no TOML, or has no place for a setting.
pub(super) fn plan(path: &Path, mut settings: Settings) -> anyhow::Result<Vec<FileChange>> {
    let text = files::load(path)?;
    let is_new = text.is_none();
    let mut main = parse(path, &text.unwrap_or_default())?;
    if main.is_empty() {
        main.insert("version", toml_edit::value(settings.config_version));
    }
    settings.config_version = version(&main);
    let directory = drop_in_directory(&main);
    let goes_into_main = |part: &Part| {
        let there = match settings.plugin_of(*part) {
            Some(plugin) => settings::get(main.as_table(), &["plugins", plugin]),
            None => settings::get(main.as_table(), &["proxy_plugins", settings::NAME]),
        };
        directory.is_none() || there.is_some()
    };
    let (in_main, apart): (Vec<_>, Vec<_>) = settings.parts().into_iter().partition(goes_into_main);
    let told = |file: &Path| format!("extending {}", file.display());
    settings.apply(&mut main, &in_main).with_context(|| told(path))?;
    let header = if is_new { HEADER } else { "" };
    let mut changes = vec![FileChange::write(path, format!("{header}{main}"))?];
    if let Some(directory) = directory
        && !apart.is_empty()
    {
        let drop_in = directory.join(DROP_IN);
        let mut document = DocumentMut::new();
        document.insert("version", toml_edit::value(settings.config_version));
        settings
            .apply(&mut document, &apart)
            .with_context(|| told(&drop_in))?;
        changes.push(FileChange::write(&drop_in, format!("{HEADER}{document}"))?);
    }
    Ok(changes)
}

/// The changes that take back what [`plan`] did.
///
/// # Errors
/// When the configuration cannot be read or is no TOML.
pub(super) fn plan_removal(path: &Path, mut settings: Settings) -> anyhow::Result<Vec<FileChange>> {
    let Some(text) = files::load(path)? else {
        return Ok(Vec::new());
    };
    let mut main = parse(path, &text)?;
    let original = parse(path, &files::load_backup(path)?.unwrap_or_default())?;
    let mut changes = Vec::new();
    if let Some(directory) = drop_in_directory(&main) {
        changes.push(FileChange::take_back(&directory.join(DROP_IN))?);
    }
    settings.config_version = version(&main);
    // They may have been given other names than the usual ones.
    for (key, value) in [
        (&["address"][..], &mut settings.socket),
        (&["exports", "root"], &mut settings.cache),
    ] {
        let place = [&["proxy_plugins", settings::NAME], key].concat();
        if let Some(there) = settings::get(main.as_table(), &place).and_then(Item::as_str) {
            there.clone_into(value);
        }
    }
    settings.retract(&mut main, &original);
    let only_version = main.iter().all(|(key, _)| key == "version");
    let is_ours = text.starts_with(HEADER) && only_version;
    if only_version && original.get("version").is_none() {
        main.remove("version");
    }
    let rest = (!is_ours).then(|| main.to_string());
    changes.push(FileChange::shrink(path, rest)?);
    Ok(changes)
}

fn parse(path: &Path, text: &str) -> anyhow::Result<DocumentMut> {
    text.parse()
        .with_context(|| format!("{} is not valid TOML", path.display()))
}

fn version(main: &DocumentMut) -> i64 {
    main.get("version")
        .and_then(Item::as_integer)
        .unwrap_or(UNSAID_VERSION)
}

/// A directory from which every file is imported. Where a relative one is, containerd decides by its working directory.
fn drop_in_directory(main: &DocumentMut) -> Option<PathBuf> {
    let imports = main.get("imports")?.as_array()?;
    let mut directories = imports
        .iter()
        .filter_map(|import| Some(PathBuf::from(import.as_str()?.strip_suffix(ALL_FILES)?)));
    directories.find(|directory| directory.is_absolute() && directory.is_dir())
}
