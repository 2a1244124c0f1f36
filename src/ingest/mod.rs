//! (in work)
#![allow(dead_code)]
mod admission;
mod body;
mod negotiate;
pub mod problems;
