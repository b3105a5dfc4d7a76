//! Locks whose holder cannot leave them half-changed.
//!
//! Every mutex of this crate guards a map or a counter that is changed in one call, so a panic elsewhere while the lock was
//! held leaves it consistent and poisoning carries no news.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, poisoned or not.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
