//! Descriptors that outlive their process: the store of a service manager.
//!
//! systemd (`FileDescriptorStoreMax=`) and `sluice supervise` speak the same protocol, sd_notify(3): a message on
//! `$NOTIFY_SOCKET` hands descriptors over under a name, and the next process of the service gets them back as
//! descriptors 3 and up, described by `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`. Without a service manager nothing is
//! kept, and a session ends with its process as ever.
//!
//! A session is stored as two descriptors, the connection first. A process that dies between the two leaves half a session;
//! nobody has used it yet, and the successor throws it away. Names end with `GENERATION`: a program that numbers nodes or
//! opens files in another way must not go on with sessions of the old kind.

use std::env;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;

use crate::takeover::Descriptors;
use crate::{Error, kernel};

/// Kind of sessions that this program can go on with. To be raised whenever node numbers, handles or the way files are
/// opened change their meaning.
const GENERATION: u32 = 1;

/// Begin of the names of all descriptors of sessions.
const PREFIX: &str = "sluice-fuse";

/// Whether the inherited descriptors have found their owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The service manager's store, as this process sees it.
#[derive(Debug, Default)]
pub struct DescriptorStore {
    inherited: Vec<(String, OwnedFd)>,
}

impl DescriptorStore {
    /// Takes what the predecessor left. Only the first call in a process gets anything.
    ///
    /// # Errors
    /// [`Error::Io`] when the service manager's variables contradict themselves.
    pub fn from_environment() -> Result<Self, Error> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Self::default());
        }
        let listed = sd_notify::listen_fds_with_names()
            .map_err(|e| Error::io("reading LISTEN_FDS and LISTEN_FDNAMES", e))?;
        let inherited = listed.map(|(number, name)| (name, kernel::own_inherited(number)));
        Ok(Self {
            inherited: inherited.collect(),
        })
    }

    /// Whether there is a service manager that can keep descriptors.
    pub fn is_present(&self) -> bool {
        env::var_os("NOTIFY_SOCKET").is_some()
    }

    /// Whether a predecessor stored a session under this name.
    pub fn holds_session(&self, name: &str) -> bool {
        let stored = |name: &String| self.inherited.iter().any(|(stored, _)| stored == name);
        names(name).iter().all(stored)
    }

    /// The session that a predecessor stored under this name.
    pub fn take_session(&mut self, name: &str) -> Option<Descriptors> {
        let [device, mount] = names(name);
        let device = self.take(&device);
        let mount = self.take(&mount);
        Some(Descriptors {
            device: device?,
            mount: mount?,
        })
    }

    fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.inherited.iter().position(|(stored, _)| stored == name)?;
        Some(self.inherited.swap_remove(at).1)
    }

    /// Keeps a session under a name. Without a service manager this does nothing.
    ///
    /// # Errors
    /// [`Error::Io`] when the service manager does not listen.
    pub fn put_session(&self, name: &str, session: &Descriptors) -> Result<(), Error> {
        let [device, mount] = names(name);
        self.put(&device, session.device.as_fd())?;
        self.put(&mount, session.mount.as_fd())
    }

    // A descriptor that only names a place cannot be polled, which systemd would take for an error.
    fn put(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), Error> {
        let message = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        sd_notify::notify_with_fds(&message, &[descriptor])
            .map_err(|e| Error::io(format!("storing descriptor {name} with the service manager"), e))
    }

    /// Forgets a session, so that it can end.
    ///
    /// # Errors
    /// As [`DescriptorStore::put_session`].
    pub fn remove_session(&self, name: &str) -> Result<(), Error> {
        for name in names(name) {
            forget(&name)?;
        }
        Ok(())
    }

    /// Forgets every descriptor of a session that nobody took: halves, and those of other generations.
    ///
    /// # Errors
    /// As [`DescriptorStore::put_session`].
    pub fn remove_unclaimed(&mut self) -> Result<(), Error> {
        for (name, _) in self
            .inherited
            .extract_if(.., |(name, _)| name.starts_with(PREFIX))
        {
            tracing::warn!(
                name,
                "a stored FUSE descriptor is of no use to this version; it is closed"
            );
            forget(&name)?;
        }
        Ok(())
    }
}

fn forget(name: &str) -> Result<(), Error> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
        .map_err(|e| Error::io(format!("removing descriptor {name} from the service manager"), e))
}

/// Names of the two descriptors of a session.
fn names(session: &str) -> [String; 2] {
    ["device", "mount"].map(|part| format!("{PREFIX}-{session}-{part}-{GENERATION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn half_a_session_is_none() {
        let [device, mount] = names("layers");
        let mut store = DescriptorStore {
            inherited: vec![(device.clone(), null())],
        };
        assert!(!store.holds_session("layers"));
        assert!(store.take_session("layers").is_none());
        store.inherited = vec![(mount, null()), (device, null())];
        assert!(store.take_session("other").is_none());
        assert!(store.holds_session("layers"));
        assert!(store.take_session("layers").is_some());
        assert!(store.inherited.is_empty());
    }

    #[test]
    fn only_descriptors_of_sessions_are_removed() {
        let mut store = DescriptorStore {
            inherited: vec![
                ("sluice-fuse-layers-device-0".to_owned(), null()),
                ("socket".to_owned(), null()),
            ],
        };
        store.remove_unclaimed().unwrap();
        let [(name, _)] = &store.inherited[..] else {
            panic!("{store:?}")
        };
        assert_eq!(name, "socket");
    }
}
