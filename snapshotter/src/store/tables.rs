//! The tables, and what can be read from them inside a transaction.
//!
//! | table | key | value |
//! |---|---|---|
//! | `snapshots` | key or name | [`Record`] as JSON |
//! | `children` | parent's name, child's key or name | — |
//! | `remote` | target, parent's name | name of the committed snapshot that a remote layer got |
//! | `garbage` | id | [`Garbage`] as JSON: what a removed snapshot left to be cleaned up |
//! | `format` | `version` | [`VERSION`] |
//!
//! `children` has an entry for every snapshot, with an empty parent for those without one: it answers whether a snapshot
//! has children and lists them without looking at any other.

use redb::{ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::record::{Kind, Named, Record};
use crate::images::RemoteLayer;
use crate::{Error, ErrorKind};

pub(super) const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
pub(super) const CHILDREN: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("children");
pub(super) const REMOTE: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("remote");
pub(super) const GARBAGE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("garbage");
pub(super) const FORMAT: TableDefinition<'_, &str, u64> = TableDefinition::new("format");

/// Version of the tables. A file with another one is refused.
pub(super) const VERSION: u64 = 1;
/// Its key.
pub(super) const VERSION_KEY: &str = "version";

/// Most snapshots in a stack. overlayfs stacks 500 at most; a longer chain of parents is a damaged table.
const CHAIN_MAX: usize = 1000;

/// What a removed snapshot leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Garbage {
    /// A remote layer, which the engine has to be told; otherwise there is a directory.
    pub(crate) remote: Option<RemoteLayer>,
}

/// A failure of the database.
pub(super) fn damaged(error: impl Into<redb::Error>) -> Error {
    Error::internal("the records cannot be read or written", error.into())
}

pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::internal("a record cannot be written", error))
}

pub(super) fn decode<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, Error> {
    let what = || format!("the record of \"{name}\" is damaged");
    serde_json::from_slice(bytes).map_err(|error| Error::internal(what(), error))
}

/// The record of `name`.
pub(super) fn find(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<Record>, Error> {
    let bytes = table.get(name).map_err(damaged)?;
    bytes.map(|bytes| decode(name, bytes.value())).transpose()
}

/// The record of `name`, which has to be there.
pub(super) fn load(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Record, Error> {
    find(table, name)?.ok_or_else(|| Error::no_snapshot(name))
}

/// The record of a snapshot that another one is to lie on.
pub(super) fn load_parent(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
    refusal: ErrorKind,
) -> Result<Record, Error> {
    let record = find(table, name)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("parent \"{name}\" does not exist")))?;
    if record.kind == Kind::Committed {
        Ok(record)
    } else {
        Err(Error::new(refusal, format!("parent \"{name}\" is not committed")))
    }
}

/// The stack that begins with `parent`, topmost first; empty when `parent` is.
pub(super) fn chain(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    parent: &str,
) -> Result<Vec<Named>, Error> {
    let mut chain = Vec::new();
    let mut name = parent.to_owned();
    while !name.is_empty() {
        if chain.len() == CHAIN_MAX {
            let message = format!("more than {CHAIN_MAX} snapshots lie below \"{parent}\"");
            return Err(Error::new(ErrorKind::Internal, message));
        }
        let record = load_parent(table, &name, ErrorKind::InvalidArgument)?;
        let below = record.parent.clone();
        chain.push(Named { name, record });
        name = below;
    }
    Ok(chain)
}

/// Keys and names of the snapshots on `parent`.
pub(super) fn children(
    table: &impl ReadableTable<(&'static str, &'static str), ()>,
    parent: &str,
) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in table.range((parent, "")..).map_err(damaged)? {
        let (key, ()) = entry.map(|(key, value)| (key, value.value())).map_err(damaged)?;
        let (of, name) = key.value();
        if of != parent {
            break;
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Whether any snapshot lies on `parent`.
pub(super) fn has_children(
    table: &impl ReadableTable<(&'static str, &'static str), ()>,
    parent: &str,
) -> Result<bool, Error> {
    let first = table.range((parent, "")..).map_err(damaged)?.next().transpose();
    Ok(first
        .map_err(damaged)?
        .is_some_and(|(key, _)| key.value().0 == parent))
}
