//! The program: everything it does is in the library's commands.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: statecast::PatientAllocator = statecast::PatientAllocator;

fn main() -> ExitCode {
    statecast::run_command()
}
