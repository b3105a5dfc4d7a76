//! What a message of sd_notify(3) says: lines of `NAME=value`, of which unknown ones mean nothing.

/// The parts of a message that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notification {
    /// The command has started up.
    pub(super) ready: bool,
    /// A sign of life for the watchdog.
    pub(super) alive: bool,
    /// The descriptors of the message are to be kept.
    pub(super) store: bool,
    /// The descriptors of this name are to be closed.
    pub(super) remove: bool,
    /// The name of the descriptors.
    pub(super) name: String,
}

/// Name of descriptors that were given none.
const NAME_DEFAULT: &str = "stored";

/// Longest name, in bytes.
const NAME_MAX: usize = 255;

impl Notification {
    pub(super) fn parse(message: &[u8]) -> Self {
        let mut notification = Self {
            name: NAME_DEFAULT.to_owned(),
            ..Self::default()
        };
        for line in message.split(|byte| *byte == b'\n') {
            match line {
                b"READY=1" => notification.ready = true,
                b"WATCHDOG=1" => notification.alive = true,
                b"FDSTORE=1" => notification.store = true,
                b"FDSTOREREMOVE=1" => notification.remove = true,
                _ => {
                    if let Some(name) = line.strip_prefix(b"FDNAME=").and_then(valid_name) {
                        notification.name = name.to_owned();
                    }
                }
            }
        }
        notification
    }
}

/// Names are listed with colons between them.
fn valid_name(name: &[u8]) -> Option<&str> {
    let allowed = |byte: &u8| (byte.is_ascii_graphic() || *byte == b' ') && *byte != b':';
    let valid = !name.is_empty() && name.len() <= NAME_MAX && name.iter().all(allowed);
    valid.then(|| std::str::from_utf8(name).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_lines_are_understood() {
        let stored = Notification::parse(b"FDSTORE=1\nFDNAME=a-1\nFDPOLL=0\n");
        assert!(stored.store && !stored.remove && !stored.ready);
        assert_eq!(stored.name, "a-1");
        assert!(Notification::parse(b"STATUS=x\nREADY=1").ready);
        assert!(Notification::parse(b"WATCHDOG=1\n").alive);
    }

    #[test]
    fn a_bad_name_is_none() {
        for bad in [&b"FDNAME=a:b"[..], b"FDNAME=", b"FDNAME=\xff", b"FDNAME=\x01"] {
            assert_eq!(Notification::parse(bad).name, NAME_DEFAULT);
        }
        let long = [&b"FDNAME="[..], &[b'x'; NAME_MAX + 1]].concat();
        assert_eq!(Notification::parse(&long).name, NAME_DEFAULT);
    }
}
