//! Start-up profiles: record what a start demands, keep it, and say in which order the next start should fetch it.
//!
//! A [`Recorder`] watches one start: the engine tells it every chunk that a reader demands, and it stops by itself at a quiet
//! point. [`merge()`] lays the [`Recording`] over what earlier starts left and lets go of what is no longer demanded. The
//! [`ProfileStore`] keeps one [`Profile`](sluice_format::Profile) per image ID in the cache directory; `artifact` publishes it
//! beside the image and finds it there. [`plan()`] turns a profile into chunks of the image as it is cut here.
//!
//! A profile is a hint from whoever can write to the repository: it names chunks of the image and nothing else, so a wrong one
//! fetches in vain and never shows a wrong byte. Nothing here fetches layer bytes, and nothing here fails a mount.

mod artifact;
mod merge;
mod plan;
mod recorder;
mod recording;
mod store;

pub use self::artifact::{fetch_profile, find_profile, push_profile};
pub use self::merge::merge;
pub use self::plan::{PlannedChunk, plan};
pub use self::recorder::{RecordedLayer, Recorder, RecordingOptions, Waiting};
pub use self::recording::{EndReason, Recording};
pub use self::store::{ProfileStore, StoredProfile};
