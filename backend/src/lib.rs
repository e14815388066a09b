//! The back end as a library, so that tests and the binary share it.
