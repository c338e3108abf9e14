//! The signals at which reports may be had.

use std::ffi::c_int;

/// Signals that are meant for a program's own use, or that it can do without.
const SIGNALS: &[(&str, c_int)] = &[
    ("SIGHUP", libc::SIGHUP),
    ("SIGQUIT", libc::SIGQUIT),
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGURG", libc::SIGURG),
    ("SIGVTALRM", libc::SIGVTALRM),
    ("SIGPROF", libc::SIGPROF),
    ("SIGWINCH", libc::SIGWINCH),
    ("SIGIO", libc::SIGIO),
    #[cfg(any(target_os = "linux", target_os = "android"))]
    ("SIGPWR", libc::SIGPWR),
];

/// Returns the signal of a name.
pub(super) fn by_name(name: &[u8]) -> Option<c_int> {
    SIGNALS.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, signal)| *signal)
}

/// Whether reports may be had at that signal.
pub(super) fn is_allowed(signal: c_int) -> bool {
    SIGNALS.iter().any(|(_, known)| *known == signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_end_or_stop_a_program_are_left_alone() {
        for signal in
            [libc::SIGTERM, libc::SIGINT, libc::SIGKILL, libc::SIGSEGV, libc::SIGCHLD, 0, -1, 65, 1000]
        {
            assert!(!is_allowed(signal), "{signal}");
        }
        assert!(SIGNALS.iter().all(|(_, signal)| is_allowed(*signal)));
    }
}
