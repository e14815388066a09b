//! The way back: messages from us to a front end, on the socket of SET_BACKEND_REQ_FD.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketType, send, sockopt};

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;
/// Version of the protocol, in the lowest bits of the flags. No reply is asked for: the front end may ask us things before it
/// gives one, and what it has understood it shows by asking for the configuration.
const FLAGS: u32 = 1;

/// Why there is no way back.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Another kind of file.
    #[error("the descriptor is not a Unix stream socket")]
    NotASocket,
    /// The system's.
    #[error(transparent)]
    Io(#[from] rustix::io::Errno),
}

/// See the module's text.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// # Errors
    /// No socket.
    pub fn new(socket: OwnedFd) -> Result<Channel, ChannelError> {
        let domain = sockopt::socket_domain(&socket).map_err(|_| ChannelError::NotASocket)?;
        if domain != AddressFamily::UNIX || sockopt::socket_type(&socket)? != SocketType::STREAM {
            return Err(ChannelError::NotASocket);
        }
        Ok(Channel(socket))
    }

    /// Tells the front end that the configuration space has changed. Never waits.
    ///
    /// # Errors
    /// It does not read, or is gone.
    pub fn config_changed(&self) -> Result<(), ChannelError> {
        let mut message = [0; 12];
        for (to, word) in message.chunks_exact_mut(4).zip([CONFIG_CHANGE, FLAGS, 0]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        // A socket's buffer is not filled by twelve bytes but by those before them, so that part of a message is never sent:
        // the kernel has room for a whole small packet or none.
        send(&self.0, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(())
    }
}
