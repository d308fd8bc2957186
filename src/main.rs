//! The program: the command line, and nothing else.

use std::process::ExitCode;

/// 5 to 8 % more requests than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    skygate::cli::main()
}
