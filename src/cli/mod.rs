//! The commands: arguments become calls of the library, and nothing here is for a library user.

pub mod commands;
pub mod options;
pub mod publish;
pub mod serve;
pub mod settings;
pub mod signals;
pub mod tail;
