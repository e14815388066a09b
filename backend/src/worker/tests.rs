//! A worker's end.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::poll::{Lookers, Poll};
use super::{Core, Ops};
use crate::engine::{Engine, Wait};
use crate::uring::testing::{guest, registering};

#[test]
fn a_worker_that_ends_has_given_back_the_memory_that_it_registered() {
    let Some(engine) = registering("a_worker_that_ends_has_given_back_the_memory_that_it_registered") else { return };
    // In eight pieces.
    let guest = guest(8 << 20, 8 << 20);
    let poll = Poll::new(Duration::ZERO, Lookers::of_process());
    let mut core = Core::new(engine, Ops::new().unwrap(), poll, None);
    core.engine.add_memory(&guest);
    let bell = EventFd::new(EFD_NONBLOCK).unwrap();
    // More than there are pieces.
    for _ in 0..20 {
        core.engine.turn(Wait::No, &mut Vec::new()).unwrap();
    }
    core.engine.remove_memory(&guest);
    assert!(core.engine.is_giving_back());
    core.ending = true;
    core.run(&channel().1, &bell);
    assert!(!core.engine.is_giving_back());
    drop(core);
    assert_eq!(Arc::strong_count(&guest), 1);
}
