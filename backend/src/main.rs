//! vhost-user-dm.
fn main() {}
