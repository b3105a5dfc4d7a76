//! From a snapshot and what lies below it to what a client has to mount.
//!
//! Nothing is looked up here. The shapes, in the order in which they are tried:
//!
//! | snapshot | below | mount |
//! |---|---|---|
//! | active | nothing | bind, read-write, of its own directory |
//! | view | nothing | bind, read-only, of its own empty directory |
//! | view | one directory | bind, read-only, of that directory |
//! | view | more | overlay without an upper directory |
//! | active | one or more | overlay |
//!
//! A run of remote layers is one directory, however many layers it has. That keeps `lowerdir` short: the kernel takes one
//! page of options, and containerd gets around that by changing into the directory that all lowers share, so they always
//! have one parent in common. The same parent is what containerd maps IDs on, once for all lowers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::idmap::IdMapping;

/// One mount(2) call that the client makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// File system type, or `bind`.
    pub fs_type: &'static str,
    /// Source of the mount.
    pub source: String,
    /// Options in the manner of fstab.
    pub options: Vec<String>,
}

/// What a snapshot takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// File objects.
    pub inodes: u64,
}

/// Whether the client may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An active snapshot.
    ReadWrite,
    /// A view.
    ReadOnly,
}

/// Everything a mount depends on.
#[derive(Clone, Debug)]
pub struct Layout<'a> {
    /// Whether the client may write.
    pub access: Access,
    /// The snapshot's own files.
    pub upper: &'a Path,
    /// overlayfs's scratch directory beside them.
    pub work: &'a Path,
    /// What lies below, topmost first.
    pub lowers: &'a [PathBuf],
    /// IDs to map.
    pub id_mapping: Option<&'a IdMapping>,
    /// Options of every overlay on this host.
    pub overlay_options: &'a [String],
}

impl Layout<'_> {
    /// The mount that shows the snapshot.
    pub fn mount(&self) -> MountSpec {
        match (self.access, self.lowers) {
            (Access::ReadWrite, []) => self.bind(self.upper, "rw"),
            (Access::ReadOnly, []) => self.bind(self.upper, "ro"),
            (Access::ReadOnly, [only]) => self.bind(only, "ro"),
            _ => self.overlay(),
        }
    }

    fn bind(&self, directory: &Path, access: &str) -> MountSpec {
        let mut options = self.id_options();
        options.extend([access.to_owned(), "rbind".to_owned()]);
        MountSpec {
            fs_type: "bind",
            source: directory.display().to_string(),
            options,
        }
    }

    fn overlay(&self) -> MountSpec {
        let mut options = self.id_options();
        if self.access == Access::ReadWrite {
            options.push(format!("workdir={}", self.work.display()));
            options.push(format!("upperdir={}", self.upper.display()));
        }
        let lowers: Vec<String> = self
            .lowers
            .iter()
            .map(|lower| lower.display().to_string())
            .collect();
        options.push(format!("lowerdir={}", lowers.join(":")));
        options.extend_from_slice(self.overlay_options);
        MountSpec {
            fs_type: "overlay",
            source: "overlay".to_owned(),
            options,
        }
    }

    fn id_options(&self) -> Vec<String> {
        self.id_mapping
            .map_or_else(Vec::new, |map| map.mount_options().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPPER: &str = "/r/snapshots/7/fs";

    fn mount(access: Access, lowers: &[&str], id_mapping: Option<&IdMapping>) -> MountSpec {
        let lowers: Vec<PathBuf> = lowers.iter().map(PathBuf::from).collect();
        Layout {
            access,
            upper: Path::new(UPPER),
            work: Path::new("/r/snapshots/7/work"),
            lowers: &lowers,
            id_mapping,
            overlay_options: &["index=off".to_owned()],
        }
        .mount()
    }

    fn spec(fs_type: &'static str, source: &str, options: &[&str]) -> MountSpec {
        MountSpec {
            fs_type,
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn without_parents_a_bind_mount_of_its_own_directory() {
        assert_eq!(
            mount(Access::ReadWrite, &[], None),
            spec("bind", UPPER, &["rw", "rbind"])
        );
        assert_eq!(
            mount(Access::ReadOnly, &[], None),
            spec("bind", UPPER, &["ro", "rbind"])
        );
    }

    #[test]
    fn a_view_of_one_directory_is_that_directory() {
        let lower = "/r/snapshots/tree-x/fs";
        assert_eq!(
            mount(Access::ReadOnly, &[lower], None),
            spec("bind", lower, &["ro", "rbind"])
        );
    }

    #[test]
    fn a_view_of_more_is_an_overlay_that_nobody_can_write() {
        let expected = spec(
            "overlay",
            "overlay",
            &["lowerdir=/r/snapshots/2/fs:/r/snapshots/1/fs", "index=off"],
        );
        let lowers = ["/r/snapshots/2/fs", "/r/snapshots/1/fs"];
        assert_eq!(mount(Access::ReadOnly, &lowers, None), expected);
    }

    #[test]
    fn an_active_snapshot_on_others_is_an_overlay() {
        for lowers in [
            &["/r/snapshots/1/fs"][..],
            &["/r/snapshots/2/fs", "/r/snapshots/1/fs"],
        ] {
            let lowerdir = format!("lowerdir={}", lowers.join(":"));
            let options = [
                "workdir=/r/snapshots/7/work",
                "upperdir=/r/snapshots/7/fs",
                &lowerdir,
                "index=off",
            ];
            assert_eq!(
                mount(Access::ReadWrite, lowers, None),
                spec("overlay", "overlay", &options)
            );
        }
    }

    #[test]
    fn id_maps_come_first_in_every_shape() {
        let map = IdMapping::parse(Some("0:1:5"), Some("0:2:5")).unwrap();
        for access in [Access::ReadWrite, Access::ReadOnly] {
            for lowers in [&[][..], &["/a"], &["/a", "/b"]] {
                let spec = mount(access, lowers, map.as_ref());
                assert_eq!(spec.options[..2], ["uidmap=0:1:5", "gidmap=0:2:5"], "{spec:?}");
            }
        }
    }
}
