//! Promises of the EROFS writer and reader together.

mod hostile;
mod reading;
mod refusals;
mod round_trip;
