//! User and group ID maps that come with a snapshot's labels.
//!
//! containerd 2.x asks a snapshotter with the capability `remap-ids` for mounts whose IDs are mapped. The label's text is
//! handed back as the mount options `uidmap=` and `gidmap=`, which containerd itself turns into ID-mapped mounts; the
//! snapshotter has to give the upper directory to the user who is root inside.

use crate::{Error, ErrorKind};

/// Most ranges in a map: what the kernel takes in `/proc/PID/uid_map`.
const RANGES_MAX: usize = 340;

/// The maps of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMapping {
    uids: Ranges,
    gids: Ranges,
}

impl IdMapping {
    /// Parses the two labels; `None` when neither is given.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when one is missing, malformed, or maps no ID 0.
    pub fn parse(uids: Option<&str>, gids: Option<&str>) -> Result<Option<Self>, Error> {
        match (uids, gids) {
            (None, None) => Ok(None),
            (Some(uids), Some(gids)) => Ok(Some(Self {
                uids: Ranges::parse("UID", uids)?,
                gids: Ranges::parse("GID", gids)?,
            })),
            (Some(_), None) => Err(invalid("a UID map without a GID map".to_owned())),
            (None, Some(_)) => Err(invalid("a GID map without a UID map".to_owned())),
        }
    }

    /// User and group on the host that are root inside.
    pub const fn root(&self) -> (u32, u32) {
        (self.uids.root, self.gids.root)
    }

    /// The mount options that ask containerd for the mapping.
    pub fn mount_options(&self) -> [String; 2] {
        [
            format!("uidmap={}", self.uids.text),
            format!("gidmap={}", self.gids.text),
        ]
    }
}

/// One map: `container:host:length`, more of them separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranges {
    text: String,
    /// The ID on the host of ID 0 inside.
    root: u32,
}

impl Ranges {
    fn parse(what: &str, text: &str) -> Result<Self, Error> {
        let refuse = || {
            invalid(format!(
                "{what} map \"{text}\" is not a list of container:host:length"
            ))
        };
        let mut root = None;
        for (at, range) in text.split(',').enumerate() {
            if at == RANGES_MAX {
                return Err(invalid(format!("{what} map has more than {RANGES_MAX} ranges")));
            }
            let numbers: Vec<u32> = range
                .split(':')
                .map(|number| number.parse().map_err(|_| refuse()))
                .collect::<Result<_, _>>()?;
            let [container, host, length] = numbers[..] else {
                return Err(refuse());
            };
            if length == 0
                || container.checked_add(length - 1).is_none()
                || host.checked_add(length - 1).is_none()
            {
                return Err(refuse());
            }
            if container == 0 {
                root = Some(host);
            }
        }
        let root = root.ok_or_else(|| invalid(format!("{what} map \"{text}\" does not map ID 0")))?;
        Ok(Self {
            text: text.to_owned(),
            root,
        })
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_maps_give_options_and_root() {
        let map = IdMapping::parse(Some("0:1000:65536"), Some("5:9:1,0:2000:5"))
            .unwrap()
            .unwrap();
        assert_eq!(map.root(), (1000, 2000));
        assert_eq!(
            map.mount_options(),
            ["uidmap=0:1000:65536", "gidmap=5:9:1,0:2000:5"]
        );
    }

    #[test]
    fn no_label_is_no_map() {
        assert_eq!(IdMapping::parse(None, None).unwrap(), None);
    }

    #[test]
    fn half_a_map_or_a_bad_one_is_refused() {
        let good = Some("0:1000:65536");
        let bad = [
            "",
            "0",
            "0:1",
            "0:1:0",
            "a:b:c",
            "1:1000:5",
            "0:4294967295:2",
            "0:1:2:3",
            "0:1:2,",
        ];
        for (uids, gids) in [(good, None), (None, good)]
            .into_iter()
            .chain(bad.iter().map(|bad| (Some(*bad), good)))
            .chain(bad.iter().map(|bad| (good, Some(*bad))))
        {
            let error = IdMapping::parse(uids, gids).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{uids:?} {gids:?}");
        }
    }
}
