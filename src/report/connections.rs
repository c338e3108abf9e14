//! The connections of a server that is one thread: waiting for any of them, accepting, and their end.
//!
//! A server of dogtag's lives in somebody else's program, so it takes bounded memory, and does nothing
//! until somebody asks.

use crate::contained::contain;
use std::ffi::{c_int, c_short};
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// How many connections there may be; one more takes the place of the oldest.
pub(super) const MOST: usize = 16;

/// What a server has to know of a connection.
pub(super) trait Connection {
    /// Returns its descriptor.
    fn number(&self) -> c_int;

    /// Returns what it waits for.
    fn events(&self) -> c_short {
        libc::POLLIN
    }

    /// Returns the time at which the other side has been waited for long enough.
    fn until(&self) -> Option<Instant>;

    /// Does what goes without waiting, and returns `false` at the end.
    fn go_on(&mut self) -> bool;
}

/// Connections, the oldest first.
pub(super) struct Connections<C>(Vec<C>);

impl<C: Connection> Connections<C> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Waits until there is something to be done, for a connection or at the listener's descriptor.
    pub(super) fn wait(&self, listener: c_int) {
        let wanted = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let mut descriptors = vec![wanted(listener, libc::POLLIN)];
        descriptors.extend(self.0.iter().map(|connection| wanted(connection.number(), connection.events())));
        let milliseconds = self.0.iter().filter_map(C::until).min().map_or(-1, |until| {
            let left = until.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1)
        });
        // SAFETY: the list is there, and has that length.
        unsafe { libc::poll(descriptors.as_mut_ptr(), descriptors.len() as libc::nfds_t, milliseconds) };
    }

    /// Takes the connections that wait; `accept` returns `None` for one that is not wanted.
    pub(super) fn accept(&mut self, mut accept: impl FnMut() -> io::Result<Option<C>>) {
        for _ in 0..MOST {
            match accept() {
                Ok(Some(connection)) => {
                    if self.0.len() == MOST {
                        self.0.remove(0);
                    }
                    self.0.push(connection);
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    // No descriptors are left, or alike; the connection still waits.
                    std::thread::sleep(Duration::from_millis(100));
                    return;
                }
            }
        }
    }

    /// Has each connection do what it can, and drops those that have ended, have failed, or whose time is
    /// over.
    pub(super) fn go_on(&mut self) {
        self.0.retain_mut(|connection| {
            contain(|| connection.go_on()).unwrap_or(false)
                && connection.until().is_none_or(|until| Instant::now() < until)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    /// Reads a byte: `p` panics, `e` ends.
    struct Byte {
        stream: UnixStream,
        until: Option<Instant>,
    }

    impl Connection for Byte {
        fn number(&self) -> c_int {
            self.stream.as_raw_fd()
        }

        fn until(&self) -> Option<Instant> {
            self.until
        }

        fn go_on(&mut self) -> bool {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) => match byte {
                    [b'p'] => panic!("asked for"),
                    [byte] => byte != b'e',
                },
                Ok(_) => false,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    fn connection(until: Option<Instant>) -> (Byte, UnixStream) {
        let (own, other) = UnixStream::pair().unwrap();
        own.set_nonblocking(true).unwrap();
        (Byte { stream: own, until }, other)
    }

    fn is_open(mut other: &UnixStream) -> bool {
        other.set_nonblocking(true).unwrap();
        other.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    #[test]
    fn who_ends_fails_or_is_late_goes_and_the_others_stay() {
        let now = Instant::now();
        let (mut connections, mut others) = (Connections::new(), Vec::new());
        for (byte, until) in [("x", None), ("p", None), ("e", None), ("x", Some(now)), ("", None)] {
            let (own, mut other) = connection(until);
            other.write_all(byte.as_bytes()).unwrap();
            others.push(other);
            let mut own = Some(own);
            connections.accept(|| own.take().map(Some).ok_or(ErrorKind::WouldBlock.into()));
        }
        let (listener, _other) = UnixStream::pair().unwrap();
        // There is something to do.
        connections.wait(listener.as_raw_fd());
        connections.go_on();
        assert_eq!(others.iter().map(is_open).collect::<Vec<_>>(), [true, false, false, false, true]);
        // Nothing is: it waits until the first one's time is over.
        connections.0[1].until = Some(Instant::now() + Duration::from_millis(50));
        connections.wait(listener.as_raw_fd());
        assert!(connections.0[1].until <= Some(Instant::now()));
        connections.go_on();
        assert_eq!(others.iter().map(is_open).collect::<Vec<_>>(), [true, false, false, false, false]);
    }

    #[test]
    fn one_more_takes_the_place_of_the_oldest() {
        let (mut connections, mut others) = (Connections::new(), Vec::new());
        let mut left = MOST + 3;
        let mut accept = || -> io::Result<Option<Byte>> {
            left = left.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
            let (own, other) = connection(None);
            // The first one and the last one are somebody else's.
            let is_wanted = !matches!(others.len(), 0 | 18);
            others.push(other);
            Ok(is_wanted.then_some(own))
        };
        // So many at once, for the others to have their turn.
        connections.accept(&mut accept);
        assert_eq!(connections.0.len(), MOST - 1);
        connections.accept(&mut accept);
        assert_eq!((connections.0.len(), others.len()), (MOST, MOST + 3));
        let closed: Vec<usize> = (0..others.len()).filter(|place| !is_open(&others[*place])).collect();
        assert_eq!(closed, [0, 1, 18]);
    }
}
