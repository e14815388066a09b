//! Points at which the other side of a ring may act: each access of a worker to shared ring memory, and each turn of
//! the engine. What happens there happens between two steps of one thread, so it can be repeated.

use std::cell::RefCell;

thread_local! {
    static OTHER_SIDE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// Lets the other side act. It does not interrupt itself.
pub(crate) fn reached() {
    OTHER_SIDE.with(|other| {
        if let Ok(mut other) = other.try_borrow_mut()
            && let Some(act) = other.as_mut()
        {
            act();
        }
    });
}

/// The other side is there until this is dropped.
pub(crate) struct OtherSide(());

impl OtherSide {
    pub(crate) fn new(act: impl FnMut() + 'static) -> OtherSide {
        OTHER_SIDE.with(|other| *other.borrow_mut() = Some(Box::new(act)));
        OtherSide(())
    }
}

impl Drop for OtherSide {
    fn drop(&mut self) {
        OTHER_SIDE.with(|other| {
            // A panic on the other side leaves by way of `reached`, which has let go by now.
            if let Ok(mut other) = other.try_borrow_mut() {
                *other = None;
            }
        });
    }
}
