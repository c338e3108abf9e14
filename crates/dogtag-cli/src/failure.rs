//! What ends a command, in words and as a status.

use std::fmt;

/// Says why a command could not do what was asked, and the status to end with.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub status: u8,
}

impl Failure {
    /// What is asked for is wrong or not there: status 2, as of a wrong option.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: 2 }
    }

    /// A program that is not there (127) or cannot be run (126), as shells and `env` have it.
    pub fn with_status(status: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), status }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Adds what was being done to an error.
pub trait Context<T> {
    /// Turns an error into a failure that begins with `what`.
    fn context(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format!("{what}: {error}")))
    }
}
