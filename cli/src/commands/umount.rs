//! `sluice umount`.

use crate::args::UmountArgs;
use crate::wiring;

pub(super) fn run(args: &UmountArgs) -> anyhow::Result<()> {
    let run_dir = args.run_dir.clone().unwrap_or_else(wiring::default_run_dir);
    Ok(sluice_fuse::request_unmount(&run_dir, &args.dir, args.lazy)?)
}
