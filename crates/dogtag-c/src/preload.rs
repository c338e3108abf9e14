//! The preload tool: reports, services by name and heap profiles for a program that knows nothing of
//! the library, as the environment's variables say.

#[cfg(feature = "profile")]
mod profile;
#[cfg(feature = "sampled-guard")]
mod sampled_guard;
mod violations;

use crate::{current_owner, names};
use dogtag::__private::memory_check;
use dogtag::__private::report::{self, variable};
use dogtag::__private::sys;
use std::fmt::Display;

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// Reads the variables, before the program's `main`.
extern "C" fn begin() {
    names::inform_memory_check();
    if let Some(text) = variable("DOGTAG_SERVICE") {
        match report::names_threads(&text) {
            Some(true) => names::make_services(),
            Some(false) => {}
            None => complain("DOGTAG_SERVICE", &text, format_args!("there is: {}", report::KNOWN_SERVICES)),
        }
    }
    if let Some(text) = variable("DOGTAG_REPORT") {
        let known = format_args!("there are: {}", report::KNOWN_SETTINGS);
        let reports = report::parse(&text, |part| complain("DOGTAG_REPORT", part, known));
        // Heap profiles have files of their own.
        if let Err(error) = report::start(reports.without_profile()) {
            sys::print(format_args!("dogtag: DOGTAG_REPORT: {error}\n"));
        }
    }
    profile::begin();
    sampled_guard::begin();
    violations::begin();
    memory_check::scrub();
    if memory_check::IS_ON {
        // SAFETY: the function has this signature; a library whose handler is registered here stays
        // loaded until the handler has run. It is called before the reports, which came first.
        unsafe { libc::atexit(verify_at_exit) };
    }
    // The thread that is about to run `main` has allocated before, as nobody.
    current_owner::refresh_name();
}

extern "C" fn verify_at_exit() {
    memory_check::verify_at_exit();
}

#[cfg(not(feature = "profile"))]
mod profile {
    use super::{sys, variable};

    /// Prints that there is no profiler if `DOGTAG_PROFILE` asks for one.
    pub(super) fn begin() {
        if variable("DOGTAG_PROFILE").is_some_and(|text| !matches!(text.trim_ascii(), b"" | b"0")) {
            sys::print(format_args!(
                "dogtag: DOGTAG_PROFILE is ignored: the library was built without the feature `profile`\n"
            ));
        }
    }
}

#[cfg(not(feature = "sampled-guard"))]
mod sampled_guard {
    use super::{sys, variable};

    /// Prints that nothing is guarded if `DOGTAG_SAMPLED_GUARD` asks for it.
    pub(super) fn begin() {
        if variable("DOGTAG_SAMPLED_GUARD").is_some_and(|text| !matches!(text.trim_ascii(), b"" | b"0")) {
            sys::print(format_args!(
                "dogtag: DOGTAG_SAMPLED_GUARD is ignored: the library was built without the feature \
                 `sampled-guard`\n"
            ));
        }
    }
}

/// Prints that a variable is not understood.
fn complain(variable: &str, text: &[u8], known: impl Display) {
    sys::print(format_args!(
        "dogtag: {variable}: \"{}\" is not understood and is ignored; {known}\n",
        text.escape_ascii(),
    ));
}
