//! A descriptor of dogtag's own in a program that may close any of them, and give its number to a file
//! of the program's.

use std::ffi::c_int;
use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;

/// A socket's descriptor, with what tells that it is still that socket's.
#[derive(Debug)]
pub(super) struct Descriptor {
    number: c_int,
    file: (libc::dev_t, libc::ino_t),
}

impl Descriptor {
    /// The least number for it, above those that programs count on.
    const LEAST: c_int = 500;

    /// Moves a descriptor, which is the caller's, to where it is not in the way. Executed programs do not
    /// inherit it.
    pub(super) fn keep(number: c_int) -> io::Result<Self> {
        // SAFETY: makes a new descriptor, which is nobody else's, and closes the caller's.
        let (kept, error) = unsafe {
            let kept = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, Self::LEAST);
            let error = io::Error::last_os_error();
            // Where so many are not allowed, it stays where it is.
            if kept >= 0 || error.raw_os_error() != Some(libc::EINVAL) {
                libc::close(number);
                (kept, error)
            } else {
                (number, error)
            }
        };
        if kept < 0 {
            return Err(error);
        }
        let Some(file) = file_of(kept) else { return Err(io::Error::last_os_error()) };
        super::note(kept.cast_unsigned(), file.1);
        Ok(Self { number: kept, file })
    }

    /// Returns the number, whoever has it now.
    pub(super) const fn number(&self) -> c_int {
        self.number
    }

    /// Returns the number, if it is still the socket's.
    pub(super) fn get(&self) -> Option<c_int> {
        (file_of(self.number) == Some(self.file)).then_some(self.number)
    }

    fn checked(&self) -> io::Result<c_int> {
        self.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Accepts a connection, which does not block.
    pub(super) fn accept(&self) -> io::Result<Self> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the descriptor is this socket's; no address is asked for.
        let number = unsafe { libc::accept4(self.checked()?, ptr::null_mut(), ptr::null_mut(), flags) };
        if number < 0 { Err(io::Error::last_os_error()) } else { Self::keep(number) }
    }

    /// Reads what has come; 0 at its end.
    pub(super) fn receive(&self, piece: &mut [u8]) -> io::Result<usize> {
        let number = self.checked()?;
        // SAFETY: the descriptor is this socket's, and the place is valid for so many bytes.
        let read = unsafe { libc::recv(number, piece.as_mut_ptr().cast(), piece.len(), libc::MSG_DONTWAIT) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Sends as much as goes without waiting.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let (number, flags) = (self.checked()?, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        // SAFETY: the descriptor is this socket's, and the bytes are initialised.
        let sent = unsafe { libc::send(number, bytes.as_ptr().cast(), bytes.len(), flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Whether the other side is the user who owns this process, or root.
    pub(super) fn is_of_the_same_user(&self) -> bool {
        let Ok(number) = self.checked() else { return false };
        let mut found = MaybeUninit::<libc::ucred>::uninit();
        let mut length = mem::size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the place is valid for a result of that length, and filled if the call returns 0.
        let user = unsafe {
            let place = found.as_mut_ptr().cast();
            match libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_PEERCRED, place, &mut length) {
                0 => found.assume_init().uid,
                _ => return false,
            }
        };
        // SAFETY: asks for a number.
        user == 0 || user == unsafe { libc::geteuid() }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        super::forget(self.number.cast_unsigned());
        if let Some(number) = self.get() {
            // SAFETY: the descriptor is this socket's. The connection ends, also where a forked child has a
            // copy of it.
            unsafe {
                libc::shutdown(number, libc::SHUT_RDWR);
                libc::close(number);
            }
        }
    }
}

/// Whether a descriptor is of the socket with that inode.
pub(super) fn is_of(number: c_int, inode: libc::ino_t) -> bool {
    file_of(number).is_some_and(|(_, found)| found == inode)
}

/// Identifies the file of a descriptor.
fn file_of(descriptor: c_int) -> Option<(libc::dev_t, libc::ino_t)> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `status` is a place for the result, and initialised if the call returns 0.
    unsafe {
        let is_there = libc::fstat(descriptor, status.as_mut_ptr()) == 0;
        is_there.then(|| (status.assume_init_ref().st_dev, status.assume_init_ref().st_ino))
    }
}
