//! What a reader does to a tree: walking it, reading all of it, reading at random.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes per read call, as `cat` and `tar` use.
const READ_LEN: usize = 128 << 10;

/// Bytes of a random read.
const PAGE: u64 = 4096;

/// Reads every directory and asks every entry for its attributes. Gives the number of entries and the seconds.
///
/// # Errors
/// When the tree cannot be read.
pub fn walk(root: &Path) -> anyhow::Result<(u64, f64)> {
    let start = Instant::now();
    let (mut entries, mut todo) = (0, vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            entries += 1;
            if metadata.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    Ok((entries, start.elapsed().as_secs_f64()))
}

/// Regular files below `root` with their lengths, in the order of a walk.
///
/// # Errors
/// When the tree cannot be read.
pub fn files(root: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let (mut files, mut todo) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            match () {
                () if metadata.is_dir() => todo.push(entry.path()),
                () if metadata.is_file() => files.push((entry.path(), metadata.size())),
                () => {}
            }
        }
    }
    Ok(files)
}

/// Reads files from start to end. Gives bytes and seconds.
///
/// # Errors
/// When a file cannot be read.
pub fn read_all(files: &[(PathBuf, u64)]) -> anyhow::Result<(u64, f64)> {
    let (mut buffer, mut total) = (vec![0; READ_LEN], 0);
    let start = Instant::now();
    for (path, _) in files {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                len => total += len as u64,
            }
        }
    }
    Ok((total, start.elapsed().as_secs_f64()))
}

/// Reads `count` pages at places spread evenly but out of order over the files of at least one page. Gives reads and seconds.
///
/// # Errors
/// When a file cannot be read.
pub fn read_pages(files: &[(PathBuf, u64)], count: u64) -> anyhow::Result<(u64, f64)> {
    let large: Vec<_> = files.iter().filter(|(_, len)| *len >= PAGE).collect();
    let total: u64 = large.iter().map(|(_, len)| len / PAGE).sum();
    anyhow::ensure!(total > 0, "the tree has no file of at least a page");
    let mut ends = Vec::with_capacity(large.len());
    let mut sum = 0;
    for (_, len) in &large {
        sum += len / PAGE;
        ends.push(sum);
    }
    let handles: Vec<File> = large
        .iter()
        .map(|(path, _)| File::open(path))
        .collect::<Result<_, _>>()?;
    // A multiplier coprime to most totals walks the pages in a scattered but repeatable order.
    let (mut page, mut buffer) = (0, [0; PAGE as usize]);
    let start = Instant::now();
    for _ in 0..count {
        page = (page + 2_654_435_761) % total;
        let at = ends.partition_point(|end| *end <= page);
        let first = if at == 0 { 0 } else { ends[at - 1] };
        handles[at].read_exact_at(&mut buffer, (page - first) * PAGE)?;
    }
    Ok((count, start.elapsed().as_secs_f64()))
}
