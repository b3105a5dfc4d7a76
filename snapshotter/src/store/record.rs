//! What is known of one snapshot.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::filter::Fields;
use crate::images::RemoteLayer;
use crate::labels::LabelMap;
use crate::mounts::Usage;

/// The state of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A client writes to it.
    Active,
    /// A client reads it.
    View,
    /// Never changes again; others may lie on top.
    Committed,
}

/// A point in time as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanos: i32,
}

impl Time {
    /// The present.
    pub(crate) fn now() -> Self {
        let prost_types::Timestamp { seconds, nanos } = SystemTime::now().into();
        Self { seconds, nanos }
    }
}

/// The record of a snapshot; its key or name is the key of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names its directory. Never used twice.
    pub id: u64,
    /// Its state.
    pub kind: Kind,
    /// Name of the committed snapshot below; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// Its labels; none has an empty value.
    #[serde(default, skip_serializing_if = "LabelMap::is_empty")]
    pub labels: LabelMap,
    /// When it got its state.
    pub created: Time,
    /// When its labels changed last.
    pub updated: Time,
    /// The layer that is served by mounting; `None` for a snapshot with a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Claim>,
    /// What a committed snapshot's directory takes, once it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A layer that was not unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// What the client asked for. Stays findable by it: the label cannot be taken away.
    pub target: String,
    /// What the engine serves instead.
    pub layer: RemoteLayer,
}

/// A snapshot with its key or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Key of an active snapshot or a view, name of a committed one.
    pub name: String,
    /// What is known of it.
    pub record: Record,
}

impl Fields for Named {
    fn field(&self, path: &[String]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "name" => Some(&self.name),
            "parent" => Some(&self.record.parent),
            "kind" => Some(match self.record.kind {
                Kind::Active => "active",
                Kind::View => "view",
                Kind::Committed => "committed",
            }),
            // A label's key may have dots, and nobody has to quote them.
            "labels" => self.record.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

/// Labels without a value are labels to take away.
pub(crate) fn without_empty(mut labels: LabelMap) -> LabelMap {
    labels.retain(|_, value| !value.is_empty());
    labels
}
