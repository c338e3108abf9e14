//! What is said on standard error, for whoever reads it: a pipe without a reader, or a full disk, ends
//! nothing.

use std::fmt::Display;
use std::io::{Write, stderr};

/// Says something, which begins with this program's name.
pub fn say(message: impl Display) {
    write(format_args!("dogtag: {message}\n"));
}

/// Writes a text as it is.
pub fn write(text: impl Display) {
    // In one piece, since the program may write there, too.
    let _ = stderr().write_all(text.to_string().as_bytes());
}
