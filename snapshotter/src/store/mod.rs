//! The records of all snapshots, on disk.
//!
//! Every method is one transaction: it sees and leaves a consistent state, and what it wrote survives a power cut from the
//! moment it returns (two-phase commits). No transaction looks at more than one snapshot and its chain, so none gets
//! slower with the number of snapshots; only [`Store::list`] without a parent reads them all. Nothing here touches mounts,
//! directories or the network.
//!
//! Legal transitions; everything else is refused with the error that containerd expects:
//!
//! | from | to | by |
//! |---|---|---|
//! | — | active, view | [`Store::create`] |
//! | — | committed | [`Store::claim`]: a remote layer, never active |
//! | active | committed | [`Store::commit`], under another name |
//! | any without children | garbage | [`Store::remove`] |
//! | garbage | — | [`Store::clear_garbage`], after its files are gone |

mod record;
mod tables;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, WriteTransaction};

pub(crate) use record::without_empty;
pub use record::{Claim, Kind, Named, Record, Time};
pub(crate) use tables::Garbage;
use tables::{CHILDREN, FORMAT, GARBAGE, REMOTE, SNAPSHOTS, VERSION, VERSION_KEY, damaged, decode, encode};

use crate::filter::Filter;
use crate::labels::{LabelMap, TARGET};
use crate::mounts::Usage;
use crate::{Error, ErrorKind, blocking};

/// Bytes of the database kept in memory: some thousand records.
const CACHE_LEN: usize = 8 << 20;

/// A snapshot to be created.
#[derive(Clone, Debug)]
pub(crate) struct NewSnapshot {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) key: String,
    /// The parent as it was seen when the snapshot's directory was prepared.
    pub(crate) parent: Option<Named>,
    pub(crate) labels: LabelMap,
}

/// A remote layer to be recorded.
#[derive(Clone, Debug)]
pub(crate) struct NewClaim {
    pub(crate) id: u64,
    /// A name of ours for the committed snapshot.
    pub(crate) name: String,
    pub(crate) parent: String,
    pub(crate) labels: LabelMap,
    pub(crate) claim: Claim,
}

/// A snapshot to be committed.
#[derive(Clone, Debug)]
pub(crate) struct NewCommit {
    pub(crate) name: String,
    pub(crate) key: String,
    /// Puts a snapshot without a parent on this one; empty for none.
    pub(crate) parent: String,
    pub(crate) labels: LabelMap,
}

/// Which labels change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LabelMask {
    All,
    /// These keys only.
    Keys(Vec<String>),
}

/// The records.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    database: Arc<Database>,
}

impl Store {
    /// Opens the file, or makes it. After a crash it is repaired.
    ///
    /// # Errors
    /// When another process has it open, when it is damaged, or when another version of Sluice wrote it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let refuse = |error: redb::Error| Error::internal(format!("records in {}", path.display()), error);
        let database = Database::builder()
            .set_cache_size(CACHE_LEN)
            .create(path)
            .map_err(|error| refuse(error.into()))?;
        let store = Self {
            database: Arc::new(database),
        };
        store.write_now(|transaction| {
            transaction.open_table(SNAPSHOTS).map_err(damaged)?;
            transaction.open_table(CHILDREN).map_err(damaged)?;
            transaction.open_table(REMOTE).map_err(damaged)?;
            transaction.open_table(GARBAGE).map_err(damaged)?;
            let mut format = transaction.open_table(FORMAT).map_err(damaged)?;
            let found = format
                .get(VERSION_KEY)
                .map_err(damaged)?
                .map(|version| version.value());
            match found {
                Some(VERSION) => Ok(()),
                None => format.insert(VERSION_KEY, VERSION).map(|_| ()).map_err(damaged),
                Some(other) => {
                    let message = format!(
                        "records in {} have format version {other}; this program knows {VERSION}",
                        path.display()
                    );
                    Err(Error::new(ErrorKind::Internal, message))
                }
            }
        })?;
        Ok(store)
    }

    /// The record of `name`.
    pub(crate) async fn get(&self, name: &str) -> Result<Record, Error> {
        let name = name.to_owned();
        self.read(move |snapshots| tables::load(snapshots, &name)).await
    }

    /// The record of `name`, and the stack below it, topmost first.
    pub(crate) async fn get_with_chain(&self, name: &str) -> Result<(Record, Vec<Named>), Error> {
        let name = name.to_owned();
        self.read(move |snapshots| {
            let record = tables::load(snapshots, &name)?;
            let chain = tables::chain(snapshots, &record.parent)?;
            Ok((record, chain))
        })
        .await
    }

    /// The stack that begins with `parent`, topmost first; empty when `parent` is.
    pub(crate) async fn chain(&self, parent: &str) -> Result<Vec<Named>, Error> {
        let parent = parent.to_owned();
        self.read(move |snapshots| tables::chain(snapshots, &parent))
            .await
    }

    /// All snapshots that a filter means, in the order of their names.
    pub(crate) async fn list(&self, filter: Filter) -> Result<Vec<Named>, Error> {
        let database = Arc::clone(&self.database);
        blocking::run("list snapshots", move || {
            let transaction = database.begin_read().map_err(damaged)?;
            let snapshots = transaction.open_table(SNAPSHOTS).map_err(damaged)?;
            let mut found = Vec::new();
            let mut consider = |name: &str, record: Record| {
                let named = Named {
                    name: name.to_owned(),
                    record,
                };
                if filter.matches(&named) {
                    found.push(named);
                }
            };
            if let Some(parent) = filter.required("parent") {
                let children = transaction.open_table(CHILDREN).map_err(damaged)?;
                for name in tables::children(&children, parent)? {
                    consider(&name, tables::load(&snapshots, &name)?);
                }
                return Ok(found);
            }
            for entry in snapshots.iter().map_err(damaged)? {
                let (name, bytes) = entry.map_err(damaged)?;
                consider(name.value(), decode(name.value(), bytes.value())?);
            }
            Ok(found)
        })
        .await
    }

    /// Records an active snapshot or a view.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] for a key in use; [`ErrorKind::NotFound`] when the parent went away or was replaced
    /// since it was looked at.
    pub(crate) async fn create(&self, new: NewSnapshot) -> Result<Record, Error> {
        self.write(move |transaction| {
            let mut snapshots = transaction.open_table(SNAPSHOTS).map_err(damaged)?;
            refuse_taken(tables::find(&snapshots, &new.key)?.as_ref(), &new.key)?;
            let parent = new
                .parent
                .map(|seen| check_parent(&snapshots, seen))
                .transpose()?;
            let record = fresh_record(new.id, new.kind, parent.unwrap_or_default(), new.labels);
            let encoded = encode(&record)?;
            snapshots
                .insert(new.key.as_str(), encoded.as_slice())
                .map_err(damaged)?;
            link(transaction, &record.parent, &new.key)?;
            Ok(record)
        })
        .await
    }

    /// Whether a remote layer is recorded for `target` on `parent`.
    pub(crate) async fn is_claimed(&self, target: &str, parent: &str) -> Result<bool, Error> {
        let (target, parent) = (target.to_owned(), parent.to_owned());
        let database = Arc::clone(&self.database);
        blocking::run("look for a layer", move || {
            let transaction = database.begin_read().map_err(damaged)?;
            let remote = transaction.open_table(REMOTE).map_err(damaged)?;
            Ok(remote
                .get((target.as_str(), parent.as_str()))
                .map_err(damaged)?
                .is_some())
        })
        .await
    }

    /// Records a remote layer as committed. Does nothing when its target is recorded on that parent already.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and [`ErrorKind::InvalidArgument`] for a parent that cannot be one.
    pub(crate) async fn claim(&self, new: NewClaim) -> Result<(), Error> {
        self.write(move |transaction| {
            let mut remote = transaction.open_table(REMOTE).map_err(damaged)?;
            let pair = (new.claim.target.as_str(), new.parent.as_str());
            if remote.get(pair).map_err(damaged)?.is_some() {
                return Ok(());
            }
            let mut snapshots = transaction.open_table(SNAPSHOTS).map_err(damaged)?;
            if !new.parent.is_empty() {
                tables::load_parent(&snapshots, &new.parent, ErrorKind::InvalidArgument)?;
            }
            let mut record = fresh_record(new.id, Kind::Committed, new.parent.clone(), new.labels.clone());
            record.labels.insert(TARGET.to_owned(), new.claim.target.clone());
            record.remote = Some(new.claim.clone());
            let encoded = encode(&record)?;
            snapshots
                .insert(new.name.as_str(), encoded.as_slice())
                .map_err(damaged)?;
            remote.insert(pair, new.name.as_str()).map_err(damaged)?;
            link(transaction, &new.parent, &new.name)
        })
        .await
    }

    /// Turns an active snapshot into a committed one. Gives its record.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] for a name in use, [`ErrorKind::NotFound`] for an unknown key or parent,
    /// [`ErrorKind::FailedPrecondition`] when it is not active, [`ErrorKind::InvalidArgument`] when it has another parent.
    pub(crate) async fn commit(&self, new: NewCommit) -> Result<Record, Error> {
        self.write(move |transaction| {
            let mut snapshots = transaction.open_table(SNAPSHOTS).map_err(damaged)?;
            refuse_taken(tables::find(&snapshots, &new.name)?.as_ref(), &new.name)?;
            let old = tables::load(&snapshots, &new.key)?;
            if old.kind != Kind::Active {
                let message = format!("snapshot \"{}\" is not active", new.key);
                return Err(Error::new(ErrorKind::FailedPrecondition, message));
            }
            let parent = rebased(&old.parent, &new)?;
            if !parent.is_empty() {
                tables::load_parent(&snapshots, &parent, ErrorKind::FailedPrecondition)?;
            }
            let record = fresh_record(old.id, Kind::Committed, parent, new.labels);
            let encoded = encode(&record)?;
            snapshots.remove(new.key.as_str()).map_err(damaged)?;
            snapshots
                .insert(new.name.as_str(), encoded.as_slice())
                .map_err(damaged)?;
            unlink(transaction, &old.parent, &new.key)?;
            link(transaction, &record.parent, &new.name)?;
            Ok(record)
        })
        .await
    }

    /// Changes labels. Gives the record as it is then.
    pub(crate) async fn update(
        &self,
        name: &str,
        labels: LabelMap,
        mask: LabelMask,
    ) -> Result<Record, Error> {
        let name = name.to_owned();
        self.write(move |transaction| {
            let mut snapshots = transaction.open_table(SNAPSHOTS).map_err(damaged)?;
            let mut record = tables::load(&snapshots, &name)?;
            record.labels = without_empty(masked(record.labels, labels, mask));
            if let Some(claim) = &record.remote {
                record.labels.insert(TARGET.to_owned(), claim.target.clone());
            }
            record.updated = Time::now();
            let encoded = encode(&record)?;
            snapshots
                .insert(name.as_str(), encoded.as_slice())
                .map_err(damaged)?;
            Ok(record)
        })
        .await
    }

    /// Takes a snapshot away and notes what it leaves. Gives its record.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] while others lie on it.
    pub(crate) async fn remove(&self, key: &str) -> Result<Record, Error> {
        let key = key.to_owned();
        self.write(move |transaction| {
            let mut snapshots = transaction.open_table(SNAPSHOTS).map_err(damaged)?;
            let record = tables::load(&snapshots, &key)?;
            if tables::has_children(&transaction.open_table(CHILDREN).map_err(damaged)?, &key)? {
                let message = format!("cannot remove snapshot \"{key}\": others lie on it");
                return Err(Error::new(ErrorKind::FailedPrecondition, message));
            }
            snapshots.remove(key.as_str()).map_err(damaged)?;
            unlink(transaction, &record.parent, &key)?;
            if let Some(claim) = &record.remote {
                let mut remote = transaction.open_table(REMOTE).map_err(damaged)?;
                let pair = (claim.target.as_str(), record.parent.as_str());
                remote.remove(pair).map_err(damaged)?;
            }
            let remote = record.remote.as_ref().map(|claim| claim.layer.clone());
            let left = encode(&Garbage { remote })?;
            let mut garbage = transaction.open_table(GARBAGE).map_err(damaged)?;
            garbage.insert(record.id, left.as_slice()).map_err(damaged)?;
            Ok(record)
        })
        .await
    }

    /// Keeps what a committed snapshot takes, unless it is another one by now.
    pub(crate) async fn set_usage(&self, name: &str, id: u64, usage: Usage) -> Result<(), Error> {
        let name = name.to_owned();
        self.write(move |transaction| {
            let mut snapshots = transaction.open_table(SNAPSHOTS).map_err(damaged)?;
            let Some(mut record) = tables::find(&snapshots, &name)?.filter(|record| record.id == id) else {
                return Ok(());
            };
            record.usage = Some(usage);
            let encoded = encode(&record)?;
            snapshots
                .insert(name.as_str(), encoded.as_slice())
                .map(|_| ())
                .map_err(damaged)
        })
        .await
    }

    /// What removed snapshots left.
    pub(crate) async fn garbage(&self) -> Result<Vec<(u64, Garbage)>, Error> {
        let database = Arc::clone(&self.database);
        blocking::run("list what was removed", move || {
            let transaction = database.begin_read().map_err(damaged)?;
            let garbage = transaction.open_table(GARBAGE).map_err(damaged)?;
            let entries = garbage.iter().map_err(damaged)?;
            entries
                .map(|entry| {
                    let (id, left) = entry.map_err(damaged)?;
                    Ok((id.value(), decode(&id.value().to_string(), left.value())?))
                })
                .collect()
        })
        .await
    }

    /// Forgets what was cleaned up.
    pub(crate) async fn clear_garbage(&self, ids: Vec<u64>) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        self.write(move |transaction| {
            let mut garbage = transaction.open_table(GARBAGE).map_err(damaged)?;
            for id in ids {
                garbage.remove(id).map_err(damaged)?;
            }
            Ok(())
        })
        .await
    }

    async fn read<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&redb::ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T, Error> + Send + 'static,
    {
        let database = Arc::clone(&self.database);
        blocking::run("read records", move || {
            let transaction = database.begin_read().map_err(damaged)?;
            work(&transaction.open_table(SNAPSHOTS).map_err(damaged)?)
        })
        .await
    }

    async fn write<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction) -> Result<T, Error> + Send + 'static,
    {
        let store = self.clone();
        blocking::run("write records", move || store.write_now(work)).await
    }

    fn write_now<T>(&self, work: impl FnOnce(&WriteTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let mut transaction = self.database.begin_write().map_err(damaged)?;
        transaction.set_two_phase_commit(true);
        // Dropping a transaction undoes it.
        let result = work(&transaction)?;
        transaction.commit().map_err(damaged)?;
        Ok(result)
    }
}

fn fresh_record(id: u64, kind: Kind, parent: String, labels: LabelMap) -> Record {
    let now = Time::now();
    Record {
        id,
        kind,
        parent,
        labels: without_empty(labels),
        created: now,
        updated: now,
        remote: None,
        usage: None,
    }
}

fn refuse_taken(found: Option<&Record>, name: &str) -> Result<(), Error> {
    match found {
        None => Ok(()),
        Some(_) => {
            let message = format!("snapshot \"{name}\" already exists");
            Err(Error::new(ErrorKind::AlreadyExists, message))
        }
    }
}

/// The name of the parent, which still has to be the snapshot that was seen.
fn check_parent(
    snapshots: &redb::Table<'_, &'static str, &'static [u8]>,
    seen: Named,
) -> Result<String, Error> {
    let found = tables::load_parent(snapshots, &seen.name, ErrorKind::InvalidArgument)?;
    if found.id == seen.record.id {
        Ok(seen.name)
    } else {
        let message = format!("parent \"{}\" was removed meanwhile", seen.name);
        Err(Error::new(ErrorKind::NotFound, message))
    }
}

/// The parent after a commit that may name one.
fn rebased(parent: &str, new: &NewCommit) -> Result<String, Error> {
    match (parent, new.parent.as_str()) {
        ("", rebased) => Ok(rebased.to_owned()),
        (parent, "") => Ok(parent.to_owned()),
        (parent, same) if parent == same => Ok(parent.to_owned()),
        (parent, other) => {
            let message = format!(
                "snapshot \"{}\" lies on \"{parent}\", not on \"{other}\"",
                new.key
            );
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
    }
}

fn masked(mut labels: LabelMap, mut given: LabelMap, mask: LabelMask) -> LabelMap {
    let LabelMask::Keys(keys) = mask else { return given };
    for key in keys {
        let value = given.remove(&key).unwrap_or_default();
        labels.insert(key, value);
    }
    labels
}

fn link(transaction: &WriteTransaction, parent: &str, child: &str) -> Result<(), Error> {
    let mut children = transaction.open_table(CHILDREN).map_err(damaged)?;
    children.insert((parent, child), ()).map(|_| ()).map_err(damaged)
}

fn unlink(transaction: &WriteTransaction, parent: &str, child: &str) -> Result<(), Error> {
    let mut children = transaction.open_table(CHILDREN).map_err(damaged)?;
    children.remove((parent, child)).map(|_| ()).map_err(damaged)
}
