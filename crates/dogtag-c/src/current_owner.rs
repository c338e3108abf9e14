//! The service that a thread outside of any scope allocates as: by the host's current handle, or by
//! the thread's name.

#[cfg(feature = "skynet")]
use crate::host;
#[cfg(any(feature = "interpose", feature = "skynet"))]
use crate::implicit_services::{self, settled_by};
#[cfg(feature = "interpose")]
use crate::{errno, names};
#[cfg(any(feature = "interpose", feature = "skynet"))]
use dogtag::__private::thread;
#[cfg(any(feature = "interpose", feature = "skynet"))]
use dogtag::Service;

/// Settles the thread in the host's current service, unless it is in a scope. Called before every
/// allocation.
#[inline(always)]
pub(crate) fn refresh() {
    #[cfg(feature = "skynet")]
    if let Some(handle) = host::current_handle()
        && settled_by() != key_of_handle(handle)
    {
        settle_by_handle(handle);
    }
}

/// Settles the thread in the service with its name. Called whenever an allocation leaves the hot
/// path; with memory-check, before every one.
#[inline]
pub(crate) fn refresh_name() {
    #[cfg(feature = "interpose")]
    if names::are_services() {
        settle_by_name();
    } else if dogtag::__private::memory_check::IS_ON {
        names::see_given();
    }
}

#[cfg(feature = "skynet")]
#[cold]
#[inline(never)]
fn settle_by_handle(handle: u32) {
    if !thread::can_settle() {
        return;
    }
    let register = || Service::builder(format!(":{handle:08x}")).handle(handle).register().ok();
    implicit_services::settle(key_of_handle(handle), || Service::by_handle(handle), register);
}

/// Returns a key for a handle, which may be any number; no key is 0.
#[cfg(feature = "skynet")]
const fn key_of_handle(handle: u32) -> u64 {
    1 << 32 | handle as u64
}

#[cfg(feature = "interpose")]
#[cold]
fn settle_by_name() {
    #[cfg(feature = "skynet")]
    if host::is_there() {
        return;
    }
    if !thread::can_settle() {
        return;
    }
    let name = names::own();
    let key = key_of_name(name.bytes());
    if settled_by() == key {
        return;
    }
    let text = name.service();
    let text = text.as_str();
    // Waiting for a lock may change `errno`.
    errno::kept(|| {
        // A thread with an empty name allocates for nobody.
        let register = || Service::register(text).ok().filter(|_| !text.is_empty());
        implicit_services::settle(key, || Service::by_name(text), register);
    });
}

/// Hashes a name to a key; no key is 0.
#[cfg(feature = "interpose")]
fn key_of_name(name: &[u8]) -> u64 {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name);
    let word = u128::from_ne_bytes(bytes);
    let (low, high) = (word as u64, (word >> 64) as u64);
    (low.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ high.rotate_left(32)).max(1)
}
