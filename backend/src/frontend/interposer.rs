//! Stands between a front end and the protocol's daemon, and answers what the daemon cannot.
//!
//! `VhostUserDaemon` refuses in-flight tracking and has a bitmap for logging that is not ours (see `guest::log`), cannot
//! say that the configuration has changed, and its message handler cannot be wrapped. So each front end talks to this, which passes every other message on, whole and with
//! its descriptors, and passes the replies back.
//!
//! What is answered here is answered in its place: when all messages before it have been handled and their replies passed
//! back. For that the daemon is asked for its features, which changes nothing, and whose reply shows that it has come so
//! far. This happens a few times in the life of a connection.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost_user_backend::VhostUserBackend;

use super::Session;
use super::channel::{Channel, ChannelError};
use super::wire::{Message, WireError, name};
use crate::guest::{Inflight, InflightError};

/// Why a front end is not listened to any longer.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// It sent what cannot be a message.
    #[error(transparent)]
    Wire(WireError),
    /// The daemon closed its end, for a reason of which it tells.
    #[error("refused")]
    Daemon,
    /// It asks for what it has not negotiated.
    #[error("{} without {feature:?} negotiated", name(u32::from(*.request)))]
    NotNegotiated {
        /// The message.
        request: FrontendReq,
        /// What it needs.
        feature: VhostUserProtocolFeatures,
    },
    /// A payload of another length.
    #[error("{} has {have} bytes, expected {expected}", name(u32::from(*.request)))]
    Length {
        /// The message.
        request: FrontendReq,
        /// Bytes of its payload.
        have: usize,
        /// Bytes that it should have.
        expected: &'static str,
    },
    /// Too many descriptors, or none.
    #[error("{} has {have} descriptors, expected {expected}", name(u32::from(*.request)))]
    Descriptors {
        /// The message.
        request: FrontendReq,
        /// How many it has.
        have: usize,
        /// How many it should have.
        expected: usize,
    },
    /// More queues than there are.
    #[error("{} for {asked} queues, of which this disk has {have} (--num-queues)", name(u32::from(*.request)))]
    Queues {
        /// The message.
        request: FrontendReq,
        /// Queues it is about.
        asked: u16,
        /// Queues that there are.
        have: usize,
    },
    /// A ring larger than any that is offered.
    #[error(
        "{} asks for a ring of {asked} entries, and this disk has 1 to {most} (--queue-size)",
        name(FrontendReq::SET_VRING_NUM.into())
    )]
    RingSize {
        /// Entries.
        asked: u32,
        /// Most that there may be.
        most: u16,
    },
    /// An in-flight region that is none.
    #[error("{}: {source}", name(u32::from(*.request)))]
    Inflight {
        /// The message.
        request: FrontendReq,
        /// What is wrong.
        source: InflightError,
    },
    /// A channel that is none.
    #[error("{}: {source}", name(FrontendReq::SET_BACKEND_REQ_FD.into()))]
    Channel {
        /// What is wrong.
        source: ChannelError,
    },
    /// A log that is none.
    #[error("{}: {log}", name(FrontendReq::SET_LOG_BASE.into()), log = .0)]
    Log(#[source] std::io::Error),
}

/// Payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
struct InflightArea {
    size: u64,
    offset: u64,
    queues: u16,
    entries: u16,
}

impl InflightArea {
    /// The fields have 20 bytes; C front ends send the structure, which has 24.
    fn decode(message: &Message, request: FrontendReq) -> Result<InflightArea, Ended> {
        let body = &message.body[..];
        match *body {
            [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, ref rest @ ..]
                if rest.is_empty() || rest.len() == 4 =>
            {
                Ok(InflightArea {
                    size: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
                    offset: u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
                    queues: u16::from_ne_bytes([q, r]),
                    entries: u16::from_ne_bytes([s, t]),
                })
            }
            _ => Err(Ended::Length { request, have: body.len(), expected: "20 or 24" }),
        }
    }

    /// As long as the question, which is how its sender reads it.
    fn encode(&self, len: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(len);
        body.extend(self.size.to_ne_bytes());
        body.extend(self.offset.to_ne_bytes());
        body.extend(self.queues.to_ne_bytes());
        body.extend(self.entries.to_ne_bytes());
        body.resize(len, 0);
        body
    }
}

/// See the module's text.
pub struct Interposer<'a> {
    front: &'a UnixStream,
    back: &'a UnixStream,
    session: &'a Session,
    negotiated: VhostUserProtocolFeatures,
    // How often the front end has asked for features and has no reply yet.
    asked_features: u64,
}

impl<'a> Interposer<'a> {
    /// Between `front` and the daemon of `session`, at the other end of `back`.
    pub fn new(front: &'a UnixStream, back: &'a UnixStream, session: &'a Session) -> Interposer<'a> {
        Interposer { front, back, session, negotiated: VhostUserProtocolFeatures::empty(), asked_features: 0 }
    }

    /// Passes messages and answers some, until either side is gone. The daemon's end is shut down then, so that it ends;
    /// the front end's stays open until its queues have drained: one that sees it close may use its memory for other things.
    ///
    /// # Errors
    /// What was wrong with the front end's messages.
    pub fn run(&mut self) -> Result<(), Ended> {
        let ended = self.pass_all();
        let _ = self.back.shutdown(std::net::Shutdown::Both);
        match ended {
            // The front end is gone, or the daemon, which says why.
            Err(Ended::Wire(WireError::HungUp) | Ended::Daemon) => Ok(()),
            other => other,
        }
    }

    fn pass_all(&mut self) -> Result<(), Ended> {
        loop {
            let mut fds = [PollFd::new(self.back, PollFlags::IN), PollFd::new(self.front, PollFlags::IN)];
            wait(&mut fds)?;
            // An answer is passed before the next question.
            if !fds[0].revents().is_empty() {
                self.pass_back()?;
                continue;
            }
            match Message::receive_request(self.front) {
                Ok(message) => self.handle(message)?,
                Err(WireError::HungUp) => return self.finish(),
                Err(error) => {
                    let _ = self.finish();
                    return Err(Ended::Wire(error));
                }
            }
        }
    }

    /// Nothing more is passed to the daemon. The front end may still wait for the replies to what was.
    fn finish(&mut self) -> Result<(), Ended> {
        let _ = self.back.shutdown(std::net::Shutdown::Write);
        loop {
            self.pass_back()?;
        }
    }

    /// Passes one reply back.
    fn pass_back(&mut self) -> Result<(), Ended> {
        let reply = self.reply()?;
        if reply.is(FrontendReq::GET_FEATURES) {
            self.asked_features = self.asked_features.saturating_sub(1);
        }
        reply.send(self.front).map_err(Ended::Wire)
    }

    fn reply(&self) -> Result<Message, Ended> {
        Message::receive(self.back).map_err(|_| Ended::Daemon)
    }

    /// Passes a message to the daemon. While there is no room for it, replies are taken: the daemon may wait for that.
    fn pass(&mut self, message: &Message) -> Result<(), Ended> {
        loop {
            let mut fds = [PollFd::new(self.back, PollFlags::IN | PollFlags::OUT)];
            wait(&mut fds)?;
            if fds[0].revents().contains(PollFlags::IN) {
                self.pass_back()?;
                continue;
            }
            // Writable means three quarters of the socket's buffer, which no message fills: this does not block.
            return match message.send(self.back) {
                Ok(()) => Ok(()),
                Err(WireError::HungUp) => self.finish(),
                Err(other) => Err(Ended::Wire(other)),
            };
        }
    }

    /// Waits until the daemon has handled all that was passed to it, and its replies are passed back.
    fn settle(&mut self) -> Result<(), Ended> {
        self.pass(&Message::request(FrontendReq::GET_FEATURES))?;
        loop {
            let reply = self.reply()?;
            if reply.is(FrontendReq::GET_FEATURES) {
                if self.asked_features == 0 {
                    return Ok(());
                }
                self.asked_features -= 1;
            }
            reply.send(self.front).map_err(Ended::Wire)?;
        }
    }

    fn handle(&mut self, message: Message) -> Result<(), Ended> {
        let answer = match FrontendReq::try_from(message.request) {
            Ok(FrontendReq::GET_INFLIGHT_FD) => Self::get_inflight,
            Ok(FrontendReq::SET_INFLIGHT_FD) => Self::set_inflight,
            Ok(FrontendReq::SET_LOG_BASE) => Self::set_log,
            Ok(FrontendReq::SET_LOG_FD) => Self::set_log_fd,
            Ok(FrontendReq::SET_BACKEND_REQ_FD) => Self::set_channel,
            Ok(FrontendReq::SET_VRING_NUM) if self.ring_size(&message).is_err() => Self::refuse_ring,
            known => {
                match known {
                    Ok(FrontendReq::GET_FEATURES) => self.asked_features += 1,
                    // Of a wrong length it ends the connection.
                    Ok(FrontendReq::SET_PROTOCOL_FEATURES) => {
                        self.negotiated = VhostUserProtocolFeatures::from_bits_retain(message.u64().unwrap_or(0));
                    }
                    _ => {}
                }
                return self.pass(&message);
            }
        };
        self.settle()?;
        let acknowledged = message.needs_reply() && self.negotiated.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let head = Message { body: Vec::new(), fds: Vec::new(), ..message };
        let reply = match answer(self, message) {
            Ok(Some(reply)) => reply,
            Ok(None) if acknowledged => head.reply(0u64.to_ne_bytes().into(), Vec::new()),
            Ok(None) => return Ok(()),
            Err(refused) => {
                if acknowledged {
                    // Gone or not, it is told why in the log.
                    let _ = head.reply(1u64.to_ne_bytes().into(), Vec::new()).send(self.front);
                }
                return Err(refused);
            }
        };
        reply.send(self.front).map_err(Ended::Wire)
    }

    fn need(&self, request: FrontendReq, feature: VhostUserProtocolFeatures) -> Result<(), Ended> {
        match self.negotiated.contains(feature) {
            true => Ok(()),
            false => Err(Ended::NotNegotiated { request, feature }),
        }
    }

    fn queues(&self, request: FrontendReq, asked: u16) -> Result<(), Ended> {
        let have = self.session.num_queues();
        match usize::from(asked) <= have {
            true => Ok(()),
            false => Err(Ended::Queues { request, asked, have }),
        }
    }

    /// The daemon would only say that something is wrong. A ring that is too large is a mistake that users make.
    fn ring_size(&self, message: &Message) -> Result<(), Ended> {
        let most = self.session.queue_size();
        match message.body[..] {
            [_, _, _, _, a, b, c, d] => match u32::from_ne_bytes([a, b, c, d]) {
                asked if asked == 0 || asked > most.into() => Err(Ended::RingSize { asked, most }),
                _ => Ok(()),
            },
            // Of a wrong length it is the daemon's.
            _ => Ok(()),
        }
    }

    fn refuse_ring(&mut self, message: Message) -> Result<Option<Message>, Ended> {
        self.ring_size(&message).map(|()| None)
    }

    /// A region for a front end that has none yet. Larger than it asks for, if need be: QEMU 10 makes rings of 1024 entries
    /// and asks for 128 here.
    fn get_inflight(&mut self, message: Message) -> Result<Option<Message>, Ended> {
        let request = FrontendReq::GET_INFLIGHT_FD;
        self.need(request, VhostUserProtocolFeatures::INFLIGHT_SHMFD)?;
        let asked = InflightArea::decode(&message, request)?;
        no_descriptor(request, &message)?;
        self.queues(request, asked.queues)?;
        // Zero stays what it is, an error.
        let entries = if asked.entries == 0 { 0 } else { asked.entries.max(self.session.queue_size()) };
        let offer = Inflight::create(asked.queues, entries).map_err(|source| Ended::Inflight { request, source })?;
        let area = InflightArea { size: offer.size, offset: 0, ..asked };
        Ok(Some(message.reply(area.encode(message.body.len()), vec![offer.file.into()])))
    }

    fn set_inflight(&mut self, message: Message) -> Result<Option<Message>, Ended> {
        let request = FrontendReq::SET_INFLIGHT_FD;
        self.need(request, VhostUserProtocolFeatures::INFLIGHT_SHMFD)?;
        let area = InflightArea::decode(&message, request)?;
        let file = one_descriptor(request, message.fds)?;
        self.queues(request, area.queues)?;
        let region = Inflight::map(file, area.size, area.offset, area.queues, area.entries)
            .map_err(|source| Ended::Inflight { request, source })?;
        self.session.set_inflight(Some(Arc::new(region)));
        Ok(None)
    }

    /// Has a reply whether one is asked for or not. It says nothing about success: QEMU looks only whether there is one, so
    /// a log that is refused ends the connection, and with it the migration.
    fn set_log(&mut self, message: Message) -> Result<Option<Message>, Ended> {
        let request = FrontendReq::SET_LOG_BASE;
        self.need(request, VhostUserProtocolFeatures::LOG_SHMFD)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = message.body[..] else {
            return Err(Ended::Length { request, have: message.body.len(), expected: "16" });
        };
        // QEMU takes an answer of any length, rust-vmm's front ends one of the question's.
        let reply = message.reply(message.body.clone(), Vec::new());
        let file = one_descriptor(request, message.fds)?;
        let size = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let offset = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
        self.session.set_log(file, size, offset).map_err(Ended::Log)?;
        Ok(Some(reply))
    }

    fn set_channel(&mut self, message: Message) -> Result<Option<Message>, Ended> {
        let request = FrontendReq::SET_BACKEND_REQ_FD;
        self.need(request, VhostUserProtocolFeatures::BACKEND_REQ)?;
        let socket = one_descriptor(request, message.fds)?;
        let channel = Channel::new(socket.into()).map_err(|source| Ended::Channel { source })?;
        self.session.set_channel(channel);
        Ok(None)
    }

    /// A descriptor to signal when something was logged. Front ends look at the log without being told; it is let go.
    fn set_log_fd(&mut self, message: Message) -> Result<Option<Message>, Ended> {
        match message.fds.len() {
            0 | 1 => Ok(None),
            have => Err(Ended::Descriptors { request: FrontendReq::SET_LOG_FD, have, expected: 1 }),
        }
    }
}

fn no_descriptor(request: FrontendReq, message: &Message) -> Result<(), Ended> {
    match message.fds.len() {
        0 => Ok(()),
        have => Err(Ended::Descriptors { request, have, expected: 0 }),
    }
}

fn one_descriptor(request: FrontendReq, fds: Vec<OwnedFd>) -> Result<File, Ended> {
    match <[OwnedFd; 1]>::try_from(fds) {
        Ok([fd]) => Ok(fd.into()),
        Err(fds) => Err(Ended::Descriptors { request, have: fds.len(), expected: 1 }),
    }
}

/// Waits for any of these events.
fn wait(fds: &mut [PollFd<'_>]) -> Result<(), Ended> {
    loop {
        match poll(fds, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Ended::Wire(error.into())),
        }
    }
}
