//! What an inode carries besides its kind.

use std::collections::BTreeMap;

/// Extended attributes by full name (`user.mime_type`, `security.capability`), sorted by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A point in time relative to the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds. Never negative in a tree: containerd's unpack turns earlier times into the epoch.
    pub secs: u64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// Owner, permissions, time and extended attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-user-ID, set-group-ID and sticky: the low 12 bits of `st_mode`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of content.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Attributes {
    /// Attributes of a directory nobody described: `0755`, owned by root, at the epoch.
    pub fn default_directory() -> Self {
        Self {
            permissions: 0o755,
            ..Self::default()
        }
    }
}

/// Device number of a character or block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Major number, 12 bits.
    pub major: u32,
    /// Minor number, 20 bits.
    pub minor: u32,
}

impl Device {
    /// Largest numbers that the kernel's 32-bit encoding can hold.
    pub const MAX: Self = Self {
        major: 0xfff,
        minor: 0xf_ffff,
    };

    /// The kernel's `new_encode_dev` form, as EROFS stores it.
    pub const fn encode(self) -> u32 {
        (self.minor & 0xff) | (self.major << 8) | ((self.minor & !0xff) << 12)
    }

    /// Inverse of [`Device::encode`].
    pub const fn decode(raw: u32) -> Self {
        Self {
            major: (raw & 0xfff00) >> 8,
            minor: (raw & 0xff) | ((raw >> 12) & 0xfff00),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for device in [
            Device::default(),
            Device { major: 8, minor: 1 },
            Device {
                major: 259,
                minor: 70_000,
            },
            Device::MAX,
        ] {
            assert_eq!(Device::decode(device.encode()), device);
        }
    }
}
