//! A helper process that makes mounts on behalf of the process that serves what they lie on.
//!
//! The kernel asks a FUSE session for the device files of an EROFS mount while it makes the mount. Once a request has been
//! taken, not even SIGKILL ends the wait for its answer (`request_wait_answer` in `fs/fuse/dev.c`). A server that waited
//! so for itself and was killed would stay: its threads that could answer are gone, the waiting one keeps the process,
//! and whoever wants to start a successor waits for the end of the process. So the waiting is done by a process that has
//! no descriptor of a session. It goes on when a successor answers, and fails when there is no session any more.
//!
//! The server configures the mount and sends the file system context; the helper creates the mount and sends it back.
//! No path leads to it until the server attaches it, so a mount that comes too late for its server vanishes.
//!
//! ```text
//! server → helper   attributes of the mount, u32      + the context, configured
//! helper → server   errno or 0, i32                   + the mount, when it is 0
//! helper → server   0, i32                            when it has closed the mount that it has sent
//! ```
//!
//! Each is one message of a sequenced-packet socket, in the byte order of the host. The end of the socket ends the helper.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::mount::{FsMountFlags, MountAttrFlags, fsconfig_create, fsmount};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown,
    socketpair,
};

use crate::Error;
use crate::guard::detach_from_terminal;

/// Length of every message, in bytes.
const MESSAGE_LEN: usize = 4;

/// No error.
const DONE: [u8; MESSAGE_LEN] = 0_i32.to_ne_bytes();

/// The helper as its server sees it: one process, which is started again when it was killed. Dropping it ends it.
#[derive(Debug)]
pub struct MountHelper {
    exe: PathBuf,
    args: Vec<OsString>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    socket: OwnedFd,
}

impl MountHelper {
    /// Starts `exe args…`, which must call [`run_mount_helper`].
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(exe: &Path, args: &[A]) -> Result<Self, Error> {
        // A working directory of its own pins no mount, but makes a relative path mean something else.
        let absolute = std::path::absolute(exe).map_err(|e| Error::path("finding", exe, e))?;
        let helper = Self {
            exe: absolute,
            args: args.iter().map(|arg| arg.as_ref().to_owned()).collect(),
            running: Mutex::default(),
        };
        let running = helper.start()?;
        Ok(Self {
            running: Mutex::new(Some(running)),
            ..helper
        })
    }

    fn start(&self) -> Result<Running, Error> {
        let failed = |e| Error::path("starting the mount helper", &self.exe, e);
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| failed(errno.into()))?;
        let mut command = Command::new(&self.exe);
        command
            .args(&self.args)
            .stdin(theirs)
            .stdout(Stdio::null())
            .current_dir("/");
        Ok(Running {
            child: command.spawn().map_err(failed)?,
            socket: ours,
        })
    }

    /// Lets the helper create the mount of a configured file system context. Blocks, but not against SIGKILL.
    pub(crate) fn create(&self, context: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let request = attributes.bits().to_ne_bytes();
        // One that cannot be asked has ended, and nothing has happened to the context.
        let asked = running
            .take()
            .filter(|helper| helper.ask(request, context).is_ok());
        let helper = match asked {
            Some(helper) => helper,
            None => {
                let again = self.start().map_err(io::Error::other)?;
                again.ask(request, context)?;
                again
            }
        };
        let answer = receive(helper.socket.as_fd())?;
        let ended = || io::Error::other("the mount helper was ended meanwhile; try again");
        let (errno, mount) = answer.ok_or_else(ended)?;
        let Some(mount) = mount else {
            *running = Some(helper);
            return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)));
        };
        // A mount that the helper has open would be busy. One that has ended has closed it, too.
        if let Ok(Some(_closed)) = receive(helper.socket.as_fd()) {
            *running = Some(helper);
        }
        Ok(mount)
    }
}

impl Running {
    fn ask(&self, request: [u8; MESSAGE_LEN], context: BorrowedFd<'_>) -> io::Result<()> {
        send(self.socket.as_fd(), request, Some(context))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = shutdown(&self.socket, Shutdown::Both)
            .map_err(io::Error::from)
            .and_then(|()| self.child.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, "waiting for the end of the mount helper");
        }
    }
}

/// The helper's main. Returns when the server is gone.
///
/// # Errors
/// [`Error::Io`] when the socket cannot be read or this process cannot leave its terminal.
pub fn run_mount_helper() -> Result<(), Error> {
    detach_from_terminal().map_err(|e| Error::io("leaving the session of the server", e))?;
    let stdin = io::stdin();
    let failed = |e| Error::io("talking to the server", e);
    while let Some((attributes, context)) = receive(stdin.as_fd()).map_err(failed)? {
        let attributes = MountAttrFlags::from_bits_retain(u32::from_ne_bytes(attributes));
        let created = match context {
            Some(context) => create_here(context.as_fd(), attributes),
            None => Err(rustix::io::Errno::BADF),
        };
        match answer(stdin.as_fd(), created) {
            // The server has not waited.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            answered => answered.map_err(failed)?,
        }
    }
    Ok(())
}

fn answer(socket: BorrowedFd<'_>, created: rustix::io::Result<OwnedFd>) -> io::Result<()> {
    match created {
        Ok(mount) => {
            send(socket, DONE, Some(mount.as_fd()))?;
            drop(mount);
            send(socket, DONE, None)
        }
        Err(errno) => send(socket, errno.raw_os_error().to_ne_bytes(), None),
    }
}

/// Creates the mount of a configured context, in this process.
pub(crate) fn create_here(
    context: BorrowedFd<'_>,
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    fsconfig_create(context)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn send(
    socket: BorrowedFd<'_>,
    message: [u8; MESSAGE_LEN],
    attached: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = attached.as_slice();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&message)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// The next message and what is attached to it; `None` at the end.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<([u8; MESSAGE_LEN], Option<OwnedFd>)>> {
    let mut message = [0; MESSAGE_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut message)];
    let received =
        rustix::io::retry_on_intr(|| recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC));
    let received = match received {
        Ok(received) => received,
        // The other end was closed with a message unread.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let attached = ancillary.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes == MESSAGE_LEN).then_some((message, attached)))
}
