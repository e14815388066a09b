//! Test front end.
