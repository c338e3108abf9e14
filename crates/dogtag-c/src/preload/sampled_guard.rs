//! The sampled guard of a program that knows nothing of the library.

use dogtag::__private::report::variable;
use dogtag::__private::service::unattributed;
use dogtag::__private::sys;
use dogtag::sampled_guard::SampledGuard;

/// Starts the sampled guard if `DOGTAG_SAMPLED_GUARD` says so.
pub(super) fn begin() {
    let Some(text) = variable("DOGTAG_SAMPLED_GUARD") else { return };
    let text = String::from_utf8_lossy(&text).into_owned();
    if let Err(error) = unattributed(|| SampledGuard::from_settings(&text)) {
        sys::print(format_args!("dogtag: DOGTAG_SAMPLED_GUARD: {error}. It is ignored\n"));
    }
}
