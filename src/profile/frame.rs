//! One function of a call stack.

use std::sync::Arc;

/// Names one function of a call stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Frame {
    /// The address to which the function that it called returns. Functions that were inlined into
    /// one another have the same.
    pub address: usize,
    /// The function's name, without hashes. Where it has none, the file and the place in it
    /// (`libc.so.6+0x2724a`), or the address.
    pub function: String,
    /// The path of the source file, if the program has debug information.
    pub file: Option<String>,
    /// The line of the call in that file.
    pub line: Option<u32>,
    /// Whether the compiler inlined it into the function that called it, which is the next frame.
    pub is_inlined: bool,
    /// Whether it is of the program's own crates: [`Profile::by_own_code`](super::Profile::by_own_code)
    /// says how that is told.
    pub is_own: bool,
}

/// The functions at one address, innermost first. All profiles that have the address share them.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "Vec<Frame>", into = "Vec<Frame>"))]
pub(super) struct Functions(Arc<[Frame]>);

impl From<Vec<Frame>> for Functions {
    fn from(frames: Vec<Frame>) -> Self {
        Self(frames.into())
    }
}

#[cfg(feature = "serde")]
impl From<Functions> for Vec<Frame> {
    fn from(functions: Functions) -> Self {
        functions.0.to_vec()
    }
}

impl Functions {
    pub(super) fn frames(&self) -> &[Frame] {
        &self.0
    }
}
