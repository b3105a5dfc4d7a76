//! Promise: however many images and containers a host has, there is one FUSE session and one mount per image, memory stays small, and when all
//! is removed nothing is left.

use anyhow::{Result, ensure};
use sluice_tests::crowd::{self, Crowd};
use sluice_tests::scratch::Scratch;

/// What the process may take when it is idle.
const MEMORY: u64 = 60_000_000;

#[test]
fn privileged_many_images_share_one_session_and_leave_nothing() -> Result<()> {
    const IMAGES: usize = 12;
    const CONTAINERS: usize = 2;
    let scratch = Scratch::new("images")?;
    let layout = crowd::images(&scratch, IMAGES, 300)?;
    let mut host = Crowd::start(&layout)?;
    // Without an image there is one session.
    let of_a_session = host.fuse_descriptors()?;
    ensure!(of_a_session > 0, "there is no session");
    for image in 0..IMAGES {
        host.pull(image)?;
        for number in 0..CONTAINERS {
            host.run(image, number)?;
        }
    }
    let descriptors = host.fuse_descriptors()?;
    ensure!(
        descriptors == of_a_session,
        "{descriptors} FUSE descriptors instead of {of_a_session}"
    );
    let trees = host.trees()?;
    ensure!(
        trees.len() == IMAGES && trees.iter().all(|tree| tree.fs_type == "erofs"),
        "{trees:#?}"
    );
    let memory = host.memory()?;
    ensure!(memory.anonymous <= MEMORY, "{memory:?}");
    host.remove_all()?;
    host.wait_for_nothing()?;
    Ok(())
}
