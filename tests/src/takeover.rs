//! What the server that is killed (`src/bin/takeover-server.rs`) and the tests that read from it agree on.

use std::fs;
use std::ops::Range;
use std::path::Path;

use nix::unistd::Pid;

/// Length of the file whose bytes follow from their position.
pub const PATTERN_LEN: u64 = 32 << 20;

/// Length of the file of which every read takes [`SLOW_MS`].
pub const SLOW_LEN: u64 = 1 << 20;

/// How long a read of the slow file takes, in milliseconds.
pub const SLOW_MS: u64 = 1500;

/// Directory that the image is mounted on, below the server's directory.
pub const TARGET: &str = "target";

/// File that names the serving process, below the server's directory; written when it starts.
pub const PID_FILE: &str = "pid";

/// File with one line per start of the server: "created" or "adopted".
pub const LOG_FILE: &str = "starts";

/// File that makes the server never answer who looks for a layer, as long as it is there when the question comes; below the server's
/// directory.
pub const HOLD_FILE: &str = "hold";

/// File that tells of a question that is never answered, below the server's directory.
pub const HELD_FILE: &str = "held";

/// Program that lies in the image and is executed from it.
pub const TOOL: &str = "/bin/true";

/// Bytes of the pattern.
pub fn pattern(range: Range<u64>) -> Vec<u8> {
    range
        .map(|at| ((at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 8 * 8)) as u8)
        .collect()
}

/// The process that serves at the moment.
pub fn server(directory: &Path) -> Option<Pid> {
    let text = fs::read_to_string(directory.join(PID_FILE)).ok()?;
    text.trim().parse().ok().map(Pid::from_raw)
}
