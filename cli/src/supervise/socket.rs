//! The socket that the child sends its messages to.
//!
//! It lies in a directory that only this user can enter, and the kernel says which process sent a message.

use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::notification::Notification;

/// Longest message, in bytes; the rest of a longer one is cut off.
const MESSAGE_MAX: usize = 4096;

/// Most descriptors that one message may carry; the kernel closes further ones.
const DESCRIPTORS_MAX: usize = 16;

/// A message and its sender.
#[derive(Debug)]
pub(super) struct Message {
    /// Process number of the sender, as the kernel tells it.
    pub(super) sender: u32,
    pub(super) notification: Notification,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// The bound socket. Dropping it removes it.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    directory: PathBuf,
    path: PathBuf,
}

impl NotifySocket {
    /// Binds a socket below `run_dir`.
    pub(super) fn bind(run_dir: &Path) -> anyhow::Result<Self> {
        let directory = run_dir.join(format!("supervise-{}", std::process::id()));
        let making = || format!("making {}", directory.display());
        // A supervisor that was killed may have left it, and its process number has come round again.
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(making),
            _ => {}
        }
        fs::create_dir_all(run_dir).with_context(making)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(making)?;
        let path = std::path::absolute(&directory)?.join("notify");
        let binding = || format!("listening on {}", path.display());
        let socket = UnixDatagram::bind(&path).with_context(binding)?;
        socket.set_nonblocking(true).with_context(binding)?;
        set_socket_passcred(&socket, true).with_context(binding)?;
        Ok(Self {
            socket,
            directory,
            path,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next message that has arrived.
    pub(super) fn receive(&self) -> anyhow::Result<Option<Message>> {
        let mut bytes = [0; MESSAGE_MAX];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX), ScmCredentials(1))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = match recvmsg(&self.socket, &mut parts, &mut attached, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno).context("receiving a message of the command"),
        };
        let (mut sender, mut descriptors) = (0, Vec::new());
        for part in attached.drain() {
            match part {
                RecvAncillaryMessage::ScmRights(received) => descriptors.extend(received),
                RecvAncillaryMessage::ScmCredentials(credentials) => {
                    sender = credentials.pid.as_raw_pid().unsigned_abs();
                }
                _ => {}
            }
        }
        Ok(Some(Message {
            sender,
            notification: Notification::parse(bytes.get(..received.bytes).unwrap_or_default()),
            descriptors,
        }))
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "the supervisor's socket was left behind");
        }
    }
}
