//! Standard output that may be closed by whoever reads it, as `head` does.

use std::{
    fmt,
    io::{self, Write},
};

/// Prints a line; when nobody reads any more, the process ends quietly, as it would by SIGPIPE.
pub fn line(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.write_all(b"\n")) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("millpond: cannot write to standard output: {error}");
        std::process::exit(1);
    }
}

/// `println!` for output that may be piped into `head`.
macro_rules! say {
    () => { $crate::cli::say::line(format_args!("")) };
    ($($arg:tt)*) => { $crate::cli::say::line(format_args!($($arg)*)) };
}
pub(crate) use say;
