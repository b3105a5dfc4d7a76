//! Progress bars on standard error, shown only on a terminal: of conversions, and of layers that are streamed.
//!
//! One bar for the whole image and one for each layer under way. Counts are stored bytes of the source.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sluice_converter::progress::Progress;
use sluice_converter::report::Outcome;
use sluice_format::BlobDigest;
use sluice_storage::StreamProgress;

use crate::wiring;

/// Redraws per second; more only costs time on slow terminals.
const REDRAWS_PER_SECOND: u8 = 10;

/// Hex digits of a digest that tell layers apart for a person.
const SHORT_DIGEST_LEN: usize = 12;

/// Bars of one image.
pub(crate) struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    layers: Mutex<HashMap<BlobDigest, ProgressBar>>,
}

impl fmt::Debug for Bars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bars")
    }
}

impl Bars {
    /// Bars that appear when work is planned; none at all for `hidden` or when standard error is no terminal.
    pub(crate) fn new(hidden: bool) -> Self {
        let target = if hidden {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND)
        };
        let all = MultiProgress::with_draw_target(target);
        let total = all.add(ProgressBar::no_length().with_style(style(
            "{prefix:>12} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        )));
        Self {
            all,
            total: total.with_prefix("image"),
            layers: Mutex::default(),
        }
    }

    /// Removes all bars, so that the result is printed on a clean terminal.
    pub(crate) fn clear(&self) {
        self.layers().clear();
        // A terminal that went away needs no cleaning.
        let _ = self.all.clear();
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<BlobDigest, ProgressBar>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` with bars, hidden when the result is for a machine, and takes them away at its end.
pub(crate) fn with_bars<T>(
    hidden: bool,
    work: impl AsyncFnOnce(&Bars) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let bars = Bars::new(hidden);
    let result = wiring::run(work(&bars));
    bars.clear();
    result
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Bars {
    fn begin(&self, stored_len: u64) {
        self.total.set_length(stored_len);
        self.total.enable_steady_tick(Duration::from_millis(200));
    }

    fn begin_layer(&self, layer: BlobDigest, stored_len: u64) {
        let short: String = layer.0.to_hex().chars().take(SHORT_DIGEST_LEN).collect();
        let bar = ProgressBar::new(stored_len)
            .with_style(style("{prefix:>12} [{bar:30}] {bytes}/{total_bytes}"))
            .with_prefix(short);
        let bar = self.all.add(bar);
        self.layers().insert(layer, bar);
    }

    fn advance(&self, layer: BlobDigest, stored_bytes: u64) {
        self.total.inc(stored_bytes);
        if let Some(bar) = self.layers().get(&layer) {
            bar.inc(stored_bytes);
        }
    }

    fn end_layer(&self, layer: BlobDigest) {
        if let Some(bar) = self.layers().remove(&layer) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }
}

impl Progress for Bars {
    fn planned(&self, _layers: usize, stored_len: u64) {
        self.begin(stored_len);
    }

    fn layer_started(&self, layer: BlobDigest, stored_len: u64) {
        self.begin_layer(layer, stored_len);
    }

    fn layer_advanced(&self, layer: BlobDigest, stored_bytes: u64) {
        self.advance(layer, stored_bytes);
    }

    fn layer_finished(&self, layer: BlobDigest, _outcome: Outcome) {
        self.end_layer(layer);
    }
}

impl StreamProgress for Bars {
    fn planned(&self, _layers: usize, stored_len: u64) {
        self.begin(stored_len);
    }

    fn started(&self, layer: BlobDigest, stored_len: u64) {
        self.begin_layer(layer, stored_len);
    }

    fn advanced(&self, layer: BlobDigest, bytes: u64) {
        self.advance(layer, bytes);
    }

    fn finished(&self, layer: BlobDigest) {
        self.end_layer(layer);
    }
}
