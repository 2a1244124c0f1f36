//! The command line: what can be typed, and its help. Every command ends in a function of `app` or of a file here.

pub mod args;
pub mod say;
pub mod who;

pub use args::{Arguments, Command};
