//! What a reader does to a tree: walking it, reading all of it, reading at random.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::bail;

/// Bytes per read call, as `cat` and `tar` use.
const READ_LEN: usize = 128 << 10;

/// Bytes per read call of a reader that wants throughput.
const WIDE_READ_LEN: usize = 1 << 20;

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

/// Visits a tree and reads every file on the way, each once however many names it has, in the order in which `tar` does. Gives bytes and
/// seconds.
///
/// # Errors
/// When the tree cannot be read.
pub fn read_tree(root: &Path) -> anyhow::Result<(u64, f64)> {
    let (mut buffer, mut total) = (vec![0; WIDE_READ_LEN], 0);
    let start = Instant::now();
    visit_files(root, &mut |path| {
        total += read_file(path, &mut buffer)?;
        Ok(())
    })?;
    Ok((total, start.elapsed().as_secs_f64()))
}

/// The same by several threads, which take the next file as they are done with one. The walk comes first and is measured too.
///
/// # Errors
/// When the tree cannot be read.
pub fn read_tree_in_parallel(root: &Path, threads: usize) -> anyhow::Result<(u64, f64)> {
    let start = Instant::now();
    let mut files = Vec::new();
    visit_files(root, &mut |path| {
        files.push(path.to_owned());
        Ok(())
    })?;
    let next = AtomicUsize::new(0);
    let work = || -> anyhow::Result<u64> {
        let (mut buffer, mut total) = (vec![0; WIDE_READ_LEN], 0);
        while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            total += read_file(path, &mut buffer)?;
        }
        Ok(total)
    };
    let total = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_fold(0, |total, worker| match worker.join() {
                Ok(read) => Ok(total + read?),
                Err(_) => bail!("a reading thread panicked"),
            })
    })?;
    Ok((total, start.elapsed().as_secs_f64()))
}

/// Calls `visit` for every regular file, depth first in the order of directories, once per file.
fn visit_files(root: &Path, visit: &mut dyn FnMut(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let (mut todo, mut linked) = (vec![fs::read_dir(root)?], HashSet::new());
    while let Some(dir) = todo.last_mut() {
        let Some(entry) = dir.next() else {
            todo.pop();
            continue;
        };
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            todo.push(fs::read_dir(entry.path())?);
        } else if metadata.is_file()
            && (metadata.nlink() == 1 || linked.insert((metadata.dev(), metadata.ino())))
        {
            visit(&entry.path())?;
        }
    }
    Ok(())
}

fn read_file(path: &Path, buffer: &mut [u8]) -> anyhow::Result<u64> {
    let (mut file, mut total) = (File::open(path)?, 0);
    loop {
        match file.read(buffer)? {
            0 => return Ok(total),
            len => total += len as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_read_once() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let nested = dir.path().join("a/b");
        fs::create_dir_all(&nested)?;
        fs::write(nested.join("one"), [1; 1000])?;
        fs::write(dir.path().join("two"), [2; 24])?;
        fs::hard_link(dir.path().join("two"), nested.join("two-again"))?;
        std::os::unix::fs::symlink("two", dir.path().join("link"))?;
        assert_eq!(read_tree(dir.path())?.0, 1024);
        assert_eq!(read_tree_in_parallel(dir.path(), 3)?.0, 1024);
        Ok(())
    }
}
