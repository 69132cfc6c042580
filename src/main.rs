use std::process::ExitCode;

fn main() -> ExitCode {
    vnca::cli::main()
}
