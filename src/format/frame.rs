//! Names in folded stacks, lines such as `service;main;read 4096`.

/// A service's or a function's name that stays one frame of a folded stack: `;` becomes `,`, control characters are
/// escaped, and the space before a number at the end becomes `_`.
pub fn frame(name: &str) -> String {
    let mut safe = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            ';' => safe.push(','),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => safe.extend(c.escape_unicode()),
            c if c.is_whitespace() => safe.push(' '),
            c => safe.push(c),
        }
    }
    // `name 1 bytes` has two counts, as differential folded stacks have.
    let mut safe = safe.trim().to_owned();
    while let Some(space) = safe.rfind(' ') {
        let is_number =
            safe[space + 1..].bytes().all(|byte| byte.is_ascii_digit() || b"._+-".contains(&byte));
        if !is_number {
            break;
        }
        safe.replace_range(space..=space, "_");
    }
    // A frame without a name is none.
    if safe.is_empty() { "_".to_owned() } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_would_be_taken_for_something_else() {
        for (name, expected) in [
            ("<[u8; 16] as app::Id>::new", "<[u8, 16] as app::Id>::new"),
            ("worker 7", "worker_7"),
            ("worker 7 42", "worker_7_42"),
            ("of 1.5", "of_1.5"),
            ("of +1", "of_+1"),
            ("7", "7"),
            ("a\nb", "a\\u{a}b"),
            (" ", "_"),
            ("", "_"),
            ("app::f", "app::f"),
        ] {
            assert_eq!(frame(name), expected);
        }
    }

    proptest! {
        #[test]
        fn any_name_is_one_frame(name in any::<String>()) {
            let line = format!("service;{} 17", frame(&name));
            prop_assert_eq!(line.lines().count(), 1);
            let (stack, bytes) = line.rsplit_once(' ').unwrap();
            prop_assert_eq!(bytes, "17");
            prop_assert_eq!(stack.split(';').count(), 2);
            // Nor is there another count before it.
            let last = stack.rsplit(' ').next().unwrap();
            prop_assert!(!stack.contains(' ') || last.parse::<f64>().is_err() || last.contains(char::is_alphabetic));
        }
    }
}
