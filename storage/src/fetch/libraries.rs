//! The libraries of an image, for its programs to be looked for in all its layers.

use std::sync::{Arc, Weak};

use sluice_format::program::LibraryPlaces;

use super::Source;
use super::loader::Programs;

/// One layer of an image, as far as programs are looked into. A layer that several images share knows those of one of them, and must not keep
/// the other layers of that alive.
#[derive(Debug)]
pub(crate) struct ProgramLayer {
    pub(crate) source: Weak<Source>,
    pub(crate) programs: Arc<Programs>,
}

/// Where the libraries of an image lie.
#[derive(Debug)]
pub(crate) struct Libraries {
    places: LibraryPlaces,
    /// Lowest first.
    layers: Vec<ProgramLayer>,
}

impl Libraries {
    /// `places` names layers by their position in `layers`, from 1.
    pub(crate) fn new(places: LibraryPlaces, layers: Vec<ProgramLayer>) -> Self {
        Self { places, layers }
    }

    /// The layer of a library, the programs that were met in it, and where in it the library begins.
    pub(crate) fn find(&self, name: &[u8]) -> Option<(Arc<Source>, Arc<Programs>, u64)> {
        let place = self.places.find(name)?;
        let layer = self.layers.get(usize::from(place.device).checked_sub(1)?)?;
        Some((layer.source.upgrade()?, layer.programs.clone(), place.plain_off))
    }
}
