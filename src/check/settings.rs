//! The settings in `DOGTAG_CHECK`: read once, by the first allocation, and therefore
//! without allocating.

use super::block::{FREED, LARGE};
use super::quarantine::MAGAZINE;
use crate::format;
use crate::sys::{self, stderr};
use std::ffi::CStr;
use std::sync::OnceLock;

/// How the checks are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Bytes that the quarantine may hold.
    pub(crate) quarantine: u64,
    /// Blocks that the quarantine may hold: a power of two and at least
    /// [`MAGAZINE`], or 0.
    pub(crate) quarantine_blocks: u64,
    /// What fresh and freed memory is filled with.
    pub(crate) fill: Fill,
    /// Whether call stacks are kept.
    pub(crate) backtrace: bool,
    /// Whether the default handler goes on after its report.
    pub(crate) leak: bool,
    /// Which blocks are reported that another family's function frees.
    pub(crate) alloc_dealloc: Reported,
    /// Whether C++'s blocks are reported that are freed with another size or alignment.
    pub(crate) new_delete_type: bool,
    /// Whether what C's functions read and write is looked at.
    pub(crate) copies: bool,
    /// The size of large blocks from which on freed ones have no access; 0 for none.
    pub(crate) protect: u64,
    /// Milliseconds from one look at the quarantine to the next; 0 for none.
    pub(crate) look: u64,
    /// Seconds that a report may take to find the functions' names.
    pub(crate) patience: u64,
}

/// Selects what fresh and freed memory is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Nothing.
    Nothing,
    /// [`FRESH`](super::block::FRESH) and [`FREED`].
    Patterns,
    /// Zeros.
    Zeros,
}

impl Fill {
    /// The byte for freed memory.
    #[inline]
    pub(crate) fn freed(self) -> Option<u8> {
        match self {
            Self::Nothing => None,
            Self::Patterns => Some(FREED),
            Self::Zeros => Some(0),
        }
    }
}

/// Selects the blocks that are reported when another family's function frees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reported {
    /// No block.
    None,
    /// Blocks of `new` and of `new[]`, taken for each other.
    New,
    /// Blocks of `malloc`, too.
    All,
}

impl Settings {
    const DEFAULT: Self = Self {
        quarantine: 16 << 20,
        quarantine_blocks: 1 << 14,
        fill: Fill::Patterns,
        backtrace: false,
        leak: false,
        alloc_dealloc: Reported::All,
        new_delete_type: true,
        copies: true,
        protect: LARGE as u64,
        look: 0,
        patience: 10,
    };

    /// The settings in force before the environment can be read. There is no quarantine yet, since
    /// the first free settles its size for good, and no signal's handler is set.
    const EARLY: Self = Self { quarantine: 0, protect: 0, ..Self::DEFAULT };

    /// The settings of this process.
    #[inline]
    pub(crate) fn get() -> &'static Self {
        // Parks a thread that comes second, but does not allocate.
        static SETTINGS: OnceLock<Settings> = OnceLock::new();
        match SETTINGS.get() {
            Some(settings) => settings,
            None => first(&SETTINGS),
        }
    }

    /// Parses `name=value` pairs, and calls `complain` for those that it does not understand.
    fn parse(text: &[u8], mut complain: impl FnMut(&[u8])) -> Self {
        let mut settings = Self::DEFAULT;
        for setting in text.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|s| !s.is_empty()) {
            if settings.take(setting).is_none() {
                complain(setting);
            }
        }
        settings
    }

    fn take(&mut self, setting: &[u8]) -> Option<()> {
        let equals = setting.iter().position(|&byte| byte == b'=')?;
        let (name, value) = (setting[..equals].trim_ascii(), setting[equals + 1..].trim_ascii());
        match name {
            b"quarantine" => self.quarantine = number(value)?,
            b"quarantine-blocks" => {
                let blocks = number(value).filter(|&blocks| blocks <= MOST_BLOCKS)?;
                self.quarantine_blocks =
                    if blocks == 0 { 0 } else { blocks.next_power_of_two().max(MAGAZINE as u64) };
            }
            b"fill" => self.fill = fill(value)?,
            b"backtrace" => self.backtrace = switch(value)?,
            b"reaction" => self.leak = reaction(value)?,
            b"alloc-dealloc-mismatch" => self.alloc_dealloc = reported(value)?,
            b"new-delete-type-mismatch" => self.new_delete_type = switch(value)?,
            b"copies" => self.copies = switch(value)?,
            b"protect" => self.protect = number(value)?,
            b"look" => self.look = number(value)?,
            b"patience" => self.patience = number(value)?,
            _ => return None,
        }
        Some(())
    }
}

/// The most blocks that a quarantine may hold: 128 MiB of them.
const MOST_BLOCKS: u64 = 1 << 24;

#[cold]
#[inline(never)]
fn first(settings: &'static OnceLock<Settings>) -> &'static Settings {
    // Preloaded, the first allocation may come before there is an environment.
    if sys::has_environment() { settings.get_or_init(read) } else { &Settings::EARLY }
}

#[cold]
fn read() -> Settings {
    // SAFETY: the name is a C string. What the result points to stays as it is
    // unless the program changes the variable at this very moment.
    let text = unsafe { libc::getenv(c"DOGTAG_CHECK".as_ptr()) };
    if text.is_null() || sys::has_more_rights() {
        return Settings::DEFAULT;
    }
    // SAFETY: the environment holds C strings.
    let text = unsafe { CStr::from_ptr(text) };
    Settings::parse(text.to_bytes(), report_unknown)
}

fn report_unknown(setting: &[u8]) {
    stderr::print(format_args!(
        "dogtag: DOGTAG_CHECK: \"{}\" is no setting and is ignored; \
         there are quarantine=BYTES (0 for none; K, M, G), quarantine-blocks=NUMBER (up to {MOST_BLOCKS}), \
         fill=0|1|zero, backtrace=0|1, reaction=abort|leak, alloc-dealloc-mismatch=none|new|all, \
         new-delete-type-mismatch=0|1, copies=0|1, protect=BYTES (0 for none), look=MILLISECONDS (0 for none), \
         patience=SECONDS\n",
        setting.escape_ascii(),
    ));
}

fn number(value: &[u8]) -> Option<u64> {
    format::parse_bytes(str::from_utf8(value).ok()?)
}

fn fill(value: &[u8]) -> Option<Fill> {
    match value {
        b"0" => Some(Fill::Nothing),
        b"1" => Some(Fill::Patterns),
        b"zero" => Some(Fill::Zeros),
        _ => None,
    }
}

fn switch(value: &[u8]) -> Option<bool> {
    match value {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    }
}

fn reported(value: &[u8]) -> Option<Reported> {
    match value {
        b"none" => Some(Reported::None),
        b"new" => Some(Reported::New),
        b"all" => Some(Reported::All),
        _ => None,
    }
}

/// Parses a reaction: whether to leak.
fn reaction(value: &[u8]) -> Option<bool> {
    match value {
        b"abort" => Some(false),
        b"leak" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> (Settings, Vec<String>) {
        let mut complaints = Vec::new();
        let settings = Settings::parse(text.as_bytes(), |setting| {
            complaints.push(String::from_utf8_lossy(setting).into_owned());
        });
        (settings, complaints)
    }

    #[test]
    fn settings_are_read() {
        assert_eq!(parse(""), (Settings::DEFAULT, vec![]));
        let all = Settings {
            quarantine: 16 << 20,
            quarantine_blocks: 1024,
            fill: Fill::Zeros,
            backtrace: true,
            leak: true,
            alloc_dealloc: Reported::New,
            new_delete_type: false,
            copies: false,
            protect: 1 << 20,
            look: 100,
            patience: 60,
        };
        let text = "quarantine=16M, quarantine-blocks = 1000,fill=zero,backtrace=1,,reaction=leak,\
                    alloc-dealloc-mismatch=new,new-delete-type-mismatch=0,copies=0,protect=1M,look=100,patience=60";
        assert_eq!(parse(text), (all, vec![]));
        assert_eq!(parse("quarantine=0").0.quarantine, 0);
        assert_eq!(parse("quarantine=3k").0.quarantine, 3072);
        assert_eq!(parse("quarantine=2G").0.quarantine, 2 << 30);
    }

    #[test]
    fn what_is_no_setting_is_reported_and_changes_nothing() {
        for bad in [
            "quarantine",
            "quarantine=",
            "quarantine=-1",
            "quarantine=16MB",
            "quarantine=99999999999G",
            "quarantine-blocks=99999999999",
            "fill=yes",
            "backtrace=2",
            "reaction=panic",
            "alloc-dealloc-mismatch=1",
            "new-delete-type-mismatch=all",
            "protect=yes",
            "look=100ms",
            "patience=1s",
            "color=red",
            "=1",
        ] {
            assert_eq!(parse(bad), (Settings::DEFAULT, vec![bad.to_owned()]));
        }
        let (settings, complaints) = parse("fill=2,backtrace=1");
        assert!(settings.backtrace && settings.fill == Fill::Patterns);
        assert_eq!(complaints, ["fill=2"]);
    }
    /// What the quarantine relies on.
    fn is_sound(settings: &Settings) -> bool {
        let blocks = settings.quarantine_blocks;
        blocks == 0 || blocks.is_power_of_two() && (MAGAZINE as u64..=MOST_BLOCKS).contains(&blocks)
    }

    /// Settings, things that look like some, and others.
    fn setting() -> impl Strategy<Value = String> {
        let name = "quarantine|quarantine-blocks|fill|backtrace|reaction|alloc-dealloc-mismatch|\
                    new-delete-type-mismatch|copies|protect|look|patience|[a-z-]{0,9}";
        let value = "[0-9]{0,4}[kKmMgG]?|[0-9]{5,22}|0|1|zero|abort|leak|none|new|all|.{0,9}";
        (name, " ?", value).prop_map(|(name, space, value)| format!("{space}{name}{space}={space}{value}"))
    }

    proptest! {
        #[test]
        fn each_setting_is_taken_or_told(settings in prop::collection::vec(setting(), 0..6)) {
            let text = settings.join(",");
            let (together, complaints) = parse(&text);
            prop_assert!(is_sound(&together), "{together:?}");
            // One by one they are the same.
            let mut told = Vec::new();
            let mut one_by_one = Settings::DEFAULT;
            for setting in text.split(',').map(|setting| setting.trim_ascii()).filter(|it| !it.is_empty()) {
                let before = one_by_one;
                if one_by_one.take(setting.as_bytes()).is_none() {
                    told.push(setting.to_owned());
                    prop_assert_eq!(before, one_by_one);
                }
            }
            prop_assert_eq!((together, complaints), (one_by_one, told));
        }

        #[test]
        fn any_bytes_may_stand_there(text in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut told = 0;
            let settings = Settings::parse(&text, |setting| told += setting.len());
            prop_assert!(told <= text.len());
            prop_assert!(is_sound(&settings), "{settings:?}");
        }
    }
}
