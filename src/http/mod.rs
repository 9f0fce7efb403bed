//! tiny_http, kept alive behind one door.

pub mod allocator;
pub mod answer;
pub mod call;
mod keeper;
pub mod listener;
mod socket;
pub mod turn;
