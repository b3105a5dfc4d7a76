//! A FUSE connection: mount, threads, end.
//!
//! [`Session::mount`] shows a namespace on a directory, [`Session::hidden`] on none: a hidden session is reached through
//! [`Session::root`] by this process, and by the kernel when it opens the devices of an EROFS mount. Nothing of it is in
//! the mount table, so nothing of it can be left behind.
//!
//! Threads only take requests and answer what is in memory. There is one `/dev/fuse` descriptor for all of them: with
//! cloned descriptors the death of one aborts its requests. FUSE passthrough and asynchronous direct I/O are never asked
//! for: the first makes the file system "stacked", which EROFS refuses as a device, the second ran into a kernel bug.
//!
//! A hidden session can outlive its process: [`Session::descriptors`] is what somebody else has to hold meanwhile,
//! [`Session::leave`] ends the process's part without ending the session, and [`Session::adopt`] goes on with it.
//!
//! The connection ends when its last user is gone. Dropping a session unmounts, lazily when it is busy; a lazily
//! unmounted session is served by its threads until its last user has left or the process ends.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use fuser::{Config, MountOption, SessionACL};
use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};
use rustix::fs::{AtFlags, StatxFlags, makedev, statx};
use rustix::mount::MountAttrFlags;
use tokio::runtime::Handle;

use crate::adapter::Adapter;
use crate::filesystem::Namespace;
use crate::mount::{AttachedMount, DetachedMount, NewMount};
use crate::mountinfo::{self, MountEntry};
use crate::takeover::{self, Descriptors};
use crate::{DescriptorStore, Error, readahead};

/// What the mount table shows as source of every FUSE mount of ours.
pub const SOURCE: &str = "sluice";

/// File system type that the mount table shows: `fuse` with a subtype.
pub const FS_TYPE: &str = "fuse.sluice";

/// Mode of the root directory until the first `stat` brings the real one: a directory.
const ROOT_MODE: &str = "40000";

/// Most threads by default. Threads never wait, so more than this only adds contention on one descriptor.
const THREADS_MAX: usize = 4;

/// The set-user-ID program of libfuse that mounts and unmounts for users other than root.
const HELPER: &str = "fusermount3";

/// How long an ending session is waited for. The kernel ends it at once unless somebody still uses it.
const END_WAIT: Duration = Duration::from_secs(2);

/// How a session is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads that take requests, at least 1.
    pub threads: usize,
    /// Lets users other than the mounting one in, and set-user-ID programs and device files work. Needs root or
    /// `user_allow_other` in `/etc/fuse.conf`.
    pub for_everybody: bool,
    /// Readahead window of the mount in KiB; `None` keeps the kernel's.
    pub read_ahead_kib: Option<u32>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads: cores.clamp(2, THREADS_MAX),
            for_everybody: geteuid().is_root(),
            read_ahead_kib: None,
        }
    }
}

/// Where the file system of a session is.
#[derive(Debug)]
enum Place {
    Hidden(DetachedMount),
    Attached(AttachedMount),
    /// Mounted by the set-user-ID program `fusermount3`, which alone can unmount it.
    ByHelper(MountEntry),
}

/// A served namespace.
#[derive(Debug)]
pub struct Session {
    place: Option<Place>,
    connection: Connection,
}

/// The running threads of a session.
#[derive(Debug)]
struct Connection {
    ended: Receiver<()>,
    /// Owned by the threads: when they have ended, nothing of this process may keep the connection open.
    device: Weak<OwnedFd>,
    leaving: Arc<AtomicBool>,
}

/// Where the session of [`Session::hidden_or_adopted`] came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is new.
    Created,
    /// A predecessor served it.
    Adopted,
}

impl Session {
    /// Serves `namespace` on the directory `target`.
    ///
    /// # Errors
    /// [`Error::Mount`] when the kernel refuses; [`Error::Io`] without `/dev/fuse`.
    pub fn mount(
        namespace: Arc<dyn Namespace>,
        target: &Path,
        options: &SessionOptions,
        runtime: &Handle,
    ) -> Result<Self, Error> {
        let adapter = Adapter::new(namespace, runtime.clone());
        let session = if may_mount() {
            let (mount, connection) = connect(adapter, options)?;
            let place = Some(Place::Attached(mount.attach(target)?));
            Self { place, connection }
        } else {
            mount_by_helper(adapter, target, options)?
        };
        if let (Some(kib), Some(entry)) = (options.read_ahead_kib, session.entry()) {
            set_readahead(&entry.device, kib);
        }
        Ok(session)
    }

    /// Serves `namespace` without any place in the directory tree. Needs root.
    ///
    /// # Errors
    /// As [`Session::mount`].
    pub fn hidden(
        namespace: Arc<dyn Namespace>,
        options: &SessionOptions,
        runtime: &Handle,
    ) -> Result<Self, Error> {
        let adapter = Adapter::new(namespace, runtime.clone());
        let (mount, connection) = connect(adapter, options)?;
        let place = Some(Place::Hidden(mount));
        Ok(Self { place, connection })
    }

    /// Goes on with the hidden session of a process that is gone. The namespace must show all that the old one showed:
    /// requests that were waiting are answered from it at once. Threads of the old process must not run any more.
    ///
    /// # Errors
    /// [`Error::Adopt`] when the connection has ended meanwhile, [`Error::Unsupported`] before Linux 6.9. The descriptors
    /// are closed then.
    pub fn adopt(
        descriptors: Descriptors,
        namespace: Arc<dyn Namespace>,
        options: &SessionOptions,
        runtime: &Handle,
    ) -> Result<Self, Error> {
        let Descriptors { device, mount } = descriptors;
        if !takeover::is_alive(device.as_fd()) {
            return Err(Error::Adopt);
        }
        let adapter = Adapter::new(namespace, runtime.clone());
        let leaving = adapter.leaving();
        let connection = takeover::connect(adapter, device.as_fd(), config(options))?;
        takeover::resend(device.as_fd())?;
        Ok(Self {
            place: Some(Place::Hidden(mount.into())),
            connection: run(connection, device, leaving)?,
        })
    }

    /// Goes on with the session that is stored under `name`, or makes a hidden one and stores it.
    ///
    /// # Errors
    /// As [`Session::hidden`]; a stored session that cannot be adopted is replaced by a new one. [`Error::Io`] when the
    /// store does not take the new one.
    pub fn hidden_or_adopted(
        store: &mut DescriptorStore,
        name: &str,
        namespace: Arc<dyn Namespace>,
        options: &SessionOptions,
        runtime: &Handle,
    ) -> Result<(Self, Origin), Error> {
        if let Some(descriptors) = store.take_session(name) {
            match Self::adopt(descriptors, namespace.clone(), options, runtime) {
                Ok(session) => return Ok((session, Origin::Adopted)),
                Err(error) => {
                    tracing::warn!(%error, "the FUSE session of the previous process is lost; a new one is made");
                    store.remove_session(name)?;
                }
            }
        }
        store.remove_unclaimed()?;
        let session = Self::hidden(namespace, options, runtime)?;
        if let Some(descriptors) = session.descriptors()? {
            store.put_session(name, &descriptors)?;
        }
        Ok((session, Origin::Created))
    }

    /// Copies of the descriptors that keep a hidden session alive; `None` for other sessions and after the end.
    ///
    /// # Errors
    /// [`Error::Io`] when this process has too many open files.
    pub fn descriptors(&self) -> Result<Option<Descriptors>, Error> {
        let (Some(Place::Hidden(mount)), Some(device)) = (&self.place, self.connection.device.upgrade())
        else {
            return Ok(None);
        };
        let failed = |e| Error::io("copying the descriptors of a FUSE session", e);
        Ok(Some(Descriptors {
            device: device.try_clone().map_err(failed)?,
            mount: mount.as_fd().try_clone_to_owned().map_err(failed)?,
        }))
    }

    /// Ends this process's part in a session that is stored: nothing is unmounted, and reads that still wait are left to
    /// the successor when the runtime ends. The process has to exit soon.
    pub fn leave(mut self) {
        self.connection.leaving.store(true, Ordering::SeqCst);
        self.place = None;
    }

    /// A path to the root of the namespace, valid in this process while the session lives.
    pub fn root(&self) -> PathBuf {
        match &self.place {
            Some(Place::Hidden(mount)) => mount.path(),
            Some(Place::Attached(mount)) => mount
                .entry()
                .map(|entry| entry.target.clone())
                .unwrap_or_default(),
            Some(Place::ByHelper(entry)) => entry.target.clone(),
            None => PathBuf::new(),
        }
    }

    /// Device number of a hidden session's file system, as its files show it. The session is not asked.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other sessions; [`Error::Io`] when the kernel does not tell.
    pub fn device_number(&self) -> Result<u64, Error> {
        let Some(Place::Hidden(mount)) = &self.place else {
            return Err(Error::Unsupported(
                "only a hidden session has a number".to_owned(),
            ));
        };
        // A thread that waited for an answer of its own process could not be killed (see `mount_helper`).
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let known = statx(mount.as_fd(), "", flags, StatxFlags::empty());
        let known = known.map_err(|e| Error::io("looking at a FUSE session", e))?;
        Ok(makedev(known.stx_dev_major, known.stx_dev_minor))
    }

    /// Its line in the mount table; `None` for a hidden one and after unmounting.
    pub fn entry(&self) -> Option<&MountEntry> {
        match &self.place {
            Some(Place::Attached(mount)) => mount.entry(),
            Some(Place::ByHelper(entry)) => Some(entry),
            Some(Place::Hidden(_)) | None => None,
        }
    }

    /// Unmounts and waits for the threads. A session that somebody else unmounted just ends.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody uses it; it goes on then, unless `lazy`.
    pub fn unmount(&mut self, lazy: bool) -> Result<(), Error> {
        match &mut self.place {
            Some(Place::Attached(mount)) => {
                mount.unmount(lazy)?;
            }
            Some(Place::ByHelper(entry)) => {
                if mountinfo::is_mounted(entry).map_err(|e| Error::io("reading the mount table", e))? {
                    unmount_with_helper(&entry.target, lazy)?;
                }
            }
            Some(Place::Hidden(_)) | None => {}
        }
        self.place = None;
        if !lazy {
            self.wait_ended();
        }
        Ok(())
    }

    fn wait_ended(&self) {
        if self.connection.ended.recv_timeout(END_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "a FUSE session is unmounted but still used; it is served until its last user is gone"
            );
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.place.is_none() {
            return;
        }
        match self.unmount(false) {
            Ok(()) => {}
            Err(Error::Busy { target }) => {
                tracing::warn!(target = %target.display(), "a FUSE session is busy; it is detached");
                if let Err(error) = self.unmount(true) {
                    tracing::warn!(%error, "a FUSE session was left behind");
                }
            }
            Err(error) => tracing::warn!(%error, "a FUSE session was left behind"),
        }
    }
}

/// Whether this process may call mount(2) itself.
fn may_mount() -> bool {
    geteuid().is_root()
}

/// Opens a connection, answers the kernel's first request, and starts the threads.
fn connect(adapter: Adapter, options: &SessionOptions) -> Result<(DetachedMount, Connection), Error> {
    let device = Path::new("/dev/fuse");
    let device = File::options()
        .read(true)
        .write(true)
        .open(device)
        .map_err(|e| Error::path("opening", device, e))?;
    let mount = new_mount(&device, options).create(None)?;
    let config = config(options);
    let leaving = adapter.leaving();
    let kept = device
        .try_clone()
        .map_err(|e| Error::io("copying a FUSE descriptor", e))?;
    let connection = fuser::Session::from_fd(adapter, OwnedFd::from(device), config.acl, config)
        .map_err(|e| Error::io("greeting the kernel's FUSE", e))?;
    Ok((mount, run(connection, kept.into(), leaving)?))
}

fn new_mount(device: &File, options: &SessionOptions) -> NewMount<'static> {
    let mut flags = vec!["ro", "default_permissions"];
    let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    if options.for_everybody {
        flags.push("allow_other");
    } else {
        attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    NewMount {
        fs_type: "fuse",
        source: Path::new(SOURCE),
        strings: vec![
            ("subtype", SOURCE.to_owned()),
            ("fd", device.as_raw_fd().to_string()),
            ("rootmode", ROOT_MODE.to_owned()),
            ("user_id", geteuid().to_string()),
            ("group_id", getegid().to_string()),
        ],
        flags,
        attributes,
    }
}

fn config(options: &SessionOptions) -> Config {
    let mut config = Config::default();
    config.acl = if options.for_everybody {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(options.threads.max(1));
    config.mount_options = vec![
        MountOption::FSName(SOURCE.to_owned()),
        MountOption::Subtype(SOURCE.to_owned()),
        MountOption::DefaultPermissions,
        MountOption::RO,
    ];
    config
}

/// Starts the threads of a connection. The receiver is disconnected when they have ended.
fn run(
    connection: fuser::Session<Adapter>,
    device: OwnedFd,
    leaving: Arc<AtomicBool>,
) -> Result<Connection, Error> {
    let (running, ended) = sync_channel::<()>(0);
    let device = Arc::new(device);
    let lent = Arc::downgrade(&device);
    let body = move || {
        let _running = running;
        let _device = device;
        match connection.run() {
            // An unmount can overtake a request that a thread is just taking; the kernel then answers the read with this.
            Err(error) if error.raw_os_error() == Some(Errno::ECONNABORTED as i32) => {}
            Err(error) => tracing::error!(%error, "a FUSE session broke"),
            Ok(()) => {}
        }
    };
    let spawned = thread::Builder::new().name("fuse-session".to_owned()).spawn(body);
    spawned.map_err(|e| Error::io("starting the FUSE threads", e))?;
    Ok(Connection {
        ended,
        device: lent,
        leaving,
    })
}

fn mount_by_helper(adapter: Adapter, target: &Path, options: &SessionOptions) -> Result<Session, Error> {
    let target = std::fs::canonicalize(target).map_err(|e| Error::path("finding mount target", target, e))?;
    let refuse = |source| Error::Mount {
        fs_type: "fuse",
        origin: PathBuf::from(SOURCE),
        messages: Vec::new(),
        source,
    };
    let leaving = adapter.leaving();
    let connection = fuser::Session::new(adapter, &target, &config(options)).map_err(refuse)?;
    let kept = connection.as_fd().try_clone_to_owned();
    let kept = kept.map_err(|e| Error::io("copying a FUSE descriptor", e))?;
    let connection = run(connection, kept, leaving)?;
    let entry = mountinfo::topmost_at(&target).map_err(|e| Error::io("reading the mount table", e))?;
    let place = Some(Place::ByHelper(entry.ok_or(Error::NotMounted { target })?));
    Ok(Session { place, connection })
}

/// Lets the set-user-ID program unmount what it has mounted for this user.
pub(crate) fn unmount_with_helper(target: &Path, lazy: bool) -> Result<(), Error> {
    let mut command = Command::new(HELPER);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(target);
    let output = command
        .output()
        .map_err(|e| Error::io(format!("running {HELPER}"), e))?;
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else if message.contains("busy") {
        Err(Error::Busy {
            target: target.to_owned(),
        })
    } else {
        let cause = std::io::Error::other(message.trim().to_owned());
        Err(Error::path("unmounting", target, cause))
    }
}

/// Best effort: a mount with another window is slower, not wrong.
pub(crate) fn set_readahead(backing_device: &str, kib: u32) {
    if let Err(error) = readahead::set(backing_device, kib) {
        tracing::debug!(backing_device, kib, %error, "the readahead window stays as it is");
    }
}
