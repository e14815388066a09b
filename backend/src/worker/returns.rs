//! How heads go back to the driver, so that a successor of this process can find out which have not.
//!
//! With a record ([`Tracker`]) they go back as they end. Without one all that a successor can know is the used index, so
//! they go back in the order in which they came: then the used index is also the place on the available ring where the
//! successor goes on, and what it does again has not been acknowledged.

use std::collections::VecDeque;

use crate::inflight::Tracker;
use crate::vring::Vring;

/// A request's place in the order; see [`Returns::postpone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// Of a request that has ended before the next one was taken.
    pub const NONE: Ticket = Ticket(u64::MAX);
}

/// Heads that wait for those that came before them.
#[derive(Debug, Default)]
pub struct Order {
    // Ticket of the first of `waiting`.
    first: u64,
    // The head, and what was written once it has ended.
    waiting: VecDeque<(u16, Option<u32>)>,
}

/// See the module's text.
#[derive(Debug)]
pub enum Returns {
    /// As they end, recorded.
    Recorded(Tracker),
    /// In the order in which they came.
    InOrder(Order),
}

impl Returns {
    /// A head has been taken.
    #[inline]
    pub fn taken(&mut self, head: u16) {
        if let Returns::Recorded(tracker) = self {
            tracker.taken(head);
        }
    }

    /// The request that was taken last has not ended yet. To be called before the next one is taken.
    #[inline]
    pub fn postpone(&mut self, head: u16) -> Ticket {
        match self {
            Returns::Recorded(_) => Ticket::NONE,
            Returns::InOrder(order) => {
                order.waiting.push_back((head, None));
                Ticket(order.first.wrapping_add(order.waiting.len() as u64 - 1))
            }
        }
    }

    /// A request has ended, with so many bytes written.
    #[inline]
    pub fn ended(&mut self, vring: &mut Vring, ticket: Ticket, head: u16, written: u32) {
        match self {
            Returns::Recorded(tracker) => {
                vring.push_used(head, written);
                tracker.given_back(head);
            }
            Returns::InOrder(order) if ticket == Ticket::NONE && order.waiting.is_empty() => {
                vring.push_used(head, written);
            }
            Returns::InOrder(order) => order.ended(vring, ticket, head, written),
        }
    }

    /// Requests that have not gone back, or wait for those before them.
    #[inline]
    pub fn held_back(&self) -> usize {
        match self {
            Returns::Recorded(_) => 0,
            Returns::InOrder(order) => order.waiting.len(),
        }
    }

    /// Makes what was given back visible; `true` when the driver wants to be told.
    #[inline]
    pub fn publish(&mut self, vring: &mut Vring) -> bool {
        match self {
            Returns::Recorded(tracker) => {
                tracker.seal();
                let tell = vring.publish();
                tracker.clear(vring.next_used());
                tell
            }
            Returns::InOrder(_) => vring.publish(),
        }
    }

    /// Whether the place of the record was found truncated.
    #[inline]
    pub fn broken(&self) -> bool {
        matches!(self, Returns::Recorded(tracker) if tracker.broken())
    }
}

impl Order {
    fn ended(&mut self, vring: &mut Vring, ticket: Ticket, head: u16, written: u32) {
        if ticket == Ticket::NONE {
            self.waiting.push_back((head, Some(written)));
            return;
        }
        let at = ticket.0.wrapping_sub(self.first);
        if let Some(place) = usize::try_from(at).ok().and_then(|at| self.waiting.get_mut(at)) {
            place.1 = Some(written);
        }
        while let Some(&(head, Some(written))) = self.waiting.front() {
            vring.push_used(head, written);
            self.waiting.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }
}
