//! Descriptors that are kept for the child.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context as _;
use command_fds::FdMapping;

/// Number of the first descriptor that a child inherits beside the standard ones.
const FIRST: i32 = 3;

/// Most descriptors kept.
const DESCRIPTORS_MAX: i32 = 64;

/// Named descriptors, in the order of their arrival.
#[derive(Debug)]
pub(super) struct Store {
    kept: Vec<(String, OwnedFd)>,
    /// Occupies the numbers that the child's descriptors get, so that starting it never overwrites one in use here.
    _reserved: Vec<File>,
}

impl Store {
    /// An empty store. To be called before other descriptors are opened.
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut reserved = Vec::new();
        loop {
            let file = File::open("/dev/null").context("opening /dev/null")?;
            if file.as_raw_fd() >= FIRST + DESCRIPTORS_MAX {
                break;
            }
            reserved.push(file);
        }
        Ok(Self {
            kept: Vec::new(),
            _reserved: reserved,
        })
    }

    /// Keeps descriptors under a name, beside those that it has already.
    pub(super) fn put(&mut self, name: &str, descriptors: Vec<OwnedFd>) {
        for descriptor in descriptors {
            if self.kept.len() < usize::try_from(DESCRIPTORS_MAX).unwrap_or_default() {
                self.kept.push((name.to_owned(), descriptor));
            } else {
                tracing::warn!(name, "the store is full; a descriptor is closed");
            }
        }
    }

    /// Closes all descriptors of a name.
    pub(super) fn remove(&mut self, name: &str) {
        self.kept.retain(|(kept, _)| kept != name);
    }

    /// Names in order, with colons between them; `None` when there is nothing.
    pub(super) fn names(&self) -> Option<String> {
        let names: Vec<_> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(":"))
    }

    /// Number of descriptors.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Copies for a child, under consecutive numbers.
    pub(super) fn mappings(&self) -> anyhow::Result<Vec<FdMapping>> {
        let numbered = (FIRST..).zip(&self.kept).map(|(child_fd, (name, fd))| {
            let parent_fd = fd
                .try_clone()
                .with_context(|| format!("copying descriptor {name}"))?;
            Ok(FdMapping { parent_fd, child_fd })
        });
        numbered.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn descriptors_keep_their_order_and_go_by_name() {
        let mut store = Store::new().unwrap();
        assert_eq!(store.names(), None);
        store.put("a", vec![null(), null()]);
        store.put("b", vec![null()]);
        assert_eq!(store.names().as_deref(), Some("a:a:b"));
        let numbers: Vec<_> = store
            .mappings()
            .unwrap()
            .iter()
            .map(|mapping| mapping.child_fd)
            .collect();
        assert_eq!(numbers, [3, 4, 5]);
        store.remove("a");
        assert_eq!(store.names().as_deref(), Some("b"));
    }

    #[test]
    fn a_full_store_takes_nothing_more() {
        let mut store = Store::new().unwrap();
        store.put("a", (0..=DESCRIPTORS_MAX).map(|_| null()).collect());
        assert_eq!(store.len(), 64);
    }
}
