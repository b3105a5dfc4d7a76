//! Windows with holes.

use crate::gzip::WINDOW_LEN;
use crate::{FormatError, Limits};

/// Unused bytes between two used ones that are kept as zeros, because they cost less than another run: four bytes that compress badly.
const JOINED_GAP: usize = 8;

/// The last [`WINDOW_LEN`] plain bytes before a restart point, as far as anything copies from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseWindow {
    /// Where each run begins and its length, ascending, apart, within the window.
    runs: Vec<(u16, u16)>,
    /// The bytes of all runs.
    bytes: Vec<u8>,
}

impl SparseWindow {
    /// Keeps of `window`, the last bytes of the full one, what `is_used` says by position in the full one.
    pub(super) fn of(window: &[u8], is_used: &[bool]) -> Self {
        let missing = WINDOW_LEN.saturating_sub(window.len());
        let byte = |at: usize| match is_used.get(at) {
            Some(true) => at
                .checked_sub(missing)
                .and_then(|at| window.get(at))
                .copied()
                .unwrap_or(0),
            _ => 0,
        };
        let mut sparse = Self::default();
        let mut end = 0;
        for at in (0..WINDOW_LEN).filter(|at| is_used.get(*at) == Some(&true)) {
            match sparse.runs.last_mut() {
                Some((_, len)) if at - end <= JOINED_GAP => {
                    *len += (at + 1 - end) as u16;
                    sparse.bytes.extend((end..=at).map(byte));
                }
                _ => {
                    sparse.runs.push((at as u16, 1));
                    sparse.bytes.push(byte(at));
                }
            }
            end = at + 1;
        }
        sparse
    }

    /// Bytes that are kept.
    pub fn kept_len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the window into `full`, which has [`WINDOW_LEN`] bytes that are zero.
    pub(super) fn fill(&self, full: &mut [u8]) {
        let mut rest = &self.bytes[..];
        for (begin, len) in &self.runs {
            let (begin, len) = (usize::from(*begin), usize::from(*len));
            let (run, behind) = rest.split_at(len.min(rest.len()));
            if let Some(place) = full.get_mut(begin..begin + run.len()) {
                place.copy_from_slice(run);
            }
            rest = behind;
        }
    }
}

/// The windows by columns, each preceded by nothing, as counts say how long it is: count of windows as `u64`; runs of each as `u16`; of every
/// run, the bytes between the end of the run before it in the same window and its begin, as `u16`; of every run, its length as `u16`; the
/// bytes. Little-endian.
pub(crate) fn encode_windows(windows: &[SparseWindow]) -> Vec<u8> {
    let mut out = (windows.len() as u64).to_le_bytes().to_vec();
    let mut put = |number: u16| out.extend_from_slice(&number.to_le_bytes());
    // A window of 32 KiB has less than 2^15 runs, and its last byte has position 2^15 - 1.
    windows.iter().for_each(|window| put(window.runs.len() as u16));
    for window in windows {
        let mut end = 0;
        for (begin, len) in &window.runs {
            put(begin - end);
            end = begin + len;
        }
    }
    let runs = windows.iter().flat_map(|window| &window.runs);
    runs.for_each(|(_, len)| put(*len));
    windows
        .iter()
        .for_each(|window| out.extend_from_slice(&window.bytes));
    out
}

/// Parses what [`encode_windows`] wrote, to the end of `bytes`.
pub(crate) fn parse_windows(bytes: &[u8], limits: &Limits) -> Result<Vec<SparseWindow>, FormatError> {
    let mut rest = bytes;
    let count = take(&mut rest, 8)?;
    let count = count
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    FormatError::check_limit("number of windows in a layer", count, limits.chunks as u64)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let run_counts = take_column(&mut rest, count)?;
    let run_count = run_counts.iter().map(|count| usize::from(*count)).sum();
    let gaps = take_column(&mut rest, run_count)?;
    let lens = take_column(&mut rest, run_count)?;
    let mut runs = gaps.into_iter().zip(lens);
    let mut windows = Vec::with_capacity(count);
    for run_count in run_counts {
        let runs = runs.by_ref().take(run_count.into());
        windows.push(parse_window(runs, &mut rest)?);
    }
    match rest {
        [] => Ok(windows),
        _ => Err(refuse("go on after the last window")),
    }
}

fn parse_window(
    runs: impl Iterator<Item = (u16, u16)>,
    rest: &mut &[u8],
) -> Result<SparseWindow, FormatError> {
    let mut window = SparseWindow::default();
    let (mut end, mut kept) = (0u32, 0);
    for (gap, len) in runs {
        let begin = end + u32::from(gap);
        end = begin + u32::from(len);
        if len == 0 || end as usize > WINDOW_LEN {
            return Err(refuse("have a run that is empty or ends behind its window"));
        }
        if gap == 0 && !window.runs.is_empty() {
            return Err(refuse("have two runs without a gap"));
        }
        window.runs.push((begin as u16, len));
        kept += usize::from(len);
    }
    window.bytes = take(rest, kept)?.to_vec();
    Ok(window)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], FormatError> {
    let (taken, behind) = rest
        .split_at_checked(len)
        .ok_or_else(|| refuse("are cut short"))?;
    *rest = behind;
    Ok(taken)
}

fn take_column(rest: &mut &[u8], count: usize) -> Result<Vec<u16>, FormatError> {
    let column = take(rest, count.saturating_mul(2))?;
    let numbers = column.as_chunks().0.iter();
    Ok(numbers.map(|number| u16::from_le_bytes(*number)).collect())
}

fn refuse(reason: &str) -> FormatError {
    FormatError::malformed("layer index", "section windows", format!("the windows {reason}"))
}
