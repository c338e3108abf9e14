//! Folded stacks: a line for each stack of functions, for flame graphs.

use super::own;
use super::report::Profile;
use std::collections::HashMap;
use std::io::{self, Write};

impl Profile {
    /// Writes folded stacks: a line `service;outermost;…;innermost bytes` for each service and
    /// stack of functions, as `inferno-flamegraph`, `flamegraph.pl` and speedscope read it.
    ///
    /// Names are changed where tools would take them for something else: `;` becomes `,`, control
    /// characters are escaped, and the space before a number at the end becomes `_`. Rows that are
    /// not positive, which only differences have, are left out: no flame is less than nothing wide.
    ///
    /// ```
    /// # let profile = dogtag::profile::Profile::default();
    /// let mut text = Vec::new();
    /// profile.write_folded(&mut text)?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn write_folded(&self, mut writer: impl Write) -> io::Result<()> {
        let lines = {
            let _scope = own::enter();
            let mut stacks: Vec<(String, i64)> = Vec::new();
            // Of several addresses in the same functions, the lines would be the same.
            let mut places: HashMap<String, usize> = HashMap::new();
            for row in self.rows.iter().filter(|row| row.bytes > 0) {
                let mut stack = safe(&row.service);
                for title in self.titles(row) {
                    stack.push(';');
                    stack.push_str(&safe(title));
                }
                let place = *places.entry(stack).or_insert_with_key(|stack| {
                    stacks.push((stack.clone(), 0));
                    stacks.len() - 1
                });
                stacks[place].1 += row.bytes;
            }
            let lines: String = stacks.iter().map(|(stack, bytes)| format!("{stack} {bytes}\n")).collect();
            lines.into_bytes()
        };
        writer.write_all(&lines)?;
        writer.flush()
    }
}

/// Returns a name that stays one frame.
fn safe(name: &str) -> String {
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
            assert_eq!(safe(name), expected);
        }
    }

    proptest! {
        #[test]
        fn any_name_is_one_frame(name in any::<String>()) {
            let line = format!("service;{} 17", safe(&name));
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
