//! The host-side command line.
fn main() {}
