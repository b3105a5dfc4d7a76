//! Update: labels are all that can change.

use crate::labels::LabelMap;
use crate::store::{LabelMask, Record};
use crate::{Error, ErrorKind, Snapshotter};

/// What a path into one label begins with.
const LABEL_PREFIX: &str = "labels.";

impl Snapshotter {
    /// Changes the labels of a snapshot: those that `paths` name (`labels`, or `labels.` and a key), or all when it is
    /// empty. A label without a value is taken away. Gives the record as it is then.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidArgument`] for a path to anything else.
    pub async fn update(&self, name: &str, labels: LabelMap, paths: &[String]) -> Result<Record, Error> {
        self.parts.store.update(name, labels, mask(name, paths)?).await
    }
}

fn mask(name: &str, paths: &[String]) -> Result<LabelMask, Error> {
    let mut keys = Vec::new();
    let mut all = paths.is_empty();
    for path in paths {
        match path.strip_prefix(LABEL_PREFIX) {
            Some(key) => keys.push(key.to_owned()),
            None if path == "labels" => all = true,
            None => {
                let message = format!("\"{path}\" of snapshot \"{name}\" cannot be changed");
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
        }
    }
    Ok(if all {
        LabelMask::All
    } else {
        LabelMask::Keys(keys)
    })
}
