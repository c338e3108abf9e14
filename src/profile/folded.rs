//! Folded stacks: a line for each stack of functions, for flame graphs.

use super::own;
use super::report::Profile;
use crate::format::frame;
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
                let mut stack = frame(&row.service);
                for title in self.titles(row) {
                    stack.push(';');
                    stack.push_str(&frame(title));
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
