//! What the benchmarks share: running commands with their resource use, medians, and tables; mounts, containers on them, and the link that they
//! are fed through.
//!
//! A claim of speed here is a ratio of two things measured in one run, in turn, several times: machines drift and are shared.

pub mod command;
pub mod container;
pub mod daemons;
pub mod decode;
pub mod link;
pub mod mounted;
pub mod peer;
pub mod started;
pub mod stats;
pub mod table;
pub mod walk;

/// The median of some measurements; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len() / 2), sorted.len() % 2) {
        (None, _) => 0.0,
        (Some(upper), 1) => *upper,
        (Some(upper), _) => f64::midpoint(sorted[sorted.len() / 2 - 1], *upper),
    }
}

/// The median with the least and the largest value, two decimals each.
pub fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        0 => "-".to_owned(),
        1 => format!("{least:.2}"),
        _ => format!("{:.2} ({least:.2}–{most:.2})", median(values)),
    }
}

/// A ratio with two decimals, or a dash when there is nothing to compare with.
pub fn ratio(value: f64, base: Option<f64>) -> String {
    match base {
        Some(base) if base > 0.0 => format!("{:.2}", value / base),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{median, ratio, spread};

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn spreads_and_ratios_as_text() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), "2.00 (1.00–3.00)");
        assert_eq!((spread(&[1.0]), spread(&[])), ("1.00".to_owned(), "-".to_owned()));
        assert_eq!(
            (ratio(3.0, Some(2.0)), ratio(3.0, None)),
            ("1.50".to_owned(), "-".to_owned())
        );
    }
}
