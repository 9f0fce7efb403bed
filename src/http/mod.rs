//! tiny_http, kept alive behind one door.

pub mod allocator;
pub mod answer;
pub mod call;
pub mod listener;
pub mod socket;
pub mod turn;
