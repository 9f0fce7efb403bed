//! The event stream format (WHATWG HTML, section 9.2), both ways.

pub mod event;
pub mod parser;
