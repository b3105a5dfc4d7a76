//! The states of chunks under every order of steps that a random scheduler finds: readers, a writer, an evictor and a flusher
//! on two chunks. The disk is a model: what was written, what of it is synced, and the bits.

// The module is built here on the primitives of the model checker.
#[path = "../src/cache/states.rs"]
#[expect(dead_code, reason = "the model does not use every state")]
mod states;

mod primitives {
    pub(super) use shuttle::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
    pub(super) use shuttle::sync::{PoisonError, RwLock};
}

use shuttle::sync::{Arc, Mutex};
use shuttle::thread;
use states::{ChunkStates, Trust};

const CHUNKS: usize = 2;
/// Orders that are tried: some seconds of them.
const ORDERS: usize = 20_000;

/// What the disk holds of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Block {
    /// What a read finds.
    right: bool,
    /// What a power cut leaves.
    synced: bool,
}

#[derive(Debug)]
struct Disk {
    blocks: [Mutex<Block>; CHUNKS],
    bits: Mutex<[bool; CHUNKS]>,
}

impl Disk {
    fn new() -> Self {
        Self {
            blocks: [Mutex::default(), Mutex::default()],
            bits: Mutex::default(),
        }
    }

    fn write(&self, chunk: usize) {
        *self.blocks[chunk].lock().expect("not poisoned") = Block {
            right: true,
            synced: false,
        };
    }

    fn sync(&self) {
        for block in &self.blocks {
            let mut block = block.lock().expect("not poisoned");
            block.synced = block.right;
        }
    }

    fn set_bits(&self, chunks: &[usize], value: bool) {
        for chunk in chunks {
            if value {
                let block = *self.blocks[*chunk].lock().expect("not poisoned");
                assert!(block.synced, "a bit without its bytes on the disk");
            }
            self.bits.lock().expect("not poisoned")[*chunk] = value;
        }
    }

    fn punch(&self, chunk: usize) {
        assert!(
            !self.bits.lock().expect("not poisoned")[chunk],
            "a hole with a bit"
        );
        *self.blocks[chunk].lock().expect("not poisoned") = Block::default();
    }
}

fn store(states: &ChunkStates, disk: &Disk, chunk: usize) {
    if !states.is_trusted(chunk) {
        let written = states.store(chunk, || {
            disk.write(chunk);
            Ok::<(), ()>(())
        });
        written.expect("nothing fails");
    }
}

fn read(states: &ChunkStates, disk: &Disk, chunk: usize) {
    let shown = states.read(chunk..chunk + 1, || {
        Some(disk.blocks[chunk].lock().expect("not poisoned").right)
    });
    assert_ne!(shown, Some(false), "a hole was shown");
}

fn flush(states: &ChunkStates, disk: &Disk) {
    for _ in 0..2 {
        let fresh = states.fresh();
        disk.sync();
        let noted = states.note(&fresh, |chunks| {
            disk.set_bits(chunks, true);
            Ok::<(), ()>(())
        });
        if noted.expect("nothing fails") {
            return;
        }
    }
}

fn evict(states: &ChunkStates, disk: &Disk, chunk: usize) {
    let unnote = || {
        disk.set_bits(&[chunk], false);
        Ok::<(), ()>(())
    };
    let removed = states.remove(&[chunk], unnote, |present| {
        if !present(chunk) {
            disk.punch(chunk);
        }
    });
    removed.expect("nothing fails");
}

#[test]
fn no_order_of_steps_shows_a_hole_or_notes_what_is_not_synced() {
    shuttle::check_random(
        || {
            let states = Arc::new(ChunkStates::new(CHUNKS));
            let disk = Arc::new(Disk::new());
            store(&states, &disk, 0);
            let run = |work: fn(&ChunkStates, &Disk)| {
                let (states, disk) = (states.clone(), disk.clone());
                thread::spawn(move || work(&states, &disk))
            };
            let threads = [
                run(|states, disk| (0..CHUNKS).for_each(|chunk| read(states, disk, chunk))),
                run(|states, disk| {
                    (0..CHUNKS).for_each(|chunk| store(states, disk, chunk));
                    read(states, disk, 0);
                    store(states, disk, 0);
                }),
                run(|states, disk| {
                    evict(states, disk, 0);
                    evict(states, disk, 0);
                }),
                run(flush),
            ];
            for thread in threads {
                thread.join().expect("no panic");
            }
        },
        ORDERS,
    );
}

#[test]
fn a_chunk_is_not_trusted_when_it_goes_while_it_is_verified() {
    shuttle::check_random(
        || {
            let states = Arc::new(ChunkStates::new(CHUNKS));
            let disk = Arc::new(Disk::new());
            disk.write(0);
            disk.sync();
            disk.set_bits(&[0], true);
            states.found(0);
            let (of_evictor, its_disk) = (states.clone(), disk.clone());
            let evictor = thread::spawn(move || evict(&of_evictor, &its_disk, 0));
            let trust = states.trust(0, || disk.blocks[0].lock().expect("not poisoned").right);
            assert_ne!(trust, Trust::Bad, "a chunk that is present is whole");
            read(&states, &disk, 0);
            evictor.join().expect("no panic");
            assert!(!states.is_trusted(0) && !states.is_present(0));
        },
        ORDERS,
    );
}
