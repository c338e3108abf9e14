//! Standard error without std's lock and without an allocation: a report may be
//! printed while another thread holds either.

use std::ffi::c_int;
use std::fmt::{self, Write};

/// Prints a text, in one piece unless it is long.
pub fn print(text: fmt::Arguments<'_>) {
    print_to(libc::STDERR_FILENO, text);
}

/// Prints a text to that file, in one piece unless it is long.
pub fn print_to(descriptor: c_int, text: fmt::Arguments<'_>) {
    let mut output = Output { descriptor, buffer: [0; SIZE], length: 0 };
    // What cannot be written is lost: there is no other place for it.
    let _ = output.write_fmt(text);
    output.flush();
}

const SIZE: usize = 4096;

struct Output {
    descriptor: c_int,
    buffer: [u8; SIZE],
    length: usize,
}

impl Output {
    fn flush(&mut self) {
        let mut rest = &self.buffer[..self.length];
        while !rest.is_empty() {
            // SAFETY: the bytes are ours and initialised.
            let written = unsafe { libc::write(self.descriptor, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(written) {
                Ok(written) if written > 0 => rest = &rest[written..],
                _ if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        self.length = 0;
    }
}

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.length == SIZE {
                self.flush();
            }
            self.buffer[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}
