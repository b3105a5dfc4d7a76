//! Registries.
mod reference;
pub use self::reference::Reference;
