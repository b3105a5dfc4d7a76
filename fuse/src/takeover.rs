//! Taking over the FUSE connection of a process that is gone.
//!
//! A connection lives as long as somebody holds its `/dev/fuse` descriptor. When a service manager holds a second one (see
//! [`crate::DescriptorStore`]), the death of the serving process only makes readers wait. Its successor
//!
//! 1. lets fuser greet a kernel that is a socket pair: an INIT request made here lies in it, and the answer is thrown away,
//!    because the real kernel has had its answer from the first process;
//! 2. puts the live descriptor in the place of that socket, with dup3(2);
//! 3. tells the kernel to send again every request that the dead process had taken and not answered.
//!
//! What was negotiated stays what the first process asked for. fuser keeps nothing of it after the greeting: its buffer has
//! one fixed size and its answers have one form, so it matters only that the namespace is of the same kind as before. Node
//! numbers follow from content and handles are always 0, so no table is lost. A request that was sent again has the highest
//! bit of its number set, which the answer carries back as it is.
//!
//! One descriptor serves all threads: a connection with cloned ones fails the requests of each that is closed.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fuser::Config;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::adapter::Adapter;
use crate::{Error, kernel};

/// Number of the INIT operation (`include/uapi/linux/fuse.h`).
const FUSE_INIT: u32 = 26;

/// Length of an INIT request: `struct fuse_in_header` and `struct fuse_init_in`.
const INIT_LEN: u32 = 104;

/// The protocol as fuser speaks it: 7.40.
const PROTOCOL: [u32; 2] = [7, 40];

/// The readahead that the kernel offers, in bytes. Only the first process's answer to it counts.
const MAX_READAHEAD: u32 = 128 << 10;

/// Code of the notification that asks for all taken requests again. Linux 6.9 and later.
const FUSE_NOTIFY_RESEND: i32 = 7;

/// Length of a notification without a body: `struct fuse_out_header`.
const NOTIFICATION_LEN: u32 = 16;

/// Most bytes of an answer to INIT, which is a header and `struct fuse_init_out`.
const ANSWER_MAX: usize = 256;

/// What keeps a hidden session alive, and what a successor needs to go on with it.
#[derive(Debug)]
pub struct Descriptors {
    /// The connection.
    pub device: OwnedFd,
    /// The detached mount, through which the files of the session are opened.
    pub mount: OwnedFd,
}

/// Whether the connection still exists.
pub(crate) fn is_alive(device: BorrowedFd<'_>) -> bool {
    let mut ready = [PollFd::new(device, PollFlags::POLLIN)];
    // The kernel reports an error condition for a connection that was aborted or whose mount is gone.
    let polled = poll(&mut ready, PollTimeout::ZERO).is_ok();
    let dead = PollFlags::POLLERR | PollFlags::POLLNVAL | PollFlags::POLLHUP;
    polled
        && !ready
            .iter()
            .any(|fd| fd.revents().is_none_or(|events| events.intersects(dead)))
}

/// Makes a session out of a live connection. No request is taken before it runs.
pub(crate) fn connect(
    adapter: Adapter,
    device: BorrowedFd<'_>,
    config: Config,
) -> Result<fuser::Session<Adapter>, Error> {
    let failed = |what: &str| {
        let what = format!("taking a FUSE session over: {what}");
        move |source: io::Error| Error::io(what, source)
    };
    let kind = SockType::SeqPacket;
    let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| failed("making a socket pair")(errno.into()))?;
    let mut kernel_side = std::fs::File::from(ours);
    kernel_side
        .write_all(&init_request())
        .map_err(failed("writing the greeting"))?;
    let connection =
        fuser::Session::from_fd(adapter, theirs, config.acl, config).map_err(failed("greeting"))?;
    let mut answer = [0; ANSWER_MAX];
    let len = kernel_side
        .read(&mut answer)
        .map_err(failed("reading the answer"))?;
    check_answer(answer.get(..len).unwrap_or_default()).map_err(failed("checking the answer"))?;
    kernel::replace_descriptor(device, connection.as_fd()).map_err(failed("replacing the socket"))?;
    Ok(connection)
}

/// Asks the kernel for every request that was taken and not answered.
pub(crate) fn resend(device: BorrowedFd<'_>) -> Result<(), Error> {
    let mut notification = Vec::new();
    notification.extend(NOTIFICATION_LEN.to_ne_bytes());
    notification.extend(FUSE_NOTIFY_RESEND.to_ne_bytes());
    notification.extend(0_u64.to_ne_bytes());
    match nix::sys::uio::writev(device, &[IoSlice::new(&notification)]) {
        Ok(_) => Ok(()),
        Err(Errno::EINVAL) => Err(Error::Unsupported(
            "the kernel cannot send FUSE requests again (Linux 6.9); a session cannot be taken over"
                .to_owned(),
        )),
        Err(errno) => Err(Error::io("asking for unanswered FUSE requests", errno)),
    }
}

/// An INIT request that offers every capability.
fn init_request() -> Vec<u8> {
    let mut request = Vec::new();
    request.extend(INIT_LEN.to_ne_bytes());
    request.extend(FUSE_INIT.to_ne_bytes());
    // Number of the request, then a node number, which INIT does not have.
    request.extend(1_u64.to_ne_bytes());
    request.extend(0_u64.to_ne_bytes());
    // User, group and process of the asker, and the length of extensions.
    request.extend([0; 16]);
    for word in PROTOCOL.into_iter().chain([MAX_READAHEAD, u32::MAX, u32::MAX]) {
        request.extend(word.to_ne_bytes());
    }
    request.resize(INIT_LEN as usize, 0);
    request
}

/// An answer is a header with its own length and no error.
fn check_answer(answer: &[u8]) -> io::Result<()> {
    let word = |at: usize| {
        let bytes = answer.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let len = u32::try_from(answer.len()).ok();
    if len.is_some() && word(0) == len && word(4) == Some(0) {
        Ok(())
    } else {
        Err(io::Error::other("the greeting was refused"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_has_its_length() {
        let request = init_request();
        assert_eq!(request.len(), INIT_LEN as usize);
        assert_eq!(request[4..8], FUSE_INIT.to_ne_bytes());
        assert_eq!(request[40..44], 7_u32.to_ne_bytes());
    }

    #[test]
    fn only_a_whole_answer_without_error_counts() {
        let header =
            |len: u32, error: i32| [&len.to_ne_bytes()[..], &error.to_ne_bytes(), &[0; 8], &[0; 64]].concat();
        assert!(check_answer(&header(80, 0)).is_ok());
        assert!(check_answer(&header(80, -5)).is_err());
        assert!(check_answer(&header(79, 0)).is_err());
        assert!(check_answer(&[]).is_err());
    }

    #[test]
    fn what_is_no_connection_is_not_asked_again() {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        assert!(is_alive(ours.as_fd()));
        drop(theirs);
        assert!(!is_alive(ours.as_fd()));
        assert!(resend(ours.as_fd()).is_err());
    }
}
