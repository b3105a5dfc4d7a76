//! The shared-memory primitives of the [`states`](super::states) module, in one place: a model checker builds that module
//! on its own.

pub(super) use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
pub(super) use std::sync::{PoisonError, RwLock};
