//! What has to stand in containerd's configuration, put into a TOML document and taken out of it again.
//!
//! | setting | needed | without it |
//! |---|---|---|
//! | `proxy_plugins.sluice` | always | containerd does not know the snapshotter |
//! | its `exports.enable_remote_snapshot_annotations` | 2.x | the transfer service does not tell what is pulled |
//! | its `exports.root` | 2.x | kubelet measures the wrong file system |
//! | `unpack_config` of the transfer service | 2.x | the transfer service sends no labels, and says so in a debug line only |
//! | `snapshotter`, `disable_snapshot_annotations` of the CRI plugin | for Kubernetes | pods use overlayfs, or pull everything |
//!
//! Everything else in a document stays as it is, comments included. The CRI plugin has another name in containerd 2.x, which is
//! used in every file for it: 2.1 reads the old name in files of version 2 for networks and runtimes, but not for these two
//! settings. Version 1 of the format names plugins otherwise altogether and is refused where a plugin has to be set.

use anyhow::{Context as _, bail, ensure};
use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use super::release::Release;

/// The name of the snapshotter in containerd.
pub(crate) const NAME: &str = "sluice";
/// containerd's own snapshotter, which the transfer service must go on to unpack for.
const OVERLAYFS: &str = "overlayfs";
/// The transfer service.
pub(crate) const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// The list of snapshotters that it unpacks for.
pub(crate) const UNPACK: &str = "unpack_config";
/// The CRI plugin of containerd 1.x.
pub(crate) const CRI_2: &str = "io.containerd.grpc.v1.cri";
/// The part of the CRI plugin of containerd 2.x that pulls.
pub(crate) const CRI_3: &str = "io.containerd.cri.v1.images";
/// Where each has its settings for images.
const CRI_2_TABLE: [&str; 3] = ["plugins", CRI_2, "containerd"];
const CRI_3_TABLE: [&str; 2] = ["plugins", CRI_3];

/// A part of the configuration that one file must have alone: containerd 1.x lets a plugin's table of a later file replace
/// that of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The proxy plugin.
    Proxy,
    /// The transfer service.
    Transfer,
    /// The CRI plugin.
    Cri,
}

/// What containerd is to be told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) release: Release,
    /// Version of the configuration format of the file.
    pub(crate) config_version: i64,
    pub(crate) socket: String,
    pub(crate) cache: String,
    /// `os/arch`; some releases take no wildcard.
    pub(crate) platform: String,
    /// Whether Kubernetes is to use the snapshotter.
    pub(crate) cri: bool,
}

type Path = Vec<&'static str>;

impl Settings {
    /// The parts that this release needs.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::Proxy];
        parts.extend(self.release.has_transfer_service().then_some(Part::Transfer));
        parts.extend(self.cri.then_some(Part::Cri));
        parts
    }

    /// The table of a plugin in which a part lies. `None` for the proxy plugin, which is a table of its own.
    pub(crate) fn plugin_of(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Proxy => None,
            Part::Transfer => Some(TRANSFER),
            Part::Cri if self.release.has_transfer_service() => Some(CRI_3),
            Part::Cri => Some(CRI_2),
        }
    }

    /// The plain values of a part.
    fn values(&self, part: Part) -> Vec<(Path, Value)> {
        let proxy = |rest: &[&'static str]| [&["proxy_plugins", NAME], rest].concat();
        match part {
            Part::Proxy => {
                let mut values = vec![
                    (proxy(&["type"]), "snapshot".into()),
                    (proxy(&["address"]), self.socket.as_str().into()),
                ];
                if self.release.has_transfer_service() {
                    let wants = proxy(&["exports", "enable_remote_snapshot_annotations"]);
                    values.push((wants, "true".into()));
                    values.push((proxy(&["exports", "root"]), self.cache.as_str().into()));
                }
                values
            }
            Part::Transfer => Vec::new(),
            Part::Cri if self.release.has_transfer_service() => cri_values(&CRI_3_TABLE),
            Part::Cri => cri_values(&CRI_2_TABLE),
        }
    }

    /// Puts parts into a document.
    ///
    /// # Errors
    /// When the document has something else where a table has to be, or is of a version whose plugins have other names.
    pub(crate) fn apply(&self, document: &mut DocumentMut, parts: &[Part]) -> anyhow::Result<()> {
        for part in parts {
            ensure!(
                self.plugin_of(*part).is_none() || self.config_version >= 2,
                "the configuration is of version {}; let \"containerd config migrate\" rewrite it first",
                self.config_version
            );
            for (path, value) in self.values(*part) {
                set(document, &path, value)?;
            }
            if *part == Part::Transfer {
                self.unpack_here(document)?;
            }
        }
        Ok(())
    }

    fn unpack_here(&self, document: &mut DocumentMut) -> anyhow::Result<()> {
        let transfer = table_at(document.as_table_mut(), &["plugins", TRANSFER])?;
        match transfer.entry(UNPACK).or_insert(Item::None) {
            slot @ Item::None => {
                let mut entries = ArrayOfTables::new();
                entries.push(self.unpack_entry(OVERLAYFS));
                entries.push(self.unpack_entry(NAME));
                *slot = Item::ArrayOfTables(entries);
            }
            Item::ArrayOfTables(entries) => {
                if !entries.iter().any(|entry| unpacks_for(entry, NAME)) {
                    entries.push(self.unpack_entry(NAME));
                }
            }
            Item::Value(Value::Array(entries)) => {
                let has = |value: &Value| {
                    value
                        .as_inline_table()
                        .is_some_and(|entry| unpacks_for(entry, NAME))
                };
                if !entries.iter().any(has) {
                    let entry = self.unpack_entry(NAME);
                    entries.push(InlineTable::from_iter(
                        entry
                            .iter()
                            .filter_map(|(key, item)| Some((key, item.as_value()?.clone()))),
                    ));
                }
            }
            _ => bail!("plugins.\"{TRANSFER}\".{UNPACK} is not a list of tables"),
        }
        Ok(())
    }

    fn unpack_entry(&self, snapshotter: &str) -> Table {
        let mut entry = Table::new();
        entry.insert("platform", self.platform.as_str().into());
        entry.insert("snapshotter", snapshotter.into());
        entry
    }

    /// Takes out of a document what [`Settings::apply`] put in and nobody changed since; what was there before comes back
    /// as it stands in `original`.
    pub(crate) fn retract(&self, document: &mut DocumentMut, original: &DocumentMut) {
        let cri = [&CRI_3_TABLE[..], &CRI_2_TABLE]
            .map(cri_values)
            .into_iter()
            .flatten();
        for (path, value) in self.values(Part::Proxy).into_iter().chain(cri) {
            restore(document.as_table_mut(), Some(original.as_table()), &path, &value);
        }
        let Some(plugins) = document.get_mut("plugins").and_then(Item::as_table_like_mut) else {
            return;
        };
        if let Some(transfer) = plugins.get_mut(TRANSFER).and_then(Item::as_table_like_mut) {
            let before = get(original.as_table(), &["plugins", TRANSFER, UNPACK]);
            self.unpack_as_before(transfer, before);
            remove_if_empty(
                plugins,
                TRANSFER,
                get(original.as_table(), &["plugins", TRANSFER]),
            );
        }
        remove_if_empty(document.as_table_mut(), "plugins", original.get("plugins"));
    }

    fn unpack_as_before(&self, transfer: &mut dyn TableLike, before: Option<&Item>) {
        let Some(now) = transfer.get_mut(UNPACK) else {
            return;
        };
        let had = before.is_some_and(|before| entries(before).any(|entry| unpacks_for(entry, NAME)));
        if had {
            return;
        }
        match now {
            Item::ArrayOfTables(list) => list.retain(|entry| !unpacks_for(entry, NAME)),
            Item::Value(Value::Array(list)) => list.retain(|value| {
                value
                    .as_inline_table()
                    .is_none_or(|entry| !unpacks_for(entry, NAME))
            }),
            _ => return,
        }
        let ours_only = entries(now).all(|entry| unpacks_for(entry, OVERLAYFS) && entry.len() == 2);
        if before.is_none() && ours_only {
            transfer.remove(UNPACK);
        }
    }
}

fn cri_values(table: &[&'static str]) -> Vec<(Path, Value)> {
    let key = |name| [table, &[name]].concat();
    vec![
        (key("snapshotter"), NAME.into()),
        (key("disable_snapshot_annotations"), false.into()),
    ]
}

/// Whether a list of the transfer service has an entry for a snapshotter.
pub(crate) fn unpacks_for(entry: &dyn TableLike, snapshotter: &str) -> bool {
    entry.get("snapshotter").and_then(Item::as_str) == Some(snapshotter)
}

/// The tables of a list, in either notation.
pub(crate) fn entries(list: &Item) -> Box<dyn Iterator<Item = &dyn TableLike> + '_> {
    match list {
        Item::ArrayOfTables(tables) => Box::new(tables.iter().map(|table| table as &dyn TableLike)),
        Item::Value(Value::Array(values)) => Box::new(
            values
                .iter()
                .filter_map(|value| Some(value.as_inline_table()? as &dyn TableLike)),
        ),
        _ => Box::new(std::iter::empty()),
    }
}

/// What stands at a path.
pub(crate) fn get<'a>(root: &'a Table, path: &[&str]) -> Option<&'a Item> {
    let (last, parents) = path.split_last()?;
    let mut table: &dyn TableLike = root;
    for name in parents {
        table = table.get(name)?.as_table_like()?;
    }
    table.get(last)
}

fn set(document: &mut DocumentMut, path: &[&'static str], value: Value) -> anyhow::Result<()> {
    let (last, parents) = path.split_last().context("a setting has no name")?;
    let table = table_at(document.as_table_mut(), parents)?;
    match table.get_mut(last) {
        Some(Item::Value(there)) => {
            if !is_same(there, &value) {
                // Keeps the comment behind it.
                let decor = there.decor().clone();
                *there = value;
                *there.decor_mut() = decor;
            }
        }
        Some(_) => bail!("{} is a table", path.join(".")),
        None => {
            table.insert(last, Item::Value(value));
        }
    }
    Ok(())
}

/// The table at a path, made where it is missing.
fn table_at<'a>(root: &'a mut Table, path: &[&str]) -> anyhow::Result<&'a mut dyn TableLike> {
    let mut table: &mut dyn TableLike = root;
    for (at, name) in path.iter().enumerate() {
        let fresh = || {
            let mut fresh = Table::new();
            // Only a table with values of its own gets a header.
            fresh.set_implicit(true);
            Item::Table(fresh)
        };
        let item = table.entry(name).or_insert_with(fresh);
        table = item
            .as_table_like_mut()
            .with_context(|| format!("{} is not a table", path[..=at].join(".")))?;
    }
    Ok(table)
}

/// Puts back what `original` has at `path`, if `table` has `ours` there; tables that get empty and were not there vanish.
fn restore(table: &mut dyn TableLike, original: Option<&dyn TableLike>, path: &[&str], ours: &Value) {
    let Some((name, rest)) = path.split_first() else {
        return;
    };
    let before = original.and_then(|original| original.get(name));
    if rest.is_empty() {
        let is_ours = table
            .get(name)
            .and_then(Item::as_value)
            .is_some_and(|value| is_same(value, ours));
        match (is_ours, before) {
            (true, Some(before)) => drop(table.insert(name, before.clone())),
            (true, None) => drop(table.remove(name)),
            (false, _) => {}
        }
        return;
    }
    if let Some(inner) = table.get_mut(name).and_then(Item::as_table_like_mut) {
        restore(inner, before.and_then(Item::as_table_like), rest, ours);
        remove_if_empty(table, name, before);
    }
}

fn remove_if_empty(table: &mut dyn TableLike, name: &str, before: Option<&Item>) {
    let is_empty = table
        .get(name)
        .and_then(Item::as_table_like)
        .is_some_and(TableLike::is_empty);
    if is_empty && before.is_none() {
        table.remove(name);
    }
}

fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::String(left), Value::String(right)) => left.value() == right.value(),
        (Value::Boolean(left), Value::Boolean(right)) => left.value() == right.value(),
        _ => false,
    }
}

#[cfg(test)]
#[path = "settings/tests.rs"]
mod tests;
