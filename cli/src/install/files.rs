//! Changes of files: planned first, so that they can be printed instead of made.
//!
//! A file that is ours as a whole begins with [`HEADER`]. Whatever else stands in the way of a change is kept beside it under
//! the name with [`BACKUP`] at its end, once: the copy is what was there before the first change, and what comes back.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

/// First line of a file that Sluice wrote.
pub(crate) const HEADER: &str =
    "# Written by \"sluice install\"; \"sluice install --uninstall\" takes it away.\n";
/// Ending of the name of the copy of what was there before.
const BACKUP: &str = ".sluice-backup";
/// Ending of the name of a file that is being written.
const UNFINISHED: &str = ".sluice-new";

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// There was none.
    Create,
    /// Its text changes.
    Change,
    /// Nothing has to be done.
    Keep,
    /// It goes away.
    Remove,
}

/// One file and what becomes of it.
#[derive(Clone, Debug)]
pub(crate) struct FileChange {
    pub(crate) path: PathBuf,
    pub(crate) action: Action,
    /// What it will hold; empty when it goes away.
    pub(crate) text: String,
    /// Whether what is there is copied first.
    keep_backup: bool,
    /// Whether the copy goes away with this.
    end_backup: bool,
}

impl FileChange {
    /// A file with this text.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub(crate) fn write(path: &Path, text: String) -> anyhow::Result<Self> {
        let there = load(path)?;
        let action = match &there {
            None => Action::Create,
            Some(there) if *there == text => Action::Keep,
            Some(_) => Action::Change,
        };
        let is_foreign = there.is_some_and(|there| !there.starts_with(HEADER));
        Ok(Self {
            keep_backup: action == Action::Change && is_foreign && !backup_of(path).exists(),
            end_backup: false,
            path: path.to_owned(),
            action,
            text,
        })
    }

    /// A file that is ours as a whole and goes away; what it replaced comes back. Leaves one that is not ours.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub(crate) fn take_back(path: &Path) -> anyhow::Result<Self> {
        let is_ours = load(path)?.is_some_and(|there| there.starts_with(HEADER));
        let before = load(&backup_of(path))?;
        let action = match (is_ours, &before) {
            (false, _) => Action::Keep,
            (true, None) => Action::Remove,
            (true, Some(_)) => Action::Change,
        };
        Ok(Self {
            path: path.to_owned(),
            action,
            end_backup: is_ours && before.is_some(),
            text: before.unwrap_or_default(),
            keep_backup: false,
        })
    }

    /// As [`FileChange::write`] with what is left of the file without our part, or nothing. The copy is not needed any more.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub(crate) fn shrink(path: &Path, text: Option<String>) -> anyhow::Result<Self> {
        let mut change = match text {
            Some(text) => Self::write(path, text)?,
            None => Self {
                path: path.to_owned(),
                action: Action::Remove,
                text: String::new(),
                keep_backup: false,
                end_backup: false,
            },
        };
        change.keep_backup = false;
        change.end_backup = backup_of(path).exists();
        Ok(change)
    }

    /// Where what is there now will be found.
    pub(crate) fn backup(&self) -> Option<PathBuf> {
        self.keep_backup.then(|| backup_of(&self.path))
    }

    /// Makes the change.
    ///
    /// # Errors
    /// When a file cannot be written. A file has its old text or the new one, never half of it.
    pub(crate) fn make(&self) -> anyhow::Result<()> {
        if let Some(backup) = self.backup() {
            fs::copy(&self.path, &backup).with_context(|| format!("writing {}", backup.display()))?;
        }
        match self.action {
            Action::Keep => {}
            Action::Remove => {
                fs::remove_file(&self.path).with_context(|| format!("removing {}", self.path.display()))?
            }
            Action::Create | Action::Change => {
                replace(&self.path, &self.text)
                    .with_context(|| format!("writing {}", self.path.display()))?;
            }
        }
        if self.end_backup {
            let backup = backup_of(&self.path);
            fs::remove_file(&backup).with_context(|| format!("removing {}", backup.display()))?;
        }
        Ok(())
    }
}

/// The text of a file. `None` when there is none.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn load(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// The text that a file had before the first change. `None` when there is no copy.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn load_backup(path: &Path) -> anyhow::Result<Option<String>> {
    load(&backup_of(path))
}

fn backup_of(path: &Path) -> PathBuf {
    with_ending(path, BACKUP)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Replaces a file by rename; a link is followed, and permissions stay.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let unfinished = with_ending(&path, UNFINISHED);
    let written = write_new(&unfinished, &path, text).and_then(|()| fs::rename(&unfinished, &path));
    if written.is_err() {
        // The error that is returned says more than this one would.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

fn write_new(unfinished: &Path, like: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create(unfinished)?;
    file.write_all(text.as_bytes())?;
    if let Ok(metadata) = fs::metadata(like) {
        file.set_permissions(metadata.permissions())?;
    }
    file.sync_all()
}
