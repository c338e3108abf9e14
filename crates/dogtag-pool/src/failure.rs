//! How a refusal becomes an error, and who is told of it.

use crate::error::PoolError;
use crate::node::{Handler, Node, Refusal};
use crate::tree::InTree;
use std::borrow::Cow;
use std::ptr::NonNull;

impl Node {
    /// Makes the error of an allocation that was refused, and calls the handler of the nearest pool
    /// above that has one.
    #[cold]
    #[inline(never)]
    pub(crate) fn refused(&self, refusal: Refusal, bytes: usize) -> PoolError {
        let error = match refusal {
            Refusal::NoMemory => PoolError::NoMemory { pool: copied(&self.name), bytes },
            Refusal::Limit(node) => limit_error(node, bytes),
        };
        tell(&error, None, Some(self));
        error
    }
}

/// Makes the error for a limit, which must be that of a pool that has not ended.
pub(crate) fn limit_error(node: NonNull<Node>, bytes: usize) -> PoolError {
    // SAFETY: the node is the one that was to have the memory, or above it, so it is valid.
    let node = unsafe { node.as_ref() };
    PoolError::Limit {
        pool: copied(&node.name),
        bytes,
        limit: node.branch().limit().unwrap_or(usize::MAX),
        held: node.branch().held_with_children(),
    }
}

/// Copies a name, if there is memory for it: the error may be that there is none.
fn copied(name: &Option<Cow<'static, str>>) -> Option<Cow<'static, str>> {
    match name.as_ref()? {
        Cow::Borrowed(name) => Some(Cow::Borrowed(name)),
        Cow::Owned(name) => {
            let mut copy = String::new();
            copy.try_reserve_exact(name.len()).ok()?;
            copy.push_str(name);
            Some(Cow::Owned(copy))
        }
    }
}

/// Calls a handler, or else that of the nearest pool, from `node` up, that has one.
pub(crate) fn tell(error: &PoolError, handler: Option<&Handler>, node: Option<&Node>) {
    let above = || node.into_iter().flat_map(Node::ancestors).find_map(|node| node.on_failure.as_ref());
    if let Some(handler) = handler.or_else(above) {
        handler(error);
    }
}

/// Panics with an error, as functions do that have a fallible variant.
#[inline(always)]
pub(crate) fn or_panic<T>(result: Result<T, PoolError>) -> T {
    #[cold]
    #[inline(never)]
    fn give_up(error: &PoolError) -> ! {
        panic!("{error}")
    }
    result.unwrap_or_else(|error| give_up(&error))
}
