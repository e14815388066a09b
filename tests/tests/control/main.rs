//! The control socket, and the devices and tables that it changes.
#![allow(missing_docs)]

mod access;
mod golden;
mod hang;
mod hostile;
mod persist;
mod stats;
mod swap;
mod verbs;

const SECTOR: usize = 512;
