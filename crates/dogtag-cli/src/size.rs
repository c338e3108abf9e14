//! How figures are written.

/// Bytes as people read them: `1.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"");
    // What would be rounded up to 1024 has the next unit.
    while value >= 1023.95 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1024.0, next);
    }
    format!("{value:.1} {unit}")
}

/// A difference of bytes with its sign; `0 B` without.
pub fn difference(bytes_: i128) -> String {
    let size = bytes(u64::try_from(bytes_.unsigned_abs()).unwrap_or(u64::MAX));
    match bytes_ {
        0 => size,
        1.. => format!("+{size}"),
        _ => format!("-{size}"),
    }
}

/// Milliseconds in the unit that people count them in: `59 s`, `12 min`.
pub fn time(milliseconds: u64) -> String {
    match milliseconds.saturating_add(500) / 1000 {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{} h", (seconds + 1800) / 3600),
    }
}

/// A number in groups of three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A name that cannot break a table or a terminal: control characters escaped, and cut to so many
/// characters.
pub fn printable(name: &str, longest: usize) -> String {
    let is_control = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    // A few more than are shown, since what is longer is cut.
    let escaped: Vec<char> = name
        .chars()
        .take(longest + 1)
        .flat_map(|c| if is_control(c) { c.escape_debug().collect() } else { vec![c] })
        .collect();
    if escaped.len() <= longest {
        return escaped.into_iter().collect();
    }
    escaped.into_iter().take(longest.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_largest_unit_that_fits() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!((difference(0), difference(-2048)), ("0 B".to_owned(), "-2.0 KiB".to_owned()));
        assert_eq!(difference(1).as_str(), "+1 B");
    }

    #[test]
    fn times_have_few_digits() {
        for (milliseconds, text) in [
            (0, "0 s"),
            (2950, "3 s"),
            (119_499, "119 s"),
            (119_500, "2 min"),
            (59 * 60_000, "59 min"),
            (59 * 3_600_000, "59 h"),
        ] {
            assert_eq!(time(milliseconds), text);
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn names_are_harmless_and_short() {
        assert_eq!(printable("a\u{1b}[2Jb\n", 40), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable("abcdef", 6), "abcdef");
        assert_eq!(printable("abcdefg", 6), "abcde…");
        assert_eq!(printable("\u{202e}", 40), "\\u{202e}");
    }
}
