//! Credentials that somebody handed over for one repository, kept in memory.
//!
//! They go before those of files, for the registry's own host only: a mirror does not get them. Each repository has the last
//! ones. The process forgets them when it ends, and the ones used least lately when there are too many.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Mutex;

use lru::LruCache;

use super::Reference;
use super::credentials::{Credential, Found};
use crate::sync::lock;

/// Repositories whose credentials are kept. Each takes some hundred bytes.
const KEPT: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not 0");
/// Ports that a URL does not show.
const IMPLIED_PORTS: [&str; 2] = [":443", ":80"];

/// Host and repository.
type Key = (String, String);

/// The credentials that were handed over.
pub(super) struct HandedOver {
    kept: Mutex<LruCache<Key, Credential>>,
}

impl Default for HandedOver {
    fn default() -> Self {
        Self {
            kept: Mutex::new(LruCache::new(KEPT)),
        }
    }
}

impl fmt::Debug for HandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandedOver({} repositories)", lock(&self.kept).len())
    }
}

impl HandedOver {
    /// Replaces what the repository of `reference` has, and gives that.
    pub(super) fn put(&self, reference: &Reference, credential: Option<Credential>) -> Option<Credential> {
        let key = key(reference.api_host(), reference.repository());
        let mut kept = lock(&self.kept);
        match credential {
            Some(credential) => kept.put(key, credential),
            None => kept.pop(&key),
        }
    }

    /// What a repository of a host has.
    pub(super) fn get(&self, host: &str, repository: &str) -> Option<Found> {
        let credential = lock(&self.kept).get(&key(host, repository))?.clone();
        Some(Found {
            credential: Some(credential),
            origin: "with credentials that came with a pull".to_owned(),
        })
    }
}

fn key(host: &str, repository: &str) -> Key {
    let shown = IMPLIED_PORTS.iter().find_map(|port| host.strip_suffix(port));
    (shown.unwrap_or(host).to_owned(), repository.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str) -> Option<Credential> {
        Some(Credential::Password {
            user: user.to_owned(),
            password: "s3cret".to_owned(),
        })
    }

    #[test]
    fn a_repository_has_the_last_ones_and_no_other_has_them() {
        let handed_over = HandedOver::default();
        let image: Reference = "r.io:443/team/app:1".parse().unwrap();
        assert_eq!(handed_over.put(&image, password("a")), None);
        assert_eq!(handed_over.put(&image, password("b")), password("a"));
        let found = handed_over.get("r.io", "team/app").unwrap();
        assert_eq!(found.credential, password("b"));
        for (host, repository) in [("r.io", "team"), ("r.io", "team/app2"), ("mirror.io", "team/app")] {
            assert!(handed_over.get(host, repository).is_none());
        }
        assert_eq!(handed_over.put(&image, None), password("b"));
        assert!(handed_over.get("r.io", "team/app").is_none());
    }

    #[test]
    fn docker_hub_is_found_by_the_host_that_answers_for_it() {
        let handed_over = HandedOver::default();
        handed_over.put(&"busybox".parse().unwrap(), password("a"));
        assert!(
            handed_over
                .get("registry-1.docker.io", "library/busybox")
                .is_some()
        );
    }

    #[test]
    fn nothing_is_shown() {
        let handed_over = HandedOver::default();
        handed_over.put(&"r.io/a".parse().unwrap(), password("a"));
        assert!(!format!("{handed_over:?} {:?}", handed_over.get("r.io", "a")).contains("s3cret"));
    }
}
