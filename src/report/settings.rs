//! The settings in `DOGTAG_REPORT` and `DOGTAG_SERVICE`: of Rust programs, and of those that have the
//! library preloaded.

use super::builder::ReportBuilder;
use super::signals;
use crate::sys;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

/// Reads a variable; none in a process with more rights than the user who runs it (setuid).
#[must_use]
pub fn variable(name: &str) -> Option<Vec<u8>> {
    if sys::has_more_rights() {
        return None;
    }
    std::env::var_os(name).map(OsStringExt::into_vec)
}

/// Returns whether `DOGTAG_SERVICE` has each thread work for a service named after it; `None` if it is not
/// understood.
#[must_use]
pub fn names_threads(text: &[u8]) -> Option<bool> {
    match text.trim_ascii() {
        b"thread" => Some(true),
        b"" => Some(false),
        _ => None,
    }
}

/// Reads settings, separated by commas, and calls `complain` with each that is not understood, and is left
/// out.
pub fn parse(text: &[u8], mut complain: impl FnMut(&[u8])) -> ReportBuilder {
    let mut builder = ReportBuilder::new();
    for setting in text.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
        builder = taken(builder, setting).unwrap_or_else(|builder| {
            complain(setting);
            builder
        });
    }
    builder
}

/// Returns the builder with a setting, or as it was if that is none.
fn taken(builder: ReportBuilder, setting: &[u8]) -> Result<ReportBuilder, ReportBuilder> {
    Ok(match setting {
        b"" => builder,
        b"exit" => builder.at_exit(),
        b"json" => builder.json(),
        b"socket" => builder.on_socket(),
        [b'f', b'i', b'l', b'e', b'=', path @ ..] if !path.is_empty() => {
            builder.to_file(OsStr::from_bytes(path))
        }
        [b'e', b'v', b'e', b'r', b'y', b'=', time @ ..] => match duration(time) {
            Some(interval) => builder.every(interval),
            None => return Err(builder),
        },
        name => match signals::by_name(name) {
            Some(signal) => builder.on_signal(signal),
            None => return Err(builder),
        },
    })
}

/// Reads a time: a number with `ms`, `s`, `m` or `h` behind it; seconds without.
fn duration(text: &[u8]) -> Option<Duration> {
    let text = str::from_utf8(text).ok()?;
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let milliseconds = number.parse::<u64>().ok()?.checked_mul(milliseconds)?;
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> (ReportBuilder, Vec<String>) {
        let mut complaints = Vec::new();
        let builder = parse(text.as_bytes(), |it| complaints.push(String::from_utf8_lossy(it).into_owned()));
        (builder, complaints)
    }

    fn shown(builder: &ReportBuilder) -> String {
        format!("{builder:?}")
    }

    #[test]
    fn settings_are_read() {
        let builder = ReportBuilder::new;
        for (text, expected) in [
            ("", builder()),
            (" , ,", builder()),
            ("exit", builder().at_exit()),
            ("exit,SIGUSR2", builder().at_exit().on_signal(libc::SIGUSR2)),
            (" SIGHUP , exit,SIGUSR2", builder().on_signal(libc::SIGHUP).at_exit().on_signal(libc::SIGUSR2)),
            ("exit,file=/a/%p b=c", builder().at_exit().to_file("/a/%p b=c")),
            ("every=60s,json", builder().every(Duration::from_secs(60)).json()),
            ("socket,exit", builder().at_exit().on_socket()),
            ("every=60", builder().every(Duration::from_secs(60))),
            ("every=5m", builder().every(Duration::from_secs(300))),
            ("every=2h", builder().every(Duration::from_secs(7200))),
            ("every=50ms", builder().every(Duration::from_millis(50))),
        ] {
            let (found, complaints) = parsed(text);
            assert_eq!((shown(&found), complaints), (shown(&expected), vec![]), "{text}");
        }
        // Where the program began, wherever it goes.
        let (found, _) = parsed("file=name");
        let absolute = std::env::current_dir().unwrap().join("name");
        assert_eq!(shown(&found), shown(&builder().to_file(absolute)));
    }

    #[test]
    fn what_is_no_setting_is_told_and_changes_nothing() {
        for bad in [
            "sometimes",
            "Exit",
            "exit=1",
            "SIGKILL",
            "SIGTERM",
            "SIGSEGV",
            "USR2",
            "12",
            "file",
            "file=",
            "every",
            "every=",
            "every=0",
            "every=0s",
            "every=s",
            "every=-1s",
            "every=1.5s",
            "every=1d",
            "every=99999999999999999999",
            "every=18446744073709551615h",
            "json=1",
            "xml",
        ] {
            let (found, complaints) = parsed(bad);
            assert_eq!((shown(&found), complaints), (shown(&ReportBuilder::new()), vec![bad.to_owned()]));
        }
        let (found, complaints) = parsed("never,exit,SIGSTOP");
        assert_eq!(shown(&found), shown(&ReportBuilder::new().at_exit()));
        assert_eq!(complaints, ["never", "SIGSTOP"]);
    }

    proptest! {
        #[test]
        fn any_bytes_may_stand_there(text in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut told = 0;
            let _ = parse(&text, |setting| told += setting.len());
            prop_assert!(told <= text.len());
        }
    }
}
