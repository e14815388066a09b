//! The device-mapper table language.
#![forbid(unsafe_code)]
