//! `doorward`: from the arguments to a command.

fn main() {}
