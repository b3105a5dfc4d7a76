//! What the converter promises, on images that are made up here.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a step that fails is a failure of the test"
)]

mod archives;
mod checking;
mod converting;
mod damage;
mod foreign;
mod images;
mod looking;
mod packing;
