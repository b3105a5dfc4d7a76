//! Lazy or whole: how much of an image comes to this host, and when.
//!
//! A layer that can be read by ranges may be *lazy*, which fetches what readers ask for and a little around it, or *whole*, which fetches
//! everything in the lane of fills, where it yields to all readers. [`choose`] decides that for every layer of an image from numbers only
//! ([`LayerFacts`], [`Link`]), and is the one place that does. A layer that cannot be read by ranges has come whole before anybody asks.
//!
//! | asked for | layer | comes |
//! |---|---|---|
//! | whole | any | whole, at once |
//! | lazy | any | lazily, whatever its readers do |
//! | auto | nearly all of the image is what earlier starts demanded | whole, at once |
//! | auto | shorter than what the link carries while a reader waits for parts | whole, when it is touched |
//! | auto | any other | lazily, and whole once readers turn out to read it, or the image, from end to end |
//!
//! Why short layers come whole: a first read costs a round trip and most likely leads to a second one, so readers wait longer than the whole layer
//! takes. One that nobody touches is not fetched. What readers do is seen in the module `readahead`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sluice_format::Profile;

use crate::fetch::WholeWhen;
use crate::fetch::readahead::Reading;
use crate::{LazyLayer, PlainLayer, profile};

/// Part of an image, in percent of its stored bytes, that starts may demand before all of it is wanted. Recordings are cut off at half of an image, since
/// who demands more reads it instead of starting from it; stored bytes are not quite distributed as plain ones. Usual starts demand less than a tenth.
const DENSE_PERCENT: u64 = 45;

/// Round trips that a lazy layer costs at least: a read, and what it leads to.
const ROUND_TRIPS: u32 = 2;

/// Stored length up to which a layer comes whole on a link that is not known yet: what 100 Mbit/s carry in two round trips of 20 ms.
const SHORT_UNKNOWN: u64 = 512 << 10;

/// Bounds of that length on a link that is known. A slow link with a long delay would make large layers short.
const SHORT_BOUNDS: (u64, u64) = (64 << 10, 4 << 20);

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LayerMode {
    /// What the numbers say.
    #[default]
    Auto,
    /// Nothing but what readers ask for.
    Lazy,
    /// Everything, at once.
    Whole,
}

impl FromStr for LayerMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "lazy" => Ok(Self::Lazy),
            "whole" => Ok(Self::Whole),
            _ => Err(format!("\"{text}\" is none of \"auto\", \"lazy\" and \"whole\"")),
        }
    }
}

impl fmt::Display for LayerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Lazy => "lazy",
            Self::Whole => "whole",
        })
    }
}

/// What counts of one layer. Lengths are stored bytes of its chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerFacts {
    /// All of them.
    pub stored_len: u64,
    /// Those that are not on this host.
    pub missing_len: u64,
    /// Those that earlier starts of the image demanded.
    pub profiled_len: u64,
    /// It cannot be read by ranges.
    pub is_streamed: bool,
}

/// What is known of the way to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Bytes per second, measured while it was busy.
    pub rate: Option<u64>,
    /// Time from a request to its first byte.
    pub first_byte: Option<Duration>,
}

/// Why layers come whole at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was asked for.
    Asked,
    /// Starts demand nearly all of the image.
    Dense,
}

/// How the layers of an image come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What was asked for.
    pub mode: LayerMode,
    /// Positions of the layers that come whole at once, as far as they are not here yet.
    pub whole: Vec<usize>,
    /// Why; `None` when there are none.
    pub reason: Option<Reason>,
    /// Positions of the layers that come whole when they are touched.
    pub short: Vec<usize>,
    /// Stored length up to which a layer counts as short.
    pub short_len: u64,
    /// Percentage of the image's stored bytes that earlier starts demanded.
    pub profiled_percent: u64,
    link: Link,
    layers: usize,
    streamed: usize,
    whole_len: u64,
}

/// What counts of the layers of an image, which are read through `plain` in the same order. Does not block.
pub fn facts(layers: &[LazyLayer], plain: &[Arc<PlainLayer>], known: Option<&Profile>) -> Vec<LayerFacts> {
    let mut facts: Vec<LayerFacts> = layers
        .iter()
        .zip(plain)
        .map(|(layer, plain)| {
            let chunks = layer.index.chunks.chunks().iter();
            LayerFacts {
                stored_len: chunks.map(|chunk| u64::from(chunk.stored_len)).sum(),
                missing_len: plain.next_missing(u64::MAX).stored_len,
                profiled_len: 0,
                is_streamed: layer.index.is_streamed(),
            }
        })
        .collect();
    let tables: Vec<_> = layers
        .iter()
        .map(|layer| (layer.diff_id, &*layer.index.chunks))
        .collect();
    for planned in known.map_or_else(Vec::new, |known| profile::plan(known, &tables)) {
        let chunk = &layers[planned.layer].index.chunks.chunks()[planned.chunk];
        if let Some(facts) = facts.get_mut(planned.layer) {
            facts.profiled_len += u64::from(chunk.stored_len);
        }
    }
    facts
}

/// Decides. The same numbers give the same choice.
pub fn choose(mode: LayerMode, layers: &[LayerFacts], link: Link) -> Choice {
    let sum = |part: fn(&LayerFacts) -> u64| {
        let lazy = layers.iter().filter(|layer| !layer.is_streamed);
        lazy.map(part).fold(0, u64::saturating_add)
    };
    let (stored_len, profiled_len) = (sum(|layer| layer.stored_len), sum(|layer| layer.profiled_len));
    let profiled_percent = profiled_len.saturating_mul(100) / stored_len.max(1);
    let short_len = short_len(link);
    let is_open = |(_, layer): &(usize, &LayerFacts)| !layer.is_streamed && layer.missing_len > 0;
    let open = || layers.iter().enumerate().filter(is_open).map(|(at, _)| at);
    let reason = match mode {
        LayerMode::Whole => Some(Reason::Asked),
        LayerMode::Auto if profiled_percent > DENSE_PERCENT => Some(Reason::Dense),
        LayerMode::Auto | LayerMode::Lazy => None,
    };
    let whole: Vec<usize> = open().filter(|_| reason.is_some()).collect();
    let is_short = |at: &usize| mode == LayerMode::Auto && layers[*at].stored_len <= short_len;
    Choice {
        mode,
        reason: reason.filter(|_| !whole.is_empty()),
        whole_len: whole.iter().map(|at| layers[*at].missing_len).sum(),
        short: open().filter(is_short).collect(),
        whole,
        short_len,
        profiled_percent,
        link,
        layers: layers.len(),
        streamed: layers.iter().filter(|layer| layer.is_streamed).count(),
    }
}

/// Stored length of a layer that the link carries in the round trips that laziness costs.
fn short_len(link: Link) -> u64 {
    let (Some(rate), Some(first_byte)) = (link.rate, link.first_byte) else {
        return SHORT_UNKNOWN;
    };
    let micros = (first_byte * ROUND_TRIPS).as_micros();
    let carried = u128::from(rate) * micros / 1_000_000;
    let (least, most) = SHORT_BOUNDS;
    u64::try_from(carried).unwrap_or(most).clamp(least, most)
}

impl Choice {
    /// Tells the layers how to come, and gives those that come whole at once. `layers` are those of the image, in order.
    pub fn apply(&self, layers: &[Arc<PlainLayer>]) -> Vec<Arc<PlainLayer>> {
        let image = Reading::new(layers.iter().map(|layer| layer.chunks()).sum());
        for (at, layer) in layers.iter().enumerate() {
            let when = match self.mode {
                LayerMode::Lazy => WholeWhen::Never,
                LayerMode::Auto | LayerMode::Whole if self.short.contains(&at) => WholeWhen::Touched,
                LayerMode::Auto | LayerMode::Whole => WholeWhen::Dense,
            };
            layer.come_whole(when, image.clone());
        }
        let whole = self.whole.iter();
        whole.filter_map(|at| layers.get(*at).cloned()).collect()
    }

    /// Says in one line of the log what was chosen for `image`, and why.
    pub fn explain(&self, image: &str) {
        tracing::info!(
            image,
            asked = %self.mode,
            whole = self.whole.len(),
            whole_bytes = self.whole_len,
            reason = self.reason.map(Reason::text),
            short = self.short.len(),
            short_bytes = self.short_len,
            layers = self.layers,
            streamed = self.streamed,
            profiled_percent = self.profiled_percent,
            link_bytes_per_second = self.link.rate,
            first_byte_ms = self.link.first_byte.map(|wait| wait.as_millis()),
            "chose which layers come whole"
        );
    }
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Self::Asked => "asked for",
            Self::Dense => "starts demand nearly all of the image",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn layer(stored_len: u64) -> LayerFacts {
        LayerFacts {
            stored_len,
            missing_len: stored_len,
            ..LayerFacts::default()
        }
    }

    fn auto(layers: &[LayerFacts]) -> Choice {
        choose(LayerMode::Auto, layers, Link::default())
    }

    #[test]
    fn what_is_asked_for_is_chosen() {
        let streamed = LayerFacts {
            is_streamed: true,
            ..layer(MB)
        };
        let here = LayerFacts {
            missing_len: 0,
            ..layer(MB)
        };
        let layers = [layer(100 * MB), streamed, here, layer(1000)];
        let whole = choose(LayerMode::Whole, &layers, Link::default());
        assert_eq!((whole.whole, whole.reason), (vec![0, 3], Some(Reason::Asked)));
        let lazy = choose(LayerMode::Lazy, &layers, Link::default());
        assert_eq!((lazy.whole, lazy.reason), (vec![], None));
    }

    #[test]
    fn short_layers_come_whole_when_they_are_touched() {
        let here = LayerFacts {
            missing_len: 0,
            ..layer(1000)
        };
        let layers = [
            layer(100 * MB),
            layer(SHORT_UNKNOWN),
            layer(SHORT_UNKNOWN + 1),
            layer(1000),
            here,
        ];
        let choice = auto(&layers);
        assert_eq!((choice.short, choice.reason), (vec![1, 3], None));
        assert!(choice.whole.is_empty());
        assert_eq!(choice.short_len, SHORT_UNKNOWN);
        let lazy = choose(LayerMode::Lazy, &layers, Link::default());
        assert!(lazy.short.is_empty());
    }

    #[test]
    fn what_is_short_depends_on_the_link() {
        let short = |rate, milliseconds| {
            let link = Link {
                rate: Some(rate),
                first_byte: Some(Duration::from_millis(milliseconds)),
            };
            choose(LayerMode::Auto, &[], link).short_len
        };
        assert_eq!(short(12_500_000, 20), 500_000);
        // Slow and near, fast and far.
        assert_eq!(short(100_000, 1), SHORT_BOUNDS.0);
        assert_eq!(short(u64::MAX, 10_000), SHORT_BOUNDS.1);
        let half_known = Link {
            rate: Some(MB),
            first_byte: None,
        };
        assert_eq!(choose(LayerMode::Auto, &[], half_known).short_len, SHORT_UNKNOWN);
    }

    #[test]
    fn an_image_that_starts_read_nearly_all_of_comes_whole() {
        let profiled = |percent| LayerFacts {
            profiled_len: percent * MB,
            ..layer(100 * MB)
        };
        let dense = auto(&[profiled(90), profiled(40)]);
        assert_eq!((dense.whole, dense.reason), (vec![0, 1], Some(Reason::Dense)));
        assert_eq!(dense.profiled_percent, 65);
        assert_eq!(auto(&[profiled(80), profiled(10)]).reason, None);
        // What has come whole anyway says nothing of the rest.
        let streamed = LayerFacts {
            is_streamed: true,
            ..profiled(100)
        };
        assert_eq!(auto(&[streamed, profiled(20)]).profiled_percent, 20);
    }

    #[test]
    fn modes_have_names() {
        for mode in [LayerMode::Auto, LayerMode::Lazy, LayerMode::Whole] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("all".parse::<LayerMode>().is_err());
    }
}
